"""The training modules on the tiny random base: resuming, processes, checkpoints, and their errors."""

import copy
import functools
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
import pytest
import torch
from conftest import MOTION, make_batch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matplotlib.axes import Axes
from torch.utils.data import default_collate
from training_runs import NUMBERS, Losses, RandomClips, lora_module, make_trainer, stream

from motionanim.data.stream import StreamData
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import load_lora, lora_layers
from motionanim.training.callbacks import Ema, Export, LossCurve, draw_curves, earlier_metrics, set_metrics_aside
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.motion_lora import MotionLoraModule
from motionanim.training.optim import trapezoid
from motionanim.training.runs.checkpoints import Checkpoint
from motionanim.types import ClipBatch


def test_resumed_run_repeats_the_uninterrupted_losses_bit_for_bit(base: Path, tmp_path: Path) -> None:
    whole = Losses()
    make_trainer(tmp_path, 6, whole, accumulate_grad_batches=2).fit(lora_module(base), stream())
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2, save_top_k=0)
    first = Losses()
    make_trainer(tmp_path, 2, first, checkpoint, accumulate_grad_batches=2).fit(lora_module(base), stream())
    parts = [first.losses]
    for steps in (4, 6):  # resumed twice
        more = Losses()
        make_trainer(tmp_path, steps, more, checkpoint, accumulate_grad_batches=2).fit(
            lora_module(base), stream(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True
        )
        parts.append(more.losses)
    assert len(whole.losses) == 12
    assert [loss for part in parts for loss in part] == whole.losses


def test_checkpoint_holds_only_what_trains(base: Path, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    make_trainer(tmp_path, 1, checkpoint).fit(lora_module(base), stream())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["state_dict"]
    assert all(".lora_" in name for name in saved["state_dict"])


def test_checkpoint_of_another_rank_is_refused_in_words(base: Path, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    make_trainer(tmp_path, 1, checkpoint).fit(lora_module(base, rank=4), stream())
    with pytest.raises(ValueError, match=r"does not fit this model: .* has shape \(4, 32\), needed \(8, 32\)"):
        make_trainer(tmp_path, 2).fit(
            lora_module(base, rank=8), stream(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True
        )


def test_bfloat16_with_clipped_gradients_trains_by_the_clipped_gradients(base: Path, tmp_path: Path) -> None:
    losses, norms = Losses(), []

    class Clipped(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            moments = [state["exp_avg"] for state in trainer.optimizers[0].state.values()]
            norms.append(torch.stack([moment.norm() for moment in moments]).norm().item())

    make_trainer(tmp_path, 1, losses, Clipped(), precision="bf16-mixed", gradient_clip_val=1e-3).fit(
        lora_module(base), stream()
    )
    raw = torch.stack([gradient.norm() for gradient in losses.gradients.values()]).norm().item()
    assert raw > 1e-3
    assert norms == [pytest.approx(0.1 * 1e-3, rel=1e-3)], "Adam's first moment is a tenth of what it was given"


def test_only_the_lora_moves_and_its_export_loads(base: Path, tmp_path: Path) -> None:
    module = lora_module(base)
    before = {n: p.clone() for n, p in module.named_parameters()}
    make_trainer(tmp_path, 2, Export(folder=str(tmp_path))).fit(module, stream())
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(".lora_" in name for name in moved)
    torch.manual_seed(0)
    fresh = Denoiser.from_pretrained(base, downscale=2, motion=MOTION)
    load_lora(fresh.unet, tmp_path / "lora.safetensors")
    assert len(lora_layers(fresh.unet)) == len(lora_layers(module.denoiser.unet)) > 0


def test_diffusion_overfits_one_clip_and_exports_a_base(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = DiffusionModule(base=str(base), trainable="all", **{**NUMBERS, "lr": 3e-3})
    batch = make_batch()
    with torch.no_grad():
        start = torch.stack(
            [module.losses(batch._replace(position=torch.tensor([i, i + 1])))[0].mean() for i in range(8)]
        )
    one_clip = copy.copy(batch)

    class OneClip(RandomClips):
        def __getitem__(self, position: int) -> ClipBatch:
            clip = ClipBatch(*(field[position % 2] for field in one_clip))
            return clip._replace(position=torch.tensor(position))

    data = StreamData(train=OneClip(), val=OneClip(), batch_size=2, num_workers=0)
    make_trainer(tmp_path, 40, Export(folder=str(tmp_path))).fit(module, data)
    with torch.no_grad():
        end = torch.stack(
            [module.losses(batch._replace(position=torch.tensor([i, i + 1])))[0].mean() for i in range(8)]
        )
    assert end.mean() < 0.7 * start.mean()
    again = Denoiser.from_pretrained(tmp_path / "pipeline", downscale=2, motion=MOTION)
    torch.testing.assert_close(again.unet.conv_in.weight, module.denoiser.unet.conv_in.weight.half().float())


def test_draws_belong_to_a_clip_not_to_its_batch(base: Path) -> None:
    module = lora_module(base)
    both = module.draw(make_batch(batch=2, position=10), (5, 4, 8, 8))
    second = module.draw(make_batch(batch=1, position=11), (5, 4, 8, 8))
    for name, values in both.items():
        torch.testing.assert_close(values[1:], second[name], atol=0, rtol=0)
    assert not torch.equal(both["noise"][0], both["noise"][1])


def test_conditions_are_dropped_at_their_shares_image_parts_together(base: Path) -> None:
    module = lora_module(base)
    batch = make_batch(batch=2)
    seen = []
    for position in range(0, 400, 2):
        moved = batch._replace(position=torch.tensor([position, position + 1]))
        condition = module.condition(moved, module.draw(moved, (5, 4, 8, 8)))
        still = module.codec.encode(moved.image[:, None]).expand(-1, 5, -1, -1, -1)
        carried = module.codec.warp_image(moved.image, moved.flow)
        field = condition.use_flow.view(-1, 1, 1, 1, 1) > 0
        torch.testing.assert_close(condition.warped_latents, torch.where(field, carried, still), atol=1e-5, rtol=1e-4)
        seen.append(torch.stack([condition.use_image, condition.use_flow, condition.use_strength], 1))
    kept = torch.cat(seen).mean(0)
    torch.testing.assert_close(kept, torch.tensor([0.9, 0.7, 0.9]), atol=0.06, rtol=0)


def test_nan_loss_stops_before_the_weights_are_touched(base: Path, tmp_path: Path) -> None:
    module = lora_module(base)

    class Broken(RandomClips):
        def __getitem__(self, position: int) -> ClipBatch:
            clip = super().__getitem__(position)
            return clip._replace(frames=clip.frames * float("nan"))

    before = {n: p.clone() for n, p in module.named_parameters()}
    data = StreamData(train=Broken(), val=Broken(), batch_size=2, num_workers=0)
    with pytest.raises(ValueError, match="the loss is nan at step 0: lower model.lr"):
        make_trainer(tmp_path, 2).fit(module, data)
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


def test_validation_is_the_same_twice_and_covers_all_noise_levels(base: Path, tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        trainer = make_trainer(tmp_path, 1, limit_val_batches=None)
        results.append(trainer.validate(lora_module(base), stream(), verbose=False)[0])
    assert results[0] == results[1]
    seen = [name for name in results[0] if "_at_sigma_" in name or "_without_field" in name]
    module = lora_module(base)
    batches = [make_batch(batch=1, seed=position, position=position) for position in range(4)]
    free = sum(float(module.draw(batch, (1,))["keep"][0, 1]) < 0.3 for batch in batches)
    assert len(seen) == 4 - free + min(free, 1), "4 validation clips, a noise level each of those with their field"
    assert 0 < free < 4


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


def test_ema_is_the_average_that_export_sees_and_the_checkpoint_keeps_both(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ema, "START", 3)

    class Track(L.Callback):
        def __init__(self) -> None:
            self.average: torch.Tensor | None = None

        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            name = next(n for n, p in pl_module.named_parameters() if p.requires_grad)
            value = dict(pl_module.named_parameters())[name].detach()
            first = self.average is None or trainer.global_step <= 3
            self.average = value.clone() if first else 0.9 * self.average + 0.1 * value
            self.name = name

            self.last = value.clone()

        def on_validation_epoch_end(self, trainer, pl_module) -> None:
            validated.append((dict(pl_module.named_parameters())[self.name].detach().clone(), self.average))

    track, module, seen, validated = Track(), lora_module(base), [], []
    module.export = lambda folder: seen.append(dict(module.named_parameters())[track.name].detach().clone())
    saves = Checkpoint(tmp_path, save_last=True, every_n_train_steps=1000, save_top_k=0)
    options = {"limit_val_batches": 1, "val_check_interval": 5, "check_val_every_n_epoch": None}
    make_trainer(tmp_path, 6, track, Export(folder=str(tmp_path)), Ema(decay=0.9), saves, **options).fit(
        module, stream(batch_size=1)
    )
    torch.testing.assert_close(*zip(*validated))
    assert len(validated) == 1
    torch.testing.assert_close(seen, [track.average])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"][track.name], track.last)
    torch.testing.assert_close(saved["callbacks"]["Ema"][track.name], track.average)
    assert not torch.equal(track.last, track.average)
    with pytest.raises(ValueError, match="decay=1.5"):
        Ema(decay=1.5)


def test_loss_picture_is_drawn_from_a_metrics_file(tmp_path: Path) -> None:
    rows = ["step,train/loss,val/loss,lr", *(f"{i},{1 / (i + 1)},," for i in range(80)), "79,,0.5,"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    draw_curves([tmp_path / "metrics.csv"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_what_differs_by_a_condition_shares_a_panel(tmp_path: Path) -> None:
    def width(*columns: str) -> int:
        rows = [",".join(["step", *columns]), *(f"{i}{',0.5' * len(columns)}" for i in range(3))]
        (tmp_path / "metrics.csv").write_text("\n".join(rows))
        draw_curves([tmp_path / "metrics.csv"], tmp_path / "curves.png")
        return plt.imread(tmp_path / "curves.png").shape[1]

    one, two = width("val/camera_with_lora", "val/camera_without_lora"), width("val/camera", "val/loss")
    assert one == width("val/loss", "val/loss_without_field", "train/loss")
    assert two == 2 * one


def test_a_resumed_run_keeps_and_draws_what_it_logged_before(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, list[int]]] = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axis, x, *a, **k: drawn.append((k["label"], x)) or plot(axis, x, *a, **k))
    for steps, checkpoint in ((3, None), (5, "last.ckpt")):
        set_metrics_aside(tmp_path)
        trainer = make_trainer(
            tmp_path, steps, LossCurve(folder=str(tmp_path)), logger=CSVLogger(tmp_path, name=None, version=""),
            log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(lora_module(base), stream(), ckpt_path=checkpoint and str(tmp_path / checkpoint), weights_only=True)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert [path.name for path in earlier_metrics(tmp_path)] == ["metrics.0.csv"]
    assert [list(steps) for name, steps in drawn if name == "train/loss"] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_trapezoid() -> None:
    rate = functools.partial(trapezoid, warmup=4, decay=5, total=20)
    assert [rate(0), rate(3), rate(10), rate(15), rate(19), rate(25)] == [0.25, 1.0, 1.0, 1.0, 0.2, 0.0]
    assert trapezoid(7, warmup=0, decay=0, total=-1) == 1.0


def test_stream_deals_each_position_to_exactly_one_process() -> None:
    from motionanim.data.stream import PositionSampler, shuffled_index

    def head(count: int, **options) -> list[int]:
        iterator = iter(PositionSampler(**options))
        return [next(iterator) for _ in range(count)]

    ranks = [head(6, start=0, batch_size=2, rank=r, world_size=2) for r in (0, 1)]
    assert ranks == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert head(4, start=8, batch_size=2, rank=0, world_size=2) == [8, 9, 12, 13]
    assert head(4, start=7, batch_size=2, rank=1, world_size=2) == [9, 10, 13, 14]
    assert sorted(shuffled_index(3, p, 10) for p in range(20, 30)) == list(range(10))
    assert default_collate([RandomClips()[7]]).position.tolist() == [7]
