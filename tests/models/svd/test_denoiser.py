"""The denoiser against diffusers' own pipeline, and its parameter counts at the size of Stable Video Diffusion."""

import json
from pathlib import Path

import pytest
import torch
from conftest import MOTION, UNET, VAE, make_condition
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from on_device import awake, trained_denoiser
from safetensors.torch import load_file

from motionanim.models.schedule import per_clip
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.faster_layers import speed_up_unet
from motionanim.models.svd.tiny import save_pipeline


def plain_v(base: Path, z: torch.Tensor, sigma: torch.Tensor, condition, ids: torch.Tensor) -> torch.Tensor:
    """The v-prediction of a plain diffusers UNet, called as diffusers' SVD pipeline calls it."""
    unet = UNetSpatioTemporalConditionModel.from_pretrained(base, subfolder="unet")
    image = condition.image_latents[:, None].repeat(1, z.shape[1], 1, 1, 1) / VAE["scaling_factor"]
    scaled = z / per_clip((sigma**2 + 1) ** 0.5, z)
    timestep = 0.25 * torch.log(sigma)
    return unet(torch.cat([scaled, image], 2), timestep, condition.image_embed, ids, return_dict=False)[0]


def test_untrained_motion_leaves_svd_exactly_as_it_is(base: Path, denoiser: Denoiser) -> None:
    condition, sigma = make_condition(), torch.tensor([0.5, 20.0])
    z = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = denoiser(z, sigma, condition)
        v = plain_v(base, z, sigma, condition, denoiser.context(condition).time_ids)
    s = per_clip(sigma, z)
    # Equal up to the order of one multiplication in the attention kernel, which sees values twice as wide.
    torch.testing.assert_close(ours, v * (-s / (s**2 + 1) ** 0.5) + z / (s**2 + 1), atol=2e-6, rtol=1e-5)


def test_cheaper_layers_are_the_plain_ones(base: Path) -> None:
    plain, cheap = (UNetSpatioTemporalConditionModel.from_pretrained(base, subfolder="unet") for _ in range(2))
    speed_up_unet(cheap)
    assert [*plain.state_dict()] == [*cheap.state_dict()]
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(2, 5, plain.config.in_channels, 8, 8, generator=generator)
    for tokens in (1, 3):
        embed = torch.randn(2, tokens, plain.config.cross_attention_dim, generator=generator)
        with torch.no_grad():
            outs = [unet(inputs, 0.3, embed, torch.ones(2, 3), return_dict=False)[0] for unet in (plain, cheap)]
        torch.testing.assert_close(*outs, atol=2e-6, rtol=1e-5)
    # Every weight keeps its gradient, though the query of one token's is zero.
    cheap(inputs, 0.3, embed[:, :1], torch.ones(2, 3), return_dict=False)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in cheap.parameters())


@pytest.fixture
def residual_denoiser(base: Path) -> Denoiser:
    return Denoiser.from_pretrained(base, downscale=2, motion={**MOTION, "residual_std": 0.3})


def test_an_untrained_residual_denoiser_is_the_best_linear_mix(residual_denoiser: Denoiser) -> None:
    with torch.no_grad():
        residual_denoiser.unet.conv_out.weight.zero_()
        residual_denoiser.unet.conv_out.bias.zero_()
    z, sigma = torch.randn(2, 5, 4, 8, 8), torch.tensor([0.1, 3.0])
    # The same motion everywhere: frame k is carried 4 k px of 16, and half of the variance is reached after 2 px.
    flow = torch.zeros(2, 4, 2, 16, 16)
    flow[:, :, 0] = 4.0
    condition = make_condition(use_flow=torch.tensor([1.0, 0.0]), flow=flow)
    with torch.no_grad():
        out = residual_denoiser(z, sigma, condition)
    carried = torch.tensor([0.05**2 + 0.3**2 * k / (k + 0.5) for k in range(5)])
    unknown = torch.tensor([0.05**2, *[0.05**2 + 0.3**2] * 4])
    still = condition.warped_latents[1, :1].expand(5, -1, -1, -1)
    for row, (expected, variance) in enumerate(((condition.warped_latents[0], carried), (still, unknown))):
        # The mean of a normal prior of that variance around the prediction, given z = clean + sigma noise.
        prior, seen = 1 / variance.view(5, 1, 1, 1), 1 / sigma[row] ** 2
        torch.testing.assert_close(out[row], (prior * expected + seen * z[row]) / (prior + seen))


def test_only_what_moves_and_its_neighbours_are_uncertain(residual_denoiser: Denoiser, denoiser: Denoiser) -> None:
    flow = torch.zeros(2, 4, 2, 16, 16)
    flow[:, :, 1, 6:8, 6:8] = 0.5  # latent pixel (3, 3); it carries no content further than that in four steps
    condition = make_condition(flow=flow)
    sigma_data = residual_denoiser.motion.sigma_data(condition)
    assert sigma_data.shape == (2, 5, 1, 8, 8)
    uncertain = torch.zeros(8, 8, dtype=torch.bool)
    uncertain[2:5, 2:5] = True
    assert torch.equal(sigma_data[:, 1:, 0] > 0.05001, uncertain.expand(2, 4, 8, 8))
    torch.testing.assert_close(sigma_data[:, 0], torch.full((2, 1, 8, 8), 0.05))
    dropped = condition._replace(use_image=torch.zeros(2))
    assert (residual_denoiser.motion.sigma_data(dropped) == 1).all(), "no image: latents as SVD's"
    assert denoiser.motion.sigma_data(condition) == 1, "as SVD"


def test_missing_warped_frames_are_refused_in_words(denoiser: Denoiser) -> None:
    condition = make_condition()
    condition = condition._replace(warped_latents=condition.warped_latents[:, :1])
    z, sigma = torch.randn(2, 5, 4, 8, 8), torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"has 1 warped frames for a flow of 5: make them with Codec.warp_image"):
        denoiser(z, sigma, condition)


def test_without_the_warped_latent_the_prediction_stands_still(base: Path) -> None:
    denoiser = Denoiser.from_pretrained(base, downscale=2, motion={**MOTION, "warped_latent": False})
    assert not denoiser.uses_warped
    condition = make_condition()
    still = condition.warped_latents[:, :1].expand(-1, 5, -1, -1, -1)
    assert torch.equal(denoiser.motion.prediction(condition), still)


def test_gradient_reaches_the_zero_factors_at_step_0_and_all_factors_after(denoiser: Denoiser) -> None:
    denoiser.select_trainable("literal")
    z, sigma, condition = torch.randn(2, 5, 4, 8, 8), torch.tensor([1.0, 2.0]), make_condition()
    optimizer = torch.optim.SGD([p for p in denoiser.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        denoiser(z, sigma, condition).square().mean().backward()
        flowing = {n for n, p in denoiser.motion.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        zero_factors = {n for n, _ in denoiser.motion.named_parameters() if n.endswith(("to_out.weight",))}
        assert zero_factors | {"strength.weight", "warped.weight"} <= flowing
        optimizer.step()
    everything = {n for n, _ in denoiser.motion.named_parameters()}
    assert flowing == everything, "after one step every motion parameter gets a gradient"


@pytest.mark.parametrize(
    ("off", "field"),
    [
        ("use_flow", "flow"), ("use_flow", "warped_latents"), ("use_strength", "motion_strength"),
        ("use_image", "image_latents"), ("use_image", "image_embed"), ("use_image", "warped_latents"),
    ],
)  # fmt: skip
def test_a_condition_matters_when_on_and_not_at_all_when_dropped(denoiser: Denoiser, off: str, field: str) -> None:
    awake(denoiser.motion)
    z, sigma = torch.randn(2, 5, 4, 8, 8), torch.tensor([1.0, 2.0])
    first, other = make_condition(), make_condition(seed=9)
    swapped = first._replace(**{field: getattr(other, field)})
    if (off, field) == ("use_flow", "warped_latents"):
        swapped.warped_latents[:, 0] = first.warped_latents[:, 0]  # frame 0 belongs to the image
    with torch.no_grad():
        assert not torch.allclose(denoiser(z, sigma, first), denoiser(z, sigma, swapped))
        zero = {off: torch.zeros(2)}
        torch.testing.assert_close(
            denoiser(z, sigma, first._replace(**zero)), denoiser(z, sigma, swapped._replace(**zero)), atol=0, rtol=0
        )


@pytest.mark.parametrize("keys", ["latents", "field"])
def test_eq_4_by_hand(base: Path, keys: str) -> None:
    denoiser = trained_denoiser(base, motion_keys=keys)
    context = denoiser.context(make_condition())
    attention = denoiser.unet.down_blocks[0].attentions[0].temporal_transformer_blocks[0].attn1
    x = torch.randn(2 * 8 * 8, 5, attention.to_q.in_features)
    added, tokens = denoiser.motion.values[0], context.tokens[len(x)]

    def heads(value: torch.Tensor) -> torch.Tensor:
        return value.unflatten(-1, (attention.heads, -1)).double()

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        weights = torch.einsum("pqhd,pkhd->phqk", query, key) / query.shape[-1] ** 0.5
        return torch.einsum("phqk,pkhd->pqhd", weights.softmax(-1), value).flatten(2).float()

    with torch.no_grad():
        query, key, value = (heads(layer(x)) for layer in (attention.to_q, attention.to_k, attention.to_v))
        own = heads(added.to_k(tokens)) if keys == "field" else key
        expected = attention.to_out[0](attend(query, key, value))
        expected = expected + added.to_out(attend(query, own, heads(added.to_v(tokens))))
        with denoiser.motion.using(context):
            torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="motion_keys='image': must be 'latents' or 'field'"):
        Denoiser.from_pretrained(base, downscale=2, motion={**MOTION, "motion_keys": "image"})


def test_clips_of_a_batch_do_not_mix(denoiser: Denoiser) -> None:
    awake(denoiser.motion)
    z, sigma, condition = torch.randn(2, 5, 4, 8, 8), torch.tensor([1.0, 2.0]), make_condition()
    with torch.no_grad():
        both = denoiser(z, sigma, condition)
        alone = [
            denoiser(z[i : i + 1], sigma[i : i + 1], type(condition)(*(x[i : i + 1] for x in condition)))
            for i in (0, 1)
        ]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_steady_field_gives_motion_features_that_differ_per_frame(denoiser: Denoiser) -> None:
    steady = torch.ones(1, 4, 2, 16, 16)
    tokens = denoiser.context(make_condition(batch=1, flow=steady)).tokens[64].view(8, 8, 5, -1)
    assert (tokens[4, 4, 1:] - tokens[4, 4, :-1]).abs().amax(-1).min() > 1e-3


@pytest.mark.long
@pytest.mark.slow
def test_checkpointing_and_compiling_give_the_same_gradients() -> None:
    def gradients(config: dict, width: int, traced: bool = False) -> torch.Tensor:
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(**config)
        denoiser = Denoiser(unet, downscale=2, scaling=1.0, motion=MOTION).train()
        awake(denoiser.motion)
        if width:
            denoiser.checkpoint_blocks(width)
        if traced:
            denoiser.unet.compile(backend="aot_eager", fullgraph=True)
        z = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        denoiser(z, torch.tensor([1.0, 2.0]), make_condition()).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in denoiser.motion.parameters()])

    one_level = {  # tracing takes most of a minute for two
        "block_out_channels": [32], "num_attention_heads": [2],
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal"], "up_block_types": ["UpBlockSpatioTemporal"],
    }  # fmt: skip
    for config, ways in ((UNET, [(32,), (64,)]), (UNET | one_level, [(32, True)])):
        whole = gradients(config, 0)
        assert whole.any()
        for way in ways:
            torch.testing.assert_close(gradients(config, *way), whole, atol=1e-7, rtol=1e-5)


def test_a_width_that_no_block_has_is_refused(denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match=r"checkpoint_width=1: the blocks have \[32, 64\] channels; 0 for none"):
        denoiser.checkpoint_blocks(1)


@pytest.mark.slow
def test_folder_round_trip_with_motion_beside_and_diffusers_still_loads_it(
    base: Path, denoiser: Denoiser, tmp_path: Path
) -> None:
    awake(denoiser.motion)
    with torch.no_grad():
        denoiser.unet.conv_in.weight.add_(0.1)
    save_pipeline(tmp_path / "p", base=base, unet=denoiser.unet)
    denoiser.save_motion(tmp_path / "p")
    assert denoiser.unet.dtype == torch.float32, "saving in fp16 must not touch the model"
    modes = {path.stat().st_mode for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert len(modes) == 1, "safetensors files have the mode of the umask too"
    again = Denoiser.from_pretrained(tmp_path / "p", downscale=2, motion=MOTION)
    for (name, a), (_, b) in zip(denoiser.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a.half().float(), b, msg=name)
    keys = set(load_file(tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors"))
    assert keys == set(load_file(base / "unet" / "diffusion_pytorch_model.safetensors")), "a plain SVD UNet on disk"
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "p")
    image = torch.rand(1, 3, 224, 224)
    video = pipeline(image, height=16, width=16, num_frames=5, num_inference_steps=2, output_type="pt").frames
    assert video.shape == (1, 5, 3, 16, 16)
    assert torch.isfinite(video).all()


@pytest.mark.slow
def test_motion_weights_of_an_earlier_version_are_refused(base: Path, denoiser: Denoiser, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "p", base=base)
    denoiser.save_motion(tmp_path / "p")
    config = tmp_path / "p" / "motion" / "config.json"
    config.write_text(json.dumps({key: value for key, value in MOTION.items() if key != "motion_keys"}))
    with pytest.raises(ValueError, match="of an earlier version.*train the base again"):
        Denoiser.from_pretrained(tmp_path / "p", downscale=2, motion=MOTION)


def test_parameter_counts_at_svd_size() -> None:
    """1 524.6 M parameters; 1 275.8 M train under the paper's literal reading, 656.1 M are temporal."""
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(num_frames=25)
        denoiser = Denoiser(unet, downscale=8, scaling=1.0, motion={**MOTION, "channels": 64})

    def millions() -> float:
        return round(sum(p.numel() for p in unet.parameters() if p.requires_grad) / 1e6, 1)

    counts = {}
    for preset in ("all", "literal", "temporal"):
        denoiser.select_trainable(preset)
        counts[preset] = millions()
    assert counts == {"all": 1524.6, "literal": 1275.8, "temporal": 656.1}
    with pytest.raises(ValueError, match="trainable=spatial: must be all, literal or temporal"):
        denoiser.select_trainable("spatial")
