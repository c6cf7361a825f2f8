"""Methods that the harness evaluates: what they make, and what tells them apart."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import MOTION
from evaluation_runs import SIDE, run, synthetic
from safetensors.torch import load_file, save_file

from motionanim.evaluation.methods import Eulerian, Ours, Reference, Warp
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.models.weights_io import weights_fingerprint
from motionanim.motion.controls import motion_field
from motionanim.motion.drawing import Controls
from motionanim.motion.eulerian import frames as render

INPUT = {"request": "exact", "controls": None, "refiner": None, "use_refiner": True, "mask": True}


def ours(base: Path, **changes) -> Ours:
    sampling = {
        "sampler": "euler", "num_steps": 2, "sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0, "min_guidance": 1.0,
        "max_guidance": 1.0, "noise_aug": 0.02, "dtype": "float32", "decode_dtype": "float32", "channels_last": False,
        "compile": None, "motion_guidance": None,
    }  # fmt: skip
    options = INPUT | {"use_refiner": False, "base": str(base), "motion": MOTION, "control": "motion", "release": {}}
    return Ours(
        label="ours", sampling=sampling, loras=None, context_length=5, long_video=None, **options | changes,
    )  # fmt: skip


def test_the_warp_carries_the_image_inside_the_mask_only() -> None:
    clip = synthetic().clip(0)
    flow, mask = torch.zeros_like(clip.flow), torch.zeros_like(clip.mask)
    flow[:, 0], mask[..., 8:] = 2.0, 1.0  # px per frame to the right
    method = Warp(label="w", **INPUT)
    frames = method(clip._replace(flow=flow, mask=mask), 0).frames
    image = clip.frames[0]
    assert torch.equal(frames[:, :, :, :8], image[:, :, :8].expand(5, -1, -1, -1))
    for t in range(5):
        torch.testing.assert_close(frames[t, :, :, 8:], image[:, :, 8 - 2 * t : SIDE - 2 * t], atol=1e-5, rtol=0)
    still = method(clip._replace(flow=torch.zeros_like(flow)), 0).frames
    torch.testing.assert_close(still, image.expand(5, -1, -1, -1), atol=1e-5, rtol=0)


def test_the_eulerian_baseline_moves_along_the_exact_field(tmp_path: Path) -> None:
    method = Eulerian(label="eulerian", render=partial(render, loop=False, min_density=0.5), **INPUT)
    assert (method.saw_motion, method.saw_mask, method.lossless) == (True, True, True)
    still = run(tmp_path, Reference(label="static", kind="static_copy"), benchmark=synthetic(6)).result["metrics"]
    moved = run(tmp_path, method, benchmark=synthetic(6)).result["metrics"]
    assert moved["psnr"]["mean"] > still["psnr"]["mean"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request": "arrows", "mask": False}, r"refiner=null: .*conditioning=no_refiner"),
        ({"request": "all"}, "method.request='all'"),
        ({"mask": False}, "mask=false: the exact motion"),
    ],
)
def test_an_input_that_makes_no_sense_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Warp(label="w", **INPUT | options)


@pytest.mark.parametrize("mask", [True, False])
def test_a_method_says_whether_it_gets_the_true_mask(mask: bool, base: Path) -> None:
    # With a mask T is not asked, and so not missed.
    options = {"request": "arrows", "use_refiner": mask, "mask": mask}
    assert Warp(label="w", **INPUT | options).saw_mask is mask
    made = ours(base, **options)
    assert (made.saw_mask, made.saw_motion) == (mask, False)


def test_without_a_mask_a_method_gets_arrows_alone_and_t(tmp_path: Path) -> None:
    torch.manual_seed(0)
    refiner = FlowRefiner(width=8, depth=2, side=SIDE, sees_image=True)
    torch.nn.init.normal_(refiner.head.weight, std=0.1)
    refiner.save(tmp_path / "t.safetensors")
    controls = partial(
        motion_field, span=5, field="eulerian", sigma=0.332, threshold=0.05, threshold_on="weight", normalized="exact",
        edge="soft",
    )  # fmt: skip
    clip = next(clip for clip in map(synthetic(8).clip, range(8)) if clip.arrows and not clip.mask.all())

    def asked(mask: bool, use_refiner: bool) -> Warp:
        return Warp(
            label="warp", request="arrows", controls=controls, refiner=str(tmp_path / "t.safetensors"),
            use_refiner=use_refiner, mask=mask,
        )  # fmt: skip

    given, free, refined = asked(True, True), asked(False, False), asked(False, True)
    assert [each.label for each in (given, free, refined)] == ["warp", "warp, no mask", "warp, no mask"]
    assert [each.identity["refiner"] for each in (given, free)] == [None, None]
    assert refined.identity["refiner"] == weights_fingerprint(refiner)
    still = (clip.mask == 0).expand(2, -1, -1)
    assert given.input.field(clip)[0][still].eq(0).all()
    assert free.input.field(clip)[0][still].any()
    drawn = Controls(clip.arrows, (), torch.ones_like(clip.mask))
    expected = controls(drawn, num_frames=5, image=clip.frames[0], refiner=refiner).per_step
    torch.testing.assert_close(refined.input.field(clip), expected)
    assert not torch.equal(refined.input.field(clip), free.input.field(clip))
    assert not torch.equal(refined(clip, 0).frames[1:], given(clip, 0).frames[1:])


@pytest.mark.slow
def test_a_base_that_differs_in_one_inner_layer_is_another_method(base: Path, tmp_path: Path) -> None:
    def identity(folder: Path, control: str = "motion", moving: float = 1.0) -> dict:
        return ours(folder, control=control, release={"moving": moving, "still": 0.0}).identity

    shutil.copytree(base, tmp_path / "other")
    weights = next((tmp_path / "other" / "unet").glob("*.safetensors"))
    state = load_file(weights)
    name = next(name for name in state if "temporal_transformer_blocks" in name and name.endswith("to_v.weight"))
    save_file(state | {name: state[name] + 0.1}, weights, metadata={"format": "pt"})
    assert identity(base) == identity(base)
    assert identity(tmp_path / "other") != identity(base)
    assert identity(base, moving=2.0) == identity(base), "the release acts with control=warp only"
    assert len({str(identity(base, "warp", moving)) for moving in (1.0, 2.0)} | {str(identity(base))}) == 3
