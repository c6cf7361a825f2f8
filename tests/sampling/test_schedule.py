"""The noise schedule against diffusers, and the algebra by its identities."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from motionanim.models.schedule import euler_step, karras_sigmas, loss_weight, per_clip, to_denoised, to_noise

SVD = {"sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0}


@pytest.mark.parametrize("steps", [2, 25, 50])
def test_sigmas_equal_diffusers(steps: int) -> None:
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
        timestep_spacing="leading", timestep_type="continuous", steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(karras_sigmas(steps, **SVD), scheduler.sigmas, atol=0, rtol=0)


def test_sigmas_of_one_step_and_where_the_paper_restarts() -> None:
    """method.md, finding 2: gamma 0.8 restarts at sigma 0.157 for T = 25."""
    torch.testing.assert_close(karras_sigmas(1, **SVD), torch.tensor([700.0, 0.0]))
    sigmas = karras_sigmas(25, **SVD)
    assert [round(float(sigmas[m]), 3) for m in (15, 20)] == [3.87, 0.157]


@given(st.floats(0.01, 500), st.integers(0, 100))
def test_noise_denoised_and_v_agree(sigma: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 1, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    s = torch.tensor([sigma], dtype=torch.float64)
    z = clean + per_clip(s, clean) * noise
    torch.testing.assert_close(to_noise(z, clean, s), noise, atol=1e-9, rtol=1e-7)
    # v of the network that denoises perfectly, from EDM's c_skip and c_out.
    v = (clean - z / (sigma**2 + 1)) / (-sigma / (sigma**2 + 1) ** 0.5)
    torch.testing.assert_close(to_denoised(v, z, s), clean, atol=1e-8, rtol=1e-6)
    # A perfect denoiser reaches the clean latents in one Euler step to sigma 0.
    torch.testing.assert_close(euler_step(z, clean, s, torch.zeros_like(s)), clean, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("sigma_data", [1.0, 0.3])
def test_loss_weight_makes_the_loss_one_on_v(sigma_data: float) -> None:
    sigma = torch.tensor([0.05, 1.0, 30.0], dtype=torch.float64)
    z, v = torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    c_out = to_denoised(v, z, sigma, sigma_data=sigma_data)[:, 0]
    torch.testing.assert_close(loss_weight(sigma, sigma_data=sigma_data) * c_out**2, torch.ones_like(sigma))
    # For data of deviation sigma_data the network's target has variance 1 at every noise level (Karras et al. 2022).
    clean, noise = torch.randn(2, 3, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = sigma_data * clean + sigma[:, None] * noise
    target = (sigma_data * clean - to_denoised(torch.zeros_like(noisy), noisy, sigma, sigma_data=sigma_data)) / c_out[
        :, None
    ]
    torch.testing.assert_close(target.var(1), torch.ones_like(sigma), atol=0.02, rtol=0)


@pytest.mark.parametrize("changes", [{"num_steps": 0}, {"sigma_min": 0.0}, {"sigma_max": 0.001}])
def test_bad_ranges_are_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        karras_sigmas(**{"num_steps": 5, **SVD, **changes})
