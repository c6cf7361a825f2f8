"""Small networks with weights by a rule, and what the public packages of published distances compute with them.

`python tests/published_reference.py` writes the file that tests read everywhere. It needs cd-fvd 0.1.1, vjepa 0.1.2,
videojedi 1.1.0 and fvmd 1.0.0.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).parent / "metrics" / "published" / "published_reference.npz"
DIM, HEADS, HIDDEN, DEPTH = 24, 2, 104, 2  # of the video transformers
POINTS, ITERATIONS = 2, 5  # points a side and iterations of PIPs++; the last iteration moves by a half step


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random weights: each depends on its name and shape alone."""
    made = {}
    for name, shape in shapes.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        made[name] = torch.from_numpy(values).mul_(0.2 if len(shape) < 2 else (2 / np.prod(shape[1:])) ** 0.5)
    if "delta_block.dense.weight" in made:
        made["delta_block.dense.weight"] *= 0.1  # or the iterations would multiply rounding errors
    return made


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (DIM,), f"{name}.bias": (DIM,)}


def videomae_weights() -> dict[str, Tensor]:
    """In the layout of vit_g_hybrid_pt_1200e_ssv2_ft.pth."""
    shapes = {"patch_embed.proj.weight": (DIM, 3, 2, 14, 14), "patch_embed.proj.bias": (DIM,)}
    for name in (f"blocks.{number}." for number in range(DEPTH)):
        shapes |= norm(name + "norm1") | {name + "attn.q_bias": (DIM,), name + "attn.v_bias": (DIM,)}
        shapes |= linear(name + "attn.qkv", DIM, 3 * DIM, bias=False) | linear(name + "attn.proj", DIM, DIM)
        shapes |= norm(name + "norm2") | linear(name + "mlp.fc1", DIM, HIDDEN) | linear(name + "mlp.fc2", HIDDEN, DIM)
    return weights(shapes | norm("fc_norm") | linear("head", DIM, 5))


def vjepa_weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encoder and probe in the layouts of vith16.pth.tar and ssv2-probe.pth.tar, for frames of 32 px."""
    shapes = {"pos_embed": (1, 8 * 2 * 2, DIM), "patch_embed.proj.weight": (DIM, 3, 2, 16, 16)}
    shapes |= {"patch_embed.proj.bias": (DIM,)} | norm("norm")
    for name in (f"blocks.{number}." for number in range(DEPTH)):
        shapes |= norm(name + "norm1") | linear(name + "attn.qkv", DIM, 3 * DIM) | linear(name + "attn.proj", DIM, DIM)
        shapes |= norm(name + "norm2") | linear(name + "mlp.fc1", DIM, 4 * DIM) | linear(name + "mlp.fc2", 4 * DIM, DIM)
    block = "pooler.cross_attention_block."
    probe = {"pooler.query_tokens": (1, 1, DIM)} | norm(block + "norm1") | norm(block + "norm2")
    probe |= linear(block + "xattn.q", DIM, DIM) | linear(block + "xattn.kv", DIM, 2 * DIM)
    probe |= linear(block + "xattn.proj", DIM, DIM) | linear("linear", DIM, 5)
    probe |= linear(block + "mlp.fc1", DIM, 4 * DIM) | linear(block + "mlp.fc2", 4 * DIM, DIM)
    encoder = {f"module.backbone.{name}": value for name, value in weights(shapes).items()}
    return encoder, {f"module.{name}": value for name, value in weights(probe).items()}


def videos(frames: int, height: int, width: int) -> Tensor:
    """(2, T, 3, H, W) uint8: coarse noise that moves."""
    pixels = np.random.default_rng(frames).integers(0, 256, (2, 3, 12, 12), np.uint8)
    large = torch.nn.functional.interpolate(torch.from_numpy(pixels).float(), (height + 32, width + 32), mode="bicubic")
    moved = [large[..., t : t + height, 2 * t % 32 : 2 * t % 32 + width] for t in range(frames)]
    return torch.stack(moved, 1).clamp(0, 255).round().byte()


def features(side: int) -> np.ndarray:
    """(n, 6) float64 of real (0) or generated (1) clips."""
    return np.random.default_rng(side).standard_normal((9 + 3 * side, 6)) + 0.5 * side


def tracks() -> Tensor:
    """(3, 16, 400, 2) px: random walks, one of them of whole px, whose directions lie on the edges of bins."""
    steps = np.random.default_rng(0).normal(0, 3, (3, 16, 400, 2))
    steps[1] = steps[1].round()
    return torch.from_numpy(steps.cumsum(1)).float()


def points(side: int) -> Tensor:
    """(N, 2) px in rows: a grid that ends 8 px from the edges."""
    along = 8 + torch.arange(POINTS) / (POINTS - 1) * (side - 16)
    return torch.cartesian_prod(along, along).flip(-1)


def by_cdfvd() -> dict[str, np.ndarray]:
    from cdfvd.fvd import cdfvd
    from cdfvd.third_party.VideoMAEv2.utils import preprocess_videomae
    from cdfvd.third_party.VideoMAEv2.videomaev2_finetune import VisionTransformer
    from cdfvd.utils.metric_utils import FeatureStats

    network = VisionTransformer(
        patch_size=14, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, mlp_ratio=HIDDEN / DIM, qkv_bias=True,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6), num_classes=5, drop_path_rate=0.3,
    ).eval()  # fmt: skip
    network.load_state_dict(videomae_weights())
    found = {}
    for frames in (16, 21):
        pixels = preprocess_videomae(videos(frames, 40, 56).permute(0, 1, 3, 4, 2).numpy())
        with torch.no_grad():
            found[f"videomae_{frames}"] = network.forward_features(pixels).numpy()
    stats = [FeatureStats(capture_mean_cov=True) for _ in range(2)]
    for side, each in enumerate(stats):
        each.append(features(side))
    found["cdfvd"] = np.array(cdfvd.compute_fvd_from_stats(None, stats[1], stats[0]))
    return found


def by_videojedi() -> dict[str, np.ndarray]:
    from videojedi.mmd_polynomial import mmd_poly
    from vjepa.models.attentive_pooler import AttentiveClassifier
    from vjepa.models.vision_transformer import VisionTransformer

    encoder = VisionTransformer(
        img_size=32, patch_size=16, num_frames=16, embed_dim=DIM, depth=DEPTH, num_heads=HEADS,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6), uniform_power=True,
    ).eval()  # fmt: skip
    probe = AttentiveClassifier(embed_dim=DIM, num_heads=HEADS, depth=1, num_classes=5).eval()
    for module, state in zip((encoder, probe), vjepa_weights()):
        module.load_state_dict({name.replace("module.", "").replace("backbone.", ""): v for name, v in state.items()})
    # videojedi's own call passes (T, C, H, W) to a function for (C, T, H, W), which fails for 16 frames.
    pixels = videos(16, 32, 32).transpose(1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        pooled = probe.pooler(encoder((pixels - mean) / std)).squeeze(1)
    return {"vjepa": pooled.numpy(), "jedi": np.array(100 * mmd_poly(features(0), features(1), degree=2, coef0=0))}


def by_fvmd() -> dict[str, np.ndarray]:
    import fvmd.keypoint_tracking as tracking
    import fvmd.utils.basic as basic
    from fvmd.extract_motion_features import calc_hist
    from fvmd.frechet_distance import calculate_fd_given_vectors
    from fvmd.nets.pips2 import Pips

    grid = basic.meshgrid2d
    with (
        patch.object(torch.Tensor, "cuda", lambda tensor: tensor),
        patch.object(basic, "meshgrid2d", lambda *args, **options: grid(*args, **options | {"device": "cpu"})),
        torch.no_grad(),
    ):
        network = Pips().eval()
        network.load_state_dict(weights({name: tuple(value.shape) for name, value in network.state_dict().items()}))
        tracked = tracking.run_tracking(network, videos(16, 128, 128)[:1], N=POINTS**2, iters=ITERATIONS)
        velocity = tracking.calc_velocity(tracks())
        moved = [velocity.numpy(), tracking.calc_acceleration(velocity).numpy()]
    histograms = np.concatenate([calc_hist(each).reshape(3, -1) for each in moved], 1)
    value = np.array(calculate_fd_given_vectors(features(1), features(0)))
    return {"pips": tracked.numpy(), "histograms": histograms.astype(np.float32), "fvmd": value}


PACKAGES = {"cdfvd.fvd": by_cdfvd, "videojedi": by_videojedi, "fvmd": by_fvmd}

if __name__ == "__main__":
    np.savez_compressed(FILE, **by_cdfvd(), **by_videojedi(), **by_fvmd())
