"""Sample videos during training, and the report on how much camera motion the static-camera LoRA removes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from motionanim.cli.progress import Progress
from motionanim.data.video import write_video
from motionanim.files import atomic_path
from motionanim.media.visualize import flow_to_rgb, sheet, write_picture
from motionanim.models.svd.lora import enable_lora
from motionanim.motion.camera import camera_residual
from motionanim.motion.flow import motion_strength
from motionanim.sampling.animator import Animator
from motionanim.sampling.chained import direct
from motionanim.training.callbacks import wandb_loggers
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.flow_refiner import FlowRefinerModule
from motionanim.types import ClipBatch, FlowPairBatch

FPS = 7.0  # of the preview files; the model gets the batch's own rate


@torch.no_grad()
def sample(
    module: DiffusionModule,
    batch: ClipBatch,
    *,
    sampling: Mapping[str, float],
    seed: int,
    has_flow: bool,
    guidance: bool,
    progress: Progress | None,
) -> Tensor:
    """Videos (B, T, 3, H, W) from the first frames and the motion of `batch`, the same for the same arguments.

    Args:
        sampling: The sampling config group.
        has_flow: False drops the motion field and the strength.
        guidance: False runs without classifier-free guidance, in half the time.
    """
    frames = batch.frames.shape[1]
    flow = batch.flow.to(module.device)
    sampling = dict(sampling) if guidance else {**sampling, "min_guidance": 1.0, "max_guidance": 1.0}
    animator = Animator(module.codec, module.denoiser, sampling=sampling, context_length=frames)
    return animator(
        batch.image,
        flow,
        num_frames=frames,
        fps=batch.fps.to(module.device),
        strength=motion_strength(flow) if has_flow else None,
        use_flow=has_flow,
        mask=torch.ones_like(batch.image[:, :1]),
        long_video=direct,
        seed=seed,
        progress=progress,
    )[0]


def side_by_side(videos: list[Tensor]) -> Tensor:
    """Batches (B, T, 3, H, W) as one video (T, 3, B * H, len(videos) * W): one row per clip, one column per batch."""
    return torch.cat([torch.cat(list(video), dim=-2) for video in videos], dim=-1)


class Preview(L.Callback):
    """At every validation sample the first validation clips; write true clip, motion field and sample as mp4 and png.

    Args:
        folder: Folder of the files.
        clips: Number of clips.
        sampling: The sampling config group.
        seed: Seed of the noise, the same at every validation.
    """

    def __init__(self, *, folder: str, clips: int, sampling: Mapping[str, float], seed: int) -> None:
        self.folder, self.clips, self.sampling, self.seed = Path(folder), clips, sampling, seed

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        if trainer.sanity_checking:
            return
        batch = trainer.datamodule.first_val(self.clips)
        # All processes sample: sharded weights need all of them, and waiting for one would take as long.
        with Progress(shown=trainer.is_global_zero) as progress, trainer.precision_plugin.forward_context():
            videos = sample(
                pl_module, batch, sampling=self.sampling, seed=self.seed, has_flow=True, guidance=True,
                progress=progress,
            ).float().cpu()  # fmt: skip
        if not trainer.is_global_zero:
            return
        flow = flow_to_rgb(torch.cat([batch.flow, batch.flow[:, -1:]], dim=1))
        stem = self.folder / f"step_{trainer.global_step:07d}"
        write_video(stem.with_suffix(".mp4"), side_by_side([batch.frames, flow, videos]), FPS)
        rows = [row for clip in range(len(videos)) for row in (batch.frames[clip], flow[clip], videos[clip])]
        write_picture(stem.with_suffix(".png"), sheet(rows))
        for logger in wandb_loggers(trainer):
            logger.log_video("samples", [str(stem.with_suffix(".mp4"))], step=trainer.global_step, format=["mp4"])
            logger.log_image("flow_and_samples", [str(stem.with_suffix(".png"))], step=trainer.global_step)


class FlowPictures(L.Callback):
    """At every validation of the flow refiner draw one row per pair: image, hint, refined flow, true flow.

    Args:
        folder: Folder of the pictures.
        pairs: Number of pairs.
    """

    def __init__(self, *, folder: str, pairs: int) -> None:
        self.folder, self.pairs = Path(folder), pairs

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: FlowRefinerModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        batch = trainer.datamodule.first_val(self.pairs)
        batch = FlowPairBatch(*(field.to(pl_module.device) for field in batch))
        columns = list(pl_module.example_pictures(batch).values())
        picture = torch.cat([torch.cat(list(row), dim=-1) for row in zip(*columns, strict=True)], dim=-2)
        path = self.folder / f"step_{trainer.global_step:07d}.png"
        write_picture(path, picture)
        for logger in wandb_loggers(trainer):
            logger.log_image("image_hint_refined_truth", [str(path)], step=trainer.global_step)


class CameraReport(L.Callback):
    """Measure the camera motion of videos sampled without and with the LoRA, from the same noise.

    Neither motion field nor strength is given, so that the base chooses the camera motion itself. The residuals are
    logged at every validation. At the end camera.json, before.mp4, after.mp4, before_after.mp4 and before_after.png
    (without the LoRA on the left) are written.

    Args:
        folder: The run's folder.
        clips: Number of sampled clips.
        sampling: The sampling config group.
        flow_estimator: Frames (T, 3, H, W) to flow; its `name` is recorded.
        seed: Seed of the noise, the same at every validation.
    """

    def __init__(
        self,
        *,
        folder: str,
        clips: int,
        sampling: Mapping[str, float],
        flow_estimator: Callable[[Tensor], Tensor],
        seed: int,
    ) -> None:
        self.folder, self.clips, self.sampling, self.seed = Path(folder), clips, sampling, seed
        self.flow_estimator = flow_estimator
        self._before: Tensor | None = None
        self._after: Tensor | None = None

    def _sample(self, trainer: L.Trainer, module: DiffusionModule, *, lora: bool) -> Tensor:
        enable_lora(module.denoiser.unet, lora)
        shown = {"desc": f"camera {'with' if lora else 'without'} LoRA", "disable": not trainer.is_global_zero}
        try:
            with trainer.precision_plugin.forward_context():  # Lightning runs validation hooks without autocast
                videos = [
                    sample(
                        module,
                        ClipBatch(*(field[i : i + 4] for field in self._batch)),
                        sampling=self.sampling,
                        seed=self.seed + i,
                        has_flow=False,
                        guidance=False,
                        progress=None,
                    )
                    for i in tqdm(range(0, len(self._batch.frames), 4), leave=False, **shown)
                ]
        finally:
            enable_lora(module.denoiser.unet, True)
        return torch.cat(videos).float().cpu()

    def residuals(self, videos: Tensor) -> list[float]:
        """Mean corner displacement per frame of each video, as a share of the diagonal."""
        return [camera_residual(self.flow_estimator(video), None) for video in videos]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        if trainer.sanity_checking:
            return
        self._batch = trainer.datamodule.first_val(self.clips)
        if self._before is None:
            self._before = self._sample(trainer, pl_module, lora=False)
        self._after = self._sample(trainer, pl_module, lora=True)
        if not trainer.is_global_zero:
            return
        for name, videos in (("without", self._before), ("with", self._after)):
            values = self.residuals(videos)
            pl_module.log(f"val/camera_residual_{name}_lora", sum(values) / len(values), rank_zero_only=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        if self._before is None or self._after is None or not trainer.is_global_zero:
            return
        before, after = self.residuals(self._before), self.residuals(self._after)
        report = {
            "what": "mean corner displacement per frame / image diagonal, without field and strength, same noise",
            "before": sum(before) / len(before),
            "after": sum(after) / len(after),
            "flow_estimator": self.flow_estimator.name,
            "clips_before": before,
            "clips_after": after,
        }
        with atomic_path(self.folder / "camera.json") as path:
            path.write_text(json.dumps(report, indent=2) + "\n")
        for name, videos in (("before", self._before), ("after", self._after)):
            write_video(self.folder / f"{name}.mp4", side_by_side([videos[:4]]), FPS)
        both = side_by_side([self._before[:4], self._after[:4]])
        write_video(self.folder / "before_after.mp4", both, FPS)
        rows = [row for pair in zip(self._before[:4], self._after[:4], strict=True) for row in pair]
        write_picture(self.folder / "before_after.png", sheet(rows))
        print(f"camera residual without the LoRA {report['before']:.5f}, with it {report['after']:.5f}")
