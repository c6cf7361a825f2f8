"""Less memory for SVD's networks: its decoder in tiles, and layers that are on the GPU only while they run."""

from functools import partial

import torch
import torch.nn.functional as F
from diffusers.hooks import apply_group_offloading
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from torch import Tensor, nn

MEASURED = 3  # frames
OVERLAP = 16  # latent pixels that neighbouring tiles share; over them one fades into the other


def offload(module: nn.Module, device: torch.device) -> None:
    """Keep the layers of `module` on the host, and each on `device` while it runs, by diffusers' group offloading.

    On a GPU the next layer is copied while one runs. On a CPU nothing changes.
    """
    if device.type != "cpu":
        apply_group_offloading(
            module, onload_device=device, offload_type="leaf_level", use_stream=torch.cuda.is_available()
        )


class TiledDecoder:
    """Lets a decoder of SVD take `tile`: the most latent pixels of a side that its upper layers see at once.

    Its first layers, with their attention over the whole frame, are at the latents' own size and run as ever. The
    others run on tiles, which fade into each other. All tiles take the mean and variance of each normalisation from
    the MEASURED frames in the middle, which are decoded whole before: tiles that are normalised by themselves differ
    in brightness and contrast. For these frames alone the result is that of the whole frame up to rounding; other
    frames differ as much as their own means and variances do.

    The forward functions of the decoder and of its normalisations are replaced in place; weights and names stay.
    """

    def __init__(self, decoder: TemporalDecoder) -> None:
        self.decoder = decoder
        self.norms = [m for m in [*decoder.up_blocks.modules(), decoder.conv_norm_out] if isinstance(m, nn.GroupNorm)]
        self.known: dict[nn.GroupNorm, tuple[Tensor, Tensor]] | None = None  # scale and shift of each, while in tiles
        decoder.forward = self.forward
        for norm in self.norms:
            norm.forward = partial(self._normalise, norm)

    def forward(self, sample: Tensor, image_only_indicator: Tensor, num_frames: int, tile: int | None = None) -> Tensor:
        """As `TemporalDecoder.forward`."""
        decoder, (height, width) = self.decoder, sample.shape[-2:]
        if tile is None or max(height, width) <= tile:
            return TemporalDecoder.forward(decoder, sample, image_only_indicator, num_frames)
        hidden = decoder.mid_block(decoder.conv_in(sample), image_only_indicator=image_only_indicator)
        self.known, out, count = {}, None, min(MEASURED, num_frames)
        middle = (num_frames - count) // 2
        try:
            self._upper(hidden[middle : middle + count], image_only_indicator[:, :count], count)
            for top in _starts(height, tile):
                for left in _starts(width, tile):
                    part = hidden[..., top : top + tile, left : left + tile]
                    part = self._upper(part, image_only_indicator, num_frames)
                    scale = part.shape[-1] // min(tile, width)
                    if out is None:
                        out = part.new_zeros(*part.shape[:2], height * scale, width * scale)
                    part *= _fade(top, height, tile, scale, part)[:, None] * _fade(left, width, tile, scale, part)
                    rows, columns = slice(top * scale, (top + tile) * scale), slice(left * scale, (left + tile) * scale)
                    out[..., rows, columns] += part
        finally:
            self.known = None
        return out

    def _upper(self, part: Tensor, image_only_indicator: Tensor, num_frames: int) -> Tensor:
        decoder = self.decoder
        for block in decoder.up_blocks:
            part = block(part, image_only_indicator=image_only_indicator)
        part = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(part)))
        clips = part.unflatten(0, (-1, num_frames)).transpose(1, 2)
        return decoder.time_conv_out(clips).transpose(1, 2).flatten(0, 1)

    def _normalise(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        if self.known is not None:
            if norm not in self.known:
                self.known[norm] = _scale_and_shift(norm, x)
            scale, shift = (value.view(-1, *[1] * (x.ndim - 2)) for value in self.known[norm])
            return torch.addcmul(shift, x, scale)
        if x.dtype == torch.bfloat16:
            # CUDA's autocast would return float32, so that the largest tensors take twice the memory.
            with torch.autocast(x.device.type, enabled=False):
                return F.group_norm(x, norm.num_groups, norm.weight.to(x), norm.bias.to(x), norm.eps)
        return nn.GroupNorm.forward(norm, x)


def _scale_and_shift(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) each: the normalisation of `x` (N, C, ...), with the mean moments of all N."""
    moments = torch.var_mean(x.reshape(len(x), norm.num_groups, -1).float(), -1, correction=0)
    variance, mean = (value.mean(0).repeat_interleave(norm.num_channels // norm.num_groups) for value in moments)
    scale = (variance + norm.eps).rsqrt() * norm.weight
    return scale.to(x.dtype), (norm.bias - mean * scale).to(x.dtype)


def _starts(side: int, tile: int) -> list[int]:
    """First pixels of the tiles that cover `side` latent pixels, evenly spread; neighbours share at least OVERLAP."""
    count = 1 if side <= tile else -(-(side - OVERLAP) // (tile - OVERLAP))
    return [round(i * (side - tile) / max(1, count - 1)) for i in range(count)]


def _fade(start: int, side: int, tile: int, scale: int, like: Tensor) -> Tensor:
    """Weights of a tile's rows or columns, in pixels; those of all tiles add up to 1."""
    starts = _starts(side, tile)
    place = torch.arange(side * scale, device=like.device) + 0.5
    weights = []
    for first in starts:
        # 0 at the tile's edge, where it lacks its surroundings, then linear over the middle quarter of what is shared.
        weight = torch.ones_like(place)
        for border, sign in ((first, 1), (first + tile, -1)):
            if 0 < border < side:
                inside = sign * (place / scale - border) / OVERLAP
                weight = weight * (4 * inside - 1.5).clamp(0, 1)
        weights.append(weight)
    share = weights[starts.index(start)] / torch.stack(weights).sum(0)
    return share[start * scale : (start + tile) * scale].to(like.dtype)
