"""Video transformers whose features published distances use: VideoMAE-v2 and V-JEPA.

Both cut a clip into patches of a few pixels and 2 frames and pass them through the blocks of a ViT (Dosovitskiy et al.
2021). The blocks are timm's; module names are those of the published weights. All sizes but the number of heads are
read from the weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from motionanim.models.weights_io import fill

_EPS = 1e-6  # of the encoders' layer norms, in both papers' code
_TRAINED = (8, 16, 16)  # VideoMAE-v2's patches of 16 frames of 224 px: steps, rows, columns


class _Encoder(nn.Module):
    """Patches and blocks."""

    def __init__(self, state: dict[str, Tensor], *, heads: int) -> None:
        super().__init__()
        self.dim, _, *self.patch = state["patch_embed.proj.weight"].shape
        if heads < 1 or self.dim % heads:
            raise ValueError(f"heads={heads}: must be a divisor of the width {self.dim} of the weights")
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        ratio = len(state["blocks.0.mlp.fc1.bias"]) / self.dim
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, self.dim, self.patch, self.patch)})
        self.blocks = nn.Sequential(*(_block(self.dim, heads, ratio) for _ in range(depth)))

    def tokens(self, pixels: Tensor, positions: Tensor) -> Tensor:
        """(B, 3, T, H, W) and positions (1, N, D) to tokens (B, N, D)."""
        return self.blocks(self.patch_embed["proj"](pixels).flatten(2).mT + positions)


def _block(dim: int, heads: int, ratio: float) -> Block:
    def norm(width: int, **kwargs: object) -> nn.LayerNorm:
        return nn.LayerNorm(width, eps=_EPS)

    block = Block(dim, heads, mlp_ratio=1.0, qkv_bias=True, norm_layer=norm)
    block.mlp = Mlp(dim, round(dim * ratio))  # a ratio such as 48/11 of VideoMAE-v2 may round down to a wrong width
    return block


class VideoMAE(_Encoder):
    """The classifier of VideoMAE-v2 (Wang et al., CVPR 2023) without its last layer, as cd-fvd reads its features.

    Args:
        state: Published layout, such as that of vit_g_hybrid_pt_1200e_ssv2_ft.pth, without its outer dict.
        heads: Of the attention: 16 of ViT-g.

    Raises:
        ValueError: If the weights have another layout, or `heads` does not divide their width.
    """

    def __init__(self, state: dict[str, Tensor], *, heads: int) -> None:
        state = {key: value for key, value in state.items() if key not in ("head.weight", "head.bias")}
        for key in [key for key in state if key.endswith(".q_bias")]:
            # The published attention has no bias of the keys, which would change nothing: softmax ignores it.
            query, value = state.pop(key), state.pop(key.replace("q_bias", "v_bias"), None)
            if value is None:
                raise ValueError(f"the weights have {key} and no v_bias: not the layout of VideoMAE-v2")
            state[key.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
        with _layout("VideoMAE-v2"), torch.device("meta"):
            super().__init__(state, heads=heads)
            self.fc_norm = nn.LayerNorm(self.dim, eps=_EPS)
        fill("VideoMAE-v2", self, state)
        self.register_buffer("positions", _sinusoids(_TRAINED[0] * _TRAINED[1] * _TRAINED[2], self.dim), False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of (B, 3, T, H, W) in [0, 1]; T at least 2, H and W 16 patches.

        Published clips have 16 frames. For others the table of positions is stretched in time, as cd-fvd does; of an
        odd number of frames the last one is not seen.
        """
        steps = pixels.shape[2] // self.patch[0]
        positions = self.positions
        if steps != _TRAINED[0]:
            grid = positions.mT.reshape(1, self.dim, *_TRAINED)
            # The 0.1 keeps the length from being rounded down to one step fewer. It shifts the samples a little.
            grid = F.interpolate(grid, scale_factor=((steps + 0.1) / _TRAINED[0], 1.0, 1.0), mode="trilinear")
            positions = grid.flatten(2).mT
        return self.fc_norm(self.tokens(pixels, positions).mean(1))


def _sinusoids(count: int, dim: int) -> Tensor:
    """(1, count, dim): sine and cosine of the position, in turn, with periods that grow to 20000 pi."""
    rates = 10000 ** (-2 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()[None]


class VJEPA(nn.Module):
    """V-JEPA (Bardes et al. 2024) with the attentive pooling of a probe, as videojedi reads its features.

    Args:
        encoder: State dict of the encoder, as under "target_encoder" in vith16.pth.tar.
        probe: State dict of the probe, as under "classifier" in ssv2-probe.pth.tar.
        heads: Of all attention: 16 of ViT-H.

    Raises:
        ValueError: If the weights have another layout, or `heads` does not divide their width.
    """

    def __init__(self, encoder: dict[str, Tensor], probe: dict[str, Tensor], *, heads: int) -> None:
        super().__init__()
        encoder = {key.replace("module.", "").replace("backbone.", ""): value for key, value in encoder.items()}
        probe = {key.replace("module.", ""): value for key, value in probe.items()}
        pooler = {k.removeprefix("pooler."): value for k, value in probe.items() if k.startswith("pooler.")}
        with _layout("V-JEPA"), torch.device("meta"):
            self.encoder = _Encoder(encoder, heads=heads)
            self.encoder.pos_embed = nn.Parameter(torch.empty(encoder["pos_embed"].shape))
            self.encoder.norm = nn.LayerNorm(self.encoder.dim, eps=_EPS)
            self.pooler = _Pooler(self.encoder.dim, heads)
        fill("the encoder of V-JEPA", self.encoder, encoder)
        fill("the probe of V-JEPA", self.pooler, pooler)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of normalised (B, 3, T, H, W), of the size and length of the table of positions."""
        return self.pooler(self.encoder.norm(self.encoder.tokens(pixels, self.encoder.pos_embed)))


class _Pooler(nn.Module):
    """A learned query attends to all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_tokens = nn.Parameter(torch.empty(1, 1, dim))
        attention = {"q": nn.Linear(dim, dim), "kv": nn.Linear(dim, 2 * dim), "proj": nn.Linear(dim, dim)}
        parts = {"norm1": nn.LayerNorm(dim), "xattn": nn.ModuleDict(attention), "norm2": nn.LayerNorm(dim)}
        self.cross_attention_block = nn.ModuleDict({**parts, "mlp": Mlp(dim, 4 * dim)})

    def forward(self, tokens: Tensor) -> Tensor:
        block, query = self.cross_attention_block, self.query_tokens.expand(len(tokens), -1, -1)
        attention = block["xattn"]

        def split(x: Tensor, parts: int) -> Sequence[Tensor]:
            """(B, N, parts * D) to `parts` of (B, heads, N, D / heads)."""
            return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

        (q,), (k, v) = split(attention["q"](query), 1), split(attention["kv"](block["norm1"](tokens)), 2)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        query = query + attention["proj"](seen)
        return (query + block["mlp"](block["norm2"](query))).squeeze(1)


@contextmanager
def _layout(name: str) -> Iterator[None]:
    """Turns a missing key into a ValueError."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"the weights have no {error}: not the layout of {name}") from error
