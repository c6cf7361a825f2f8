"""JEDi (Luo et al. 2024, "Beyond FVD", arXiv 2410.05203): maximum mean discrepancy of features of V-JEPA.

The kernel is a polynomial. The distance needs fewer clips than Fréchet's and supposes no Gaussians. The numbers are
those of videojedi 1.1.0.
"""

from pathlib import Path

import torch
from torch import Tensor

from motionanim.files import file_sha256
from motionanim.metrics.fvd import Sums
from motionanim.metrics.published.base import PublishedFeatures, stretched
from motionanim.models.video_transformer import VJEPA
from motionanim.models.weights.checkpoint import locate, read_part

ENCODER, PROBE = "vith16.pth.tar", "ssv2-probe.pth.tar"
_URL = "https://dl.fbaipublicfiles.com/jepa/vith16/"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def jedi(fake: Sums, real: Sums) -> Tensor:
    """100 times the squared maximum mean discrepancy with the kernel (x y / D)^2, () float64, at least 0.

    The means are over all pairs, each vector with itself included, so the number is larger for fewer clips. With this
    kernel it is the squared distance of the two means of x x^T, which the sums hold.

    Args:
        fake, real: Sums over the clips of each side, of features (D,).

    Returns:
        NaN if a side has fewer than 2 clips.
    """
    if min(fake[0], real[0]) < 2:
        return torch.tensor(torch.nan, dtype=torch.float64)
    between = fake[2].double() / fake[0] - real[2].double() / real[0]
    return 100 * (between / len(between)).square().sum()


class VJEPAFeatures(PublishedFeatures):
    """Frames (B, 16, 3, H, W) in [-1, 1] to features (B, 1280): V-JEPA's tokens pooled by its probe for SSv2.

    Pixels have ImageNet's mean and deviation taken out. videojedi leaves the resize to its caller: here frames are
    stretched to the size of the weights, 224 px, without antialias.

    Args:
        encoder: vith16.pth.tar (10 GB, with the optimizer's state), or its "target_encoder" as .safetensors (2.5 GB);
            None for the folder of weights.
        probe: ssv2-probe.pth.tar, or its "classifier" as .safetensors; None for the folder of weights.
        heads: Of the attention: 16 of ViT-H. The other sizes are read from the weights.
        batch: Clips a pass, at least 1; bounds the memory.

    Raises:
        MissingWeights: If a file is not there.
        ValueError: If the weights cannot be read or have another layout, or an argument is not as above.
    """

    name, frames, min_frames = "jedi", 16, 16
    between = staticmethod(jedi)

    def __init__(
        self, encoder: Path | str | None = None, probe: Path | str | None = None, *, heads: int = 16, batch: int
    ) -> None:
        place, head = locate(encoder, file=ENCODER, url=_URL + ENCODER), locate(probe, file=PROBE, url=_URL + PROBE)
        network = VJEPA(read_part(place, ("target_encoder", "encoder")), read_part(head, ("classifier",)), heads=heads)
        self.dim = network.encoder.dim
        steps, rows, _ = network.encoder.patch
        count = network.encoder.pos_embed.shape[1] // (self.frames // steps)
        self._side = round(count**0.5) * rows
        super().__init__(
            {"network": "V-JEPA", "resize": f"stretch {self._side}, bilinear", "normalise": "imagenet",
             "distance": "mmd, (x y / D)^2, biased, times 100", "ddof": 0, "heads": heads,
             "weights": [file_sha256(place), file_sha256(head)], "version": 1},
            batch=batch,
        )  # fmt: skip
        self.network = network
        mean, std = torch.tensor([_MEAN, _STD]).view(2, 1, 3, 1, 1, 1)
        self.register_buffer("mean", mean, False)
        self.register_buffer("std", std, False)

    def features(self, pixels: Tensor) -> Tensor:
        return self.network((stretched(pixels, self._side) - self.mean) / self.std)
