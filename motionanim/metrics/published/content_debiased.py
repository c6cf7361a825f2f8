"""Features of the content-debiased FVD (Ge et al., CVPR 2024): VideoMAE-v2, fine-tuned to Something-Something v2.

FVD on I3D hardly sees motion that falls apart as long as frames look right. Something-Something's classes are told by
motion alone, so these features see it. The numbers are those of the package cd-fvd 0.1.1.
"""

from pathlib import Path

from torch import Tensor

from motionanim.files import file_sha256
from motionanim.metrics.published.base import PublishedFeatures, stretched
from motionanim.models.video_transformer import VideoMAE
from motionanim.models.weights.checkpoint import locate, read_part

FILE = "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
URL = f"https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/internvideo/videomaev2/{FILE}"
_SIDE = 224


class VideoMAEFeatures(PublishedFeatures):
    """Frames (B, T, 3, H, W) in [-1, 1] to features (B, 1408): the mean of the last tokens, normalised.

    cd-fvd reads clips of 16 frames by default. It stretches frames to 224 px without antialias, feeds pixels in [0, 1]
    without the mean and deviation of ImageNet, and divides covariances by n.

    Args:
        weights: State dict in the layout of vit_g_hybrid_pt_1200e_ssv2_ft.pth (4 GB); None for the folder of weights.
        heads: Of the attention: 16 of ViT-g. The other sizes are read from the weights.
        batch: Clips a pass, at least 1; bounds the memory.

    Raises:
        MissingWeights: If there is no such file.
        ValueError: If the weights cannot be read or have another layout, or an argument is not as above.
    """

    name, frames, min_frames = "videomae", None, 2

    def __init__(self, weights: Path | str | None = None, *, heads: int = 16, batch: int) -> None:
        place = locate(weights, file=FILE, url=URL)
        network = VideoMAE(read_part(place, ("model", "module")), heads=heads)
        self.dim = network.dim
        super().__init__(
            {"network": "VideoMAE-v2", "resize": f"stretch {_SIDE}, bilinear", "value_range": [0, 1], "ddof": 0,
             "heads": heads, "weights": file_sha256(place), "version": 1},
            batch=batch,
        )  # fmt: skip
        self.network = network

    def features(self, pixels: Tensor) -> Tensor:
        return self.network(stretched(pixels, _SIDE))
