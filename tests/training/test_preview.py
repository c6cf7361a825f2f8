"""Samples while training: from equal noise, with equal layout; the camera report with a LoRA that does something."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import make_batch
from training_runs import SAMPLING, VALIDATED, At, lora_module, make_trainer, stream

from motionanim.media.visualize import sheet
from motionanim.training.preview import CameraReport, Preview, sample, side_by_side


class ShiftFlow:
    """A stand-in estimator with a known answer: the mean brightness change as a shift to the right."""

    name = "shift"

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        change = (frames[1:] - frames[:-1]).mean((1, 2, 3))
        flow = torch.zeros(len(frames) - 1, 2, *frames.shape[2:])
        flow[:, 0] = change[:, None, None]
        return flow


def reports(folder: Path, **options) -> tuple[Preview, CameraReport]:
    options |= {"sampling": SAMPLING, "seed": 0}
    camera = CameraReport(folder=str(folder), flow_estimator=ShiftFlow(), **options)
    return Preview(folder=str(folder / "samples"), **options), camera


def test_sheet_and_side_by_side_place_every_frame() -> None:
    row = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 4)
    picture = sheet([row, row + 10], columns=3)
    assert picture.shape == (3, 4, 12)
    assert picture[0, 0, ::4].tolist() == [0, 2, 4]
    assert picture[0, 2, ::4].tolist() == [10, 12, 14]
    video = side_by_side([row[None].expand(2, -1, -1, -1, -1), row[None].expand(2, -1, -1, -1, -1) + 1])
    assert video.shape == (5, 3, 4, 8)
    assert video[3, 0, 0].tolist() == [3] * 4 + [4] * 4


@pytest.mark.slow
def test_samples_are_a_function_of_their_arguments(base: Path) -> None:
    module = lora_module(base).eval()
    options = {"sampling": SAMPLING, "has_flow": True, "guidance": True, "progress": None}
    first = sample(module, make_batch(), seed=1, **options)
    assert first.shape == (2, 5, 3, 16, 16)
    assert first.abs().max() <= 1
    torch.testing.assert_close(sample(module, make_batch(), seed=1, **options), first, atol=0, rtol=0)
    assert not torch.equal(sample(module, make_batch(), seed=2, **options), first)


@pytest.mark.slow
def test_left_alone_nothing_of_the_motion_is_told(base: Path) -> None:
    module, batch = lora_module(base).eval(), make_batch()
    options = {"sampling": SAMPLING, "guidance": False, "progress": None, "seed": 1}
    for module_part in module.denoiser.motion.parameters():  # zero at the start: without this nothing would be told
        torch.nn.init.normal_(module_part, std=0.1)
    other = batch._replace(flow=batch.flow * 3 + 1)
    alone = sample(module, batch, has_flow=False, **options)
    assert torch.equal(alone, sample(module, other, has_flow=False, **options))
    assert not torch.equal(alone, sample(module, batch, has_flow=True, **options))


@pytest.mark.slow
def test_callbacks_leave_their_files_and_compare_from_the_same_noise(base: Path, tmp_path: Path) -> None:
    module = lora_module(base)

    def nudge(module: L.LightningModule) -> None:
        """Make the LoRA do something large, so that with and without must differ."""
        for name, parameter in module.named_parameters():
            if ".lora_B" in name:
                parameter.data.fill_(0.5)

    callbacks = At(0, nudge), *reports(tmp_path, clips=2)
    make_trainer(tmp_path, 1, *callbacks, val_check_interval=1, **VALIDATED).fit(module, stream())
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step_0000001.mp4", "step_0000001.png"]
    report = json.loads((tmp_path / "camera.json").read_text())
    assert report["flow_estimator"] == "shift"
    assert len(report["clips_before"]) == len(report["clips_after"]) == 2
    assert report["before"] != report["after"]
    assert report["before"] == sum(report["clips_before"]) / 2
    for name in ("before.mp4", "after.mp4", "before_after.mp4", "before_after.png"):
        assert (tmp_path / name).stat().st_size > 500


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_samples_are_made_in_the_trainers_precision(base: Path, tmp_path: Path, precision: str, dtype) -> None:
    module, seen = lora_module(base), set()
    module.denoiser.unet.conv_out.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    module.log = lambda *_, **__: None
    trainer = make_trainer(tmp_path, 1, precision=precision)
    trainer.strategy.connect(module)
    module.trainer, trainer.datamodule = trainer, stream()
    preview, camera = reports(tmp_path, clips=1)
    for callback in (preview, camera):
        seen.clear()
        with torch.no_grad():
            callback.on_validation_epoch_end(trainer, module.eval())
        assert seen == {dtype}
    assert torch.equal(camera._before, camera._after), "from the same noise a new LoRA changes nothing"
