"""Write a patch PCA, the best linear code of its size, into the weights of an AutoencoderKLHunyuanImage.

Autoencoders of this size that were trained from random weights on two cores stayed 3 to 6 dB below the PCA
(experiments/embedded_base). One that starts as the PCA equals it before the first step, and only the decoder's residual
blocks are left to train. Its latents are known in closed form and never change.

The shortcuts of the network are linear, but encoder and decoder both end in a group norm and SiLU. A signal x passes
through them unchanged by two means. Each group also holds a large constant (`CARRIER`), which makes mean and deviation
of the group constant. And each x comes with -x, because SiLU(x) - SiLU(-x) = x. The encoder has too few channels for
all pairs: the weaker half of its signals comes without -x, scaled down and shifted to the inflection point of SiLU
(`STRAIGHT`), around which it is nearly linear.
"""

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanImage
from torch import Tensor, nn

CARRIER = 32.0
STRAIGHT = 2.3994  # where the second derivative of SiLU is 0
PATCH = 8
_PHASES = [(0, 0), (0, 1), (1, 0), (1, 1)]  # cells of a 2x2 block, in the order of pixel (un)shuffle


@torch.no_grad()
def write_patch_pca(vae: AutoencoderKLHunyuanImage, images: Tensor, *, whitening: float) -> None:
    """Set all weights of the linear path through `vae`; its residual blocks keep theirs, but add 0 until they train.

    Args:
        vae: Has four levels, of which three halve the size, and no blocks in the encoder; the norm at the encoder's end
            has groups of 4 channels, that at the decoder's end groups of 3.
        images: (N, 3, H, W) in [-1, 1], H and W multiples of 8; the PCA is fitted to them.
        whitening: In [0, 1]: 0 keeps the components' standard deviations, 1 makes them equal. A diffusion model spends
            equal effort on equal deviations, however little a component matters to the eye. The mean square of all
            latents is 1 in any case.

    Raises:
        ValueError: If the network has another layout.
    """
    config, encoder, decoder = vae.config, vae.encoder, vae.decoder
    if (
        config.spatial_compression_ratio != PATCH
        or len(config.block_out_channels) != 4
        or config.layers_per_block != 0
        or encoder.norm_out.num_channels != 4 * encoder.norm_out.num_groups
        or decoder.norm_out.num_channels != 3 * decoder.norm_out.num_groups
    ):
        raise ValueError(
            f"block_out_channels={list(config.block_out_channels)}, layers_per_block={config.layers_per_block}: "
            "the patch PCA needs 4 levels, 96 channels on the first and 128 on the last, layers_per_block=0 and "
            "spatial_compression_ratio=8"
        )
    for name, module in vae.named_modules():
        if name.endswith((".conv2", ".proj")):
            _zero(module)
    mean, energies, basis = _pca(images, PATCH)
    latents = config.latent_channels
    scales = energies[:latents] ** (-whitening / 2)
    scales = scales / (energies[:latents] * scales**2).mean().sqrt()
    _write_encoder(vae, images, basis[:, :latents] * scales, mean)
    _write_decoder(vae, basis[:, :latents] / scales, mean)


def _pca(images: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variances and components (columns), strongest first, of the patches; a patch is ordered (colour, y, x)."""
    patches = F.unfold(images, side, stride=side).transpose(1, 2).flatten(0, 1).double()
    energies, basis = torch.linalg.eigh(torch.cov(patches.T))
    return patches.mean(0).float(), energies.flip(0).float(), basis.flip(1).float()


def _zero(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _set(conv: nn.Conv2d, matrix: Tensor, bias: Tensor | None = None) -> None:
    """Set a 3x3 convolution to a matrix on the channels."""
    _zero(conv)
    conv.weight[:, :, 1, 1] = matrix
    if bias is not None:
        conv.bias.copy_(bias)


def _set_down(block: nn.Module, matrix: Tensor, bias: Tensor | None = None) -> None:
    """Set a halving block to a matrix on each cell of a 2x2 block: output channel = cell * rows + row.

    The convolution also subtracts the block's shortcut, a mean of neighbouring channels.
    """
    columns = matrix.shape[1]
    shortcut = torch.zeros_like(matrix)
    shortcut[torch.arange(columns) // block.group_size, torch.arange(columns)] = 1 / block.group_size
    _set(block.conv, matrix - shortcut, bias)


def _set_up(block: nn.Module, matrices: Tensor, biases: Tensor | None = None) -> None:
    """Set a doubling block to matrices (4, rows, columns), one a cell of a 2x2 block; its shortcut repeats channels."""
    count = block.conv.out_channels
    shortcut = torch.zeros(count, block.conv.in_channels)
    shortcut[torch.arange(count), torch.arange(count) // block.repeats] = 1
    _set(block.conv, matrices.flatten(0, 1) - shortcut, None if biases is None else biases.flatten())


def _let_through(norm: nn.GroupNorm) -> None:
    """Invert a group norm on groups of which one channel is `CARRIER` and the others are small."""
    size = norm.num_channels // norm.num_groups
    mean = CARRIER / size
    norm.weight.fill_(math.sqrt(CARRIER**2 / size - mean**2))
    norm.bias.fill_(mean)


def _write_encoder(vae: AutoencoderKLHunyuanImage, images: Tensor, analysis: Tensor, mean: Tensor) -> None:
    encoder, latents = vae.encoder, vae.config.latent_channels
    first, second, third = encoder.down_blocks
    _set(encoder.conv_in, _picks(encoder.conv_in.out_channels, 3, range(3)))
    rows = first.conv.out_channels
    _set_down(first, _picks(rows, first.conv.in_channels, range(3)))
    # A halving concatenates the channels of the four cells; only the first channels of each are used.
    used = [phase * rows + colour for phase in range(4) for colour in range(3)]
    rows = second.conv.out_channels
    _set_down(second, _picks(rows, second.conv.in_channels, used))
    rows = third.conv.out_channels
    used = [phase * second.conv.out_channels + k for phase in range(4) for k in range(12)]
    pixels = _pixels(4, 0, 0)
    # The strongest components of 4x4 patches, as many as fit: channels 0 and 1 of each group hold x and -x, channel 2
    # holds a weaker component without its negative, channel 3 the carrier.
    centre, energies, basis = _pca(images, 4)
    groups = rows // 4
    matrix, bias = torch.zeros(rows, third.conv.in_channels), torch.zeros(rows)
    for k in range(2 * groups):
        component = basis[:, k] * (0.25 if k < groups else 0.2 / energies[k].sqrt())
        at, signs = (4 * k, (1, -1)) if k < groups else (4 * (k - groups) + 2, (1,))
        for place, sign in enumerate(signs):
            matrix[at + place, used] = sign * component[pixels]
            bias[at + place] = -sign * component @ centre
    bias[3::4] = CARRIER
    _set_down(third, matrix, bias)
    _let_through(encoder.norm_out)
    encoder.norm_out.bias[2::4] += STRAIGHT
    # A least-squares fit of the last layer to the components of 8x8 patches, minus what its shortcut adds.
    seen: dict[str, Tensor] = {}
    _zero(encoder.conv_out)
    hook = encoder.norm_out.register_forward_hook(lambda _, __, out: seen.update(features=F.silu(out)))
    shortcut = encoder(images)[:, :latents]
    hook.remove()
    features = seen["features"].movedim(1, -1).flatten(0, 2).double()
    wanted = (F.unfold(images, PATCH, stride=PATCH).transpose(1, 2) - mean) @ analysis
    rest = (wanted.flatten(0, 1) - shortcut.movedim(1, -1).flatten(0, 2)).double()
    centred = features - features.mean(0)
    centred[:, 3::4] = 0  # a carrier is constant
    ridge = 1e-9 * len(features) * torch.eye(features.shape[1], dtype=torch.float64)
    fitted = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (rest - rest.mean(0))).half().double()
    # The constants are too large for fp16, in which the pipeline is saved: the bias holds them rounded, and a carrier's
    # weight adds the remainder.
    constant = (rest - features @ fitted).mean(0)
    fitted[3] = (constant - constant.half()) / features[:, 3].mean()
    encoder.conv_out.weight[:latents, :, 1, 1] = fitted.T.float()
    encoder.conv_out.bias[:latents] = constant.half().float()


def _write_decoder(vae: AutoencoderKLHunyuanImage, synthesis: Tensor, mean: Tensor) -> None:
    decoder, latents = vae.decoder, vae.config.latent_channels
    channels = decoder.conv_in.out_channels
    repeated = torch.zeros(channels, latents)
    repeated[torch.arange(channels), torch.arange(channels) // decoder.repeat] = 1
    _set(decoder.conv_in, _picks(channels, latents, range(latents)) - repeated)
    first, second, third = (block for block in decoder.up_blocks if hasattr(block, "repeats"))
    # From latents to the pixels of the four 4x4 cells, in the order in which the two other doublings distribute them.
    matrices = torch.zeros(4, first.conv.out_channels // 4, first.conv.in_channels)
    biases = torch.zeros(matrices.shape[:2])
    for cell, (y, x) in enumerate(_PHASES):
        pixels = _pixels(PATCH, 4 * y, 4 * x)
        matrices[cell, :48, :latents] = synthesis[pixels]
        biases[cell, :48] = mean[pixels]
    _set_up(first, matrices, biases)
    matrices = torch.zeros(4, second.conv.out_channels // 4, second.conv.in_channels)
    for cell in range(4):
        matrices[cell, :12, 12 * cell : 12 * cell + 12] = torch.eye(12)
    _set_up(second, matrices)
    matrices = torch.zeros(4, third.conv.out_channels // 4, third.conv.in_channels)
    biases = torch.zeros(matrices.shape[:2])
    _zero(decoder.conv_out)
    for colour in range(3):
        for place, sign in enumerate((1, -1)):
            for cell in range(4):
                matrices[cell, 3 * colour + place, 3 * cell + colour] = sign
            decoder.conv_out.weight[colour, 3 * colour + place, 1, 1] = sign
    biases[:, 2::3] = CARRIER
    _set_up(third, matrices, biases)
    _let_through(decoder.norm_out)
    # The last residual block gets the image without the carriers.
    last = decoder.up_blocks[-1]
    last.norm1.load_state_dict(decoder.norm_out.state_dict())
    last.conv1.weight[:, 2::3] = 0


def _pixels(side: int, top: int, left: int) -> list[int]:
    """Indices of a 4x4 cell in a patch ordered (colour, y, x), in the order in which two halvings stack channels."""
    return [
        colour * side**2 + (top + 2 * outer[0] + inner[0]) * side + left + 2 * outer[1] + inner[1]
        for outer in _PHASES
        for inner in _PHASES
        for colour in range(3)
    ]


def _picks(rows: int, columns: int, which: range | list[int]) -> Tensor:
    """The matrix whose first rows select these columns."""
    matrix = torch.zeros(rows, columns)
    matrix[torch.arange(len(which)), torch.tensor(which)] = 1
    return matrix
