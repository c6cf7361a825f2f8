"""Lack of memory: in which phase of a job it happened, and which settings of the command need less there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf

_CARD = "vram", "a preset for the GPU: 16, 24, 48 or 80 (GB)"
_SIZE = "scale.height", "lower, with scale.width"
_VIDEO_SIZE = "size", "[height,width], smaller"
_OFFLOAD = "sampling.offload", "all: layers are on the GPU only while they run"
_BATCH = [
    ("scale.checkpoint_width", "1280: all blocks are computed twice"), ("scale.batch_size", "lower"),
    ("trainer.accumulate_grad_batches", "higher by as much"),
]  # fmt: skip
_LOADERS = "scale.num_workers", "lower, for the host's memory"
# Settings that need less memory and how to change them, cheapest first, by phase; those that a command lacks are left
# out. Without a phase: by the first part that a command's configuration has.
PHASES = {
    "denoising": [
        _CARD, ("sampling.dtype", "bfloat16"), _OFFLOAD, ("long_video.batch_size", "lower"), _VIDEO_SIZE, _SIZE,
    ],
    "decoding": [
        _CARD, ("sampling.decode_chunk", "lower, such as 8 frames"), ("sampling.decode_tile", "512: in tiles"),
        ("sampling.decode_dtype", "bfloat16"), _OFFLOAD, _VIDEO_SIZE, _SIZE,
    ],
    "encoding": [
        _CARD, _OFFLOAD, ("data.latents", "a folder of python -m motionanim.data.encode"),
        ("scale.batch_size", "lower"), _VIDEO_SIZE, _SIZE,
    ],
    "training step": [_CARD, *_BATCH, _LOADERS],
}  # fmt: skip
COMMANDS = {
    "trainer": [*_BATCH, _LOADERS],
    "renderer": [_VIDEO_SIZE, ("sampling.dtype", "bfloat16"), ("long_video.batch_size", "lower"), _SIZE],
    "sampling": [("sampling.dtype", "bfloat16"), ("long_video.batch_size", "lower"), _SIZE],
    "codec": [_SIZE, ("scale.num_frames", "lower"), ("engine.workers", "lower")],
    "engine": [("engine.workers", "lower"), _SIZE],
}  # fmt: skip


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Lack of memory within is of this phase, one of `PHASES`, or of a phase inside it."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and not hasattr(error, "phase"):
            error.phase = name
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU or on the host, for which PyTorch has no exception of its own."""
    torch = sys.modules.get("torch")  # if it is not imported, it did not raise
    gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def memory_advice(cfg: DictConfig, phase: str | None = None) -> str:
    """The settings of a command that decide how much memory it needs: their values and how to change them."""
    told, missing = [], object()
    settings = PHASES[phase] if phase else COMMANDS[next(part for part in COMMANDS if part in cfg)]
    for name, change in settings:
        value = OmegaConf.select(cfg, name, default=missing)
        if value is missing:
            continue
        if name == "vram":
            value = "none" if value.gib is None else value.gib
        told.append(f"{name}={'null' if value is None else value} ({change})")
    return ", ".join(told)
