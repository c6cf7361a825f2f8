"""The diffusion module and the LoRA on the tiny random base; the callbacks of all experiments."""

import functools
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
import pytest
import torch
from configs import _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from conftest import MOTION, make_batch
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from matplotlib.axes import Axes
from training_runs import NUMBERS, VALIDATED, Losses, RandomClips, fit, lora_module, make_trainer, saves, stream

from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import load_lora, lora_layers
from motionanim.training.callbacks import Ema, Export, LossCurve, draw_curves
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.motion_lora import MotionLoraModule
from motionanim.training.optim import trapezoid
from motionanim.training.runs.folder import set_records_aside
from motionanim.types import ClipBatch, LatentBatch


def test_bfloat16_with_clipped_gradients_trains_by_the_clipped_gradients(base: Path, tmp_path: Path) -> None:
    class Clipped(Losses):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            self.moments = [state["exp_avg"] for state in trainer.optimizers[0].state.values()]

    seen = Clipped()
    fit(lora_module(base), tmp_path, 1, seen, precision="bf16-mixed", gradient_clip_val=1e-3)
    raw, moment = (
        torch.cat([v.flatten() for v in values]).norm() for values in (seen.gradients.values(), seen.moments)
    )
    assert raw > 1e-3
    assert moment.item() == pytest.approx(0.1 * 1e-3, rel=1e-3), "Adam's first moment is a tenth of the gradient"


@pytest.mark.slow
def test_only_the_lora_moves_and_its_export_loads(base: Path, tmp_path: Path) -> None:
    module = lora_module(base)
    before = {n: p.clone() for n, p in module.named_parameters()}
    fit(module, tmp_path, 2, Export(folder=str(tmp_path)))
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(".lora_" in name for name in moved)
    fresh = Denoiser.from_pretrained(base, downscale=2, motion=MOTION)
    load_lora(fresh.unet, tmp_path / "lora.safetensors")
    assert len(lora_layers(fresh.unet)) == len(lora_layers(module.denoiser.unet)) > 0


@pytest.mark.slow
def test_diffusion_overfits_one_clip_and_exports_a_base(base: Path, tmp_path: Path) -> None:
    class OneClip(RandomClips):
        def __getitem__(self, position: int) -> ClipBatch:
            return ClipBatch(*(field[position % 2] for field in batch))._replace(position=torch.tensor(position))

    @torch.no_grad()
    def loss() -> torch.Tensor:
        places = (torch.tensor([i, i + 1]) for i in range(8))
        return torch.stack([module.losses(batch._replace(position=place))[0].mean() for place in places]).mean()

    torch.manual_seed(0)
    module = DiffusionModule(base=str(base), trainable="all", **{**NUMBERS, "lr": 3e-3})
    batch = make_batch()
    start = loss()
    fit(module, tmp_path, 15, Export(folder=str(tmp_path)), data=stream(train=OneClip()))
    assert loss() < 0.7 * start
    again = Denoiser.from_pretrained(tmp_path / "pipeline", downscale=2, motion=MOTION)
    torch.testing.assert_close(again.unet.conv_in.weight, module.denoiser.unet.conv_in.weight.half().float())


def test_draws_belong_to_a_clip_not_to_its_batch(base: Path) -> None:
    module = lora_module(base)
    both = module.draw(make_batch(batch=2, position=10), (5, 4, 8, 8))
    second = module.draw(make_batch(batch=1, position=11), (5, 4, 8, 8))
    for name, values in both.items():
        torch.testing.assert_close(values[1:], second[name], atol=0, rtol=0)
    assert not torch.equal(both["noise"][0], both["noise"][1])


@pytest.mark.slow
def test_conditions_are_dropped_at_their_shares_image_parts_together(base: Path) -> None:
    module = lora_module(base)
    batch = make_batch(batch=20)._replace(position=torch.arange(20))
    condition = module.condition(batch, module.draw(batch, (5, 4, 8, 8)))
    still = module.codec.encode(batch.image[:, None]).expand(-1, 5, -1, -1, -1)
    carried = module.codec.warp_image(batch.image, batch.flow)
    field = condition.use_flow.view(-1, 1, 1, 1, 1) > 0
    torch.testing.assert_close(condition.warped_latents, torch.where(field, carried, still), atol=1e-5, rtol=1e-4)
    assert 0 < field.sum() < 20
    many, clip = torch.arange(400), make_batch(batch=1)
    latents, embed = torch.zeros(400, 5, 4, 8, 8), torch.zeros(400, 1, 16)  # known, so that no network is asked
    rest = (field.expand(400, *field.shape[1:]) for field in (clip.image, embed[:1], clip.flow, clip.fps))
    known = LatentBatch(latents, latents, *rest, many)
    condition = module.condition(known, module.draw(known, (5, 4, 8, 8)))
    kept = torch.stack([condition.use_image, condition.use_flow, condition.use_strength], 1).mean(0)
    torch.testing.assert_close(kept, torch.tensor([0.9, 0.7, 0.9]), atol=0.06, rtol=0)


@pytest.mark.slow
def test_a_loss_that_is_nan_stops_the_step(base: Path) -> None:
    broken = make_batch()._replace(frames=torch.full((2, 5, 3, 16, 16), float("nan")))
    for module in (lora_module(base), instantiate(composed("experiment=tiny_autoencoder", "model.crop=16").model)):
        with pytest.raises(ValueError, match="the loss is nan at step 0: lower model.lr"):
            module.training_step(broken)


@pytest.mark.slow
def test_validation_is_the_same_twice_and_covers_all_noise_levels(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 1, limit_val_batches=None)
    results = [trainer.validate(lora_module(base), stream(), verbose=False)[0] for _ in range(2)]
    assert results[0] == results[1]
    seen = [name for name in results[0] if "_at_sigma_" in name or "_without_field" in name]
    module = lora_module(base)
    batches = [make_batch(batch=1, seed=position, position=position) for position in range(4)]
    free = sum(float(module.draw(batch, (1,))["keep"][0, 1]) < 0.3 for batch in batches)
    assert len(seen) == 4 - free + min(free, 1), "4 validation clips, a noise level each of those with their field"
    assert 0 < free < 4


@pytest.mark.slow
def test_clips_without_their_field_train_at_noise_levels_of_their_own(base: Path) -> None:
    module = MotionLoraModule(rank=4, alpha=4, base=str(base), **{**NUMBERS, "sigma_mean": -1.4})
    levels = module.noise_level(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([True, False, False]))
    torch.testing.assert_close(levels.log(), torch.tensor([-1.4, 0.7, 2.3]))
    batch, quantiles = make_batch(), torch.zeros(2)
    seen = []
    module.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[1], inputs[2].use_flow)))
    with torch.no_grad():
        for position in range(0, 20, 2):
            module.losses(batch._replace(position=torch.tensor([position, position + 1])), quantiles)
    sigma, use_flow = (torch.cat(part) for part in zip(*seen, strict=True))
    torch.testing.assert_close(sigma.log(), torch.where(use_flow > 0, -1.4, 0.7))
    assert 0 < use_flow.sum() < len(use_flow)


@pytest.mark.slow
def test_ema_is_the_average_that_export_sees_and_the_checkpoint_keeps_both(base, tmp_path, monkeypatch):
    monkeypatch.setattr(Ema, "START", 3)

    def weight() -> torch.Tensor:
        return dict(module.named_parameters())[name].detach().clone()

    class Track(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            self.last = weight()
            early = trainer.global_step <= 3
            self.average = self.last if early else 0.9 * self.average + 0.1 * self.last

        def on_validation_epoch_end(self, trainer, pl_module) -> None:
            validated.append((weight(), self.average))

    track, module, exported, validated = Track(), lora_module(base), [], []
    name = next(n for n, p in module.named_parameters() if p.requires_grad)
    module.export = lambda folder: exported.append(weight())
    callbacks = [track, Export(folder=str(tmp_path)), Ema(decay=0.9), saves(tmp_path, 1000)]
    fit(module, tmp_path, 6, *callbacks, data=stream(batch_size=1), val_check_interval=5, **VALIDATED)
    torch.testing.assert_close(*zip(*validated))
    assert len(validated) == 1
    torch.testing.assert_close(exported, [track.average])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"][name], track.last)
    torch.testing.assert_close(saved["callbacks"]["Ema"][name], track.average)
    assert not torch.equal(track.last, track.average)
    with pytest.raises(ValueError, match="decay=1.5"):
        Ema(decay=1.5)


@pytest.mark.slow
def test_the_plot_has_a_panel_a_quantity_and_a_line_a_column(tmp_path: Path) -> None:
    def width(*columns: str, rows: int = 3) -> int:
        lines = [",".join(["step", *columns, "lr"]), *(f"{i}{',0.5' * len(columns)}," for i in range(rows))]
        (tmp_path / "metrics.csv").write_text("\n".join(lines))
        draw_curves([tmp_path / "metrics.csv"], tmp_path / "curves.png")
        return plt.imread(tmp_path / "curves.png").shape[1]

    one, two = width("val/camera_with_lora", "val/camera_without_lora"), width("val/camera", "val/loss")
    assert one == width("val/loss", "val/loss_without_field", "train/loss", rows=80)  # with a running median
    assert two == 2 * one


@pytest.mark.slow
def test_a_resumed_run_keeps_and_draws_what_it_logged_before(base, tmp_path, monkeypatch):
    drawn: list[tuple[str, list[int]]] = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axis, x, *a, **k: drawn.append((k["label"], x)) or plot(axis, x, *a, **k))
    for steps, resume in ((3, None), (5, tmp_path / "last.ckpt")):
        set_records_aside(tmp_path)
        logger = CSVLogger(tmp_path, name=None, version="")
        callbacks = [LossCurve(folder=str(tmp_path)), saves(tmp_path, 3)]
        fit(lora_module(base), tmp_path, steps, *callbacks, resume=resume, logger=logger, log_every_n_steps=1)
    assert {path.name for path in tmp_path.glob("metrics*")} == {"metrics.0.csv", "metrics.csv"}
    assert [list(steps) for name, steps in drawn if name == "train/loss"] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_trapezoid() -> None:
    rate = functools.partial(trapezoid, warmup=4, decay=5, total=20)
    assert [rate(0), rate(3), rate(10), rate(15), rate(19), rate(25)] == [0.25, 1.0, 1.0, 1.0, 0.2, 0.0]
    assert trapezoid(7, warmup=0, decay=0, total=-1) == 1.0
