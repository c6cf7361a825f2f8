"""The patch PCA inside the autoencoder, against one by numpy."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanImage
from torch import Tensor

from motionanim.training.autoencoder import pca_psnr
from motionanim.training.patch_pca import write_patch_pca

LATENTS = 16


def network(**changes) -> AutoencoderKLHunyuanImage:
    torch.manual_seed(0)
    options = {
        "in_channels": 3, "out_channels": 3, "latent_channels": LATENTS, "block_out_channels": (96, 64, 128, 128),
        "layers_per_block": 0, "spatial_compression_ratio": 8, "sample_size": 32, "scaling_factor": 1.0,
    }  # fmt: skip
    return AutoencoderKLHunyuanImage(**options | changes)


def pictures(count: int, seed: int) -> Tensor:
    """Soft random pictures with an overall brightness of their own, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    fine = 0.3 * torch.randn(count, 3, 32, 32, generator=generator)
    level = torch.randn(count, 3, 1, 1, generator=generator)
    return ((torch.nn.functional.interpolate(coarse, 32, mode="bicubic") + fine + level) / 3).clamp(-1, 1)


def patches(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) to rows of 8 x 8 x 3, by reshaping alone."""
    n, c, h, w = images.shape
    cells = images.double().numpy().reshape(n, c, h // 8, 8, w // 8, 8)
    return cells.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 8 * 8 * 3)


@torch.no_grad()
def through(vae: AutoencoderKLHunyuanImage, images: Tensor) -> tuple[Tensor, Tensor]:
    latents = vae.encode(images).latent_dist.mode()
    return latents, vae.decode(latents).sample


@cache
def images() -> Tensor:
    """To which the PCA is fitted."""
    return pictures(32, seed=1)


@cache
def written(whitening: float = 0.5) -> AutoencoderKLHunyuanImage:
    vae = network()
    write_patch_pca(vae, images(), whitening=whitening)
    return vae


@pytest.mark.slow
def test_it_is_the_pca_on_pictures_it_was_not_fitted_to() -> None:
    vae, rows = written(), patches(images())
    _, _, components = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    held_out = pictures(8, seed=2)
    centred = patches(held_out) - rows.mean(0)
    best = centred @ components[:LATENTS].T @ components[:LATENTS] + rows.mean(0)
    latents, output = through(vae, held_out)
    assert latents.shape == (8, LATENTS, 4, 4)
    np.testing.assert_allclose(patches(output), best, atol=0.15)
    error, least = (np.square(found - patches(held_out)).mean() for found in (patches(output), best))
    assert 10 * np.log10(error / least) < 0.05, "dB"
    fitted = (10 * torch.log10(4 / (through(vae, images())[1] - images()).square().mean((1, 2, 3)))).mean()
    assert fitted.item() == pytest.approx(pca_psnr(images(), side=8, coefficients=LATENTS).item(), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_sets_the_deviations_and_the_mean_square_is_1(whitening: float) -> None:
    energies = np.linalg.eigvalsh(np.cov(patches(images()).T))[::-1][:LATENTS]
    wanted = energies ** ((1 - whitening) / 2)
    wanted = wanted / np.sqrt(np.square(wanted).mean())
    deviations = through(written(whitening), images())[0].std((0, 2, 3))
    np.testing.assert_allclose(deviations.numpy(), wanted, rtol=0.05)
    assert deviations.square().mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_it_survives_fp16() -> None:
    rounded = copy.deepcopy(written()).half().float()
    errors = [(through(vae, images())[1] - images()).square().mean() for vae in (written(), rounded)]
    assert 10 * torch.log10(errors[1] / errors[0]) < 0.2, "dB"


def test_every_weight_of_a_residual_block_gets_a_gradient_after_a_step() -> None:
    vae = copy.deepcopy(written())
    blocks = [block for block in vae.decoder.up_blocks if not hasattr(block, "repeats")]
    optimizer = torch.optim.SGD([p for block in blocks for p in block.parameters()], lr=1e-3)
    few = pictures(4, seed=2)
    for _ in range(2):
        optimizer.zero_grad()
        (vae.decode(vae.encode(few).latent_dist.mode()).sample - few).square().mean().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for block in blocks for p in block.parameters())


@pytest.mark.parametrize(
    "changes",
    [{"layers_per_block": 1}, {"block_out_channels": (64, 64, 128, 128)}, {"block_out_channels": (96, 128, 128)}],
)
def test_another_layout_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="the patch PCA needs 4 levels, 96 channels on the first"):
        write_patch_pca(network(**changes), images(), whitening=0.5)
