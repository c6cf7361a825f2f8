"""The endless training stream, which makes runs resumable and independent of the number of processes.

Training data is addressed by *position*, 0, 1, 2, ...: position p is the p-th clip that the run trains on, whatever
the batch size, the number of workers or of processes. A dataset turns a position into a clip and draws every random
choice from `rng(seed, position)`; the training step draws its noise in the same way. A resumed run therefore continues
with exactly the clips, crops and noise that the uninterrupted run would have used.
"""

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from motionanim.files import text_sha256
from motionanim.media.image_io import from_uint8

Batch = TypeVar("Batch", bound=tuple)

logger = logging.getLogger(__name__)

# Values that decide which clip stands at a position. Key in a checkpoint: its name in messages, and the remedy.
_IDENTITY = {
    "dataset": ("prepared latents {}", "resume with the data.latents that it began with"),
    "files": ("the list of files {}", "resume with the data that it began with (data.root may have moved)"),
    "flow": ("flow by {}", "set the flow_estimator that it began with (its weights may have moved)"),
    "seed": ("seed={} of its data", "set data.seed (with data=synthetic data.train.seed) to {}"),
    "shuffle_shards": ("shuffle_shards={}", "set reading.shuffle_shards to {}"),
    "weights": ("weights {} of its folders", "give data.root the folders and weights that it began with"),
    "buckets": ("shapes of clips {}", "set scale.buckets, bucket_clips and bucket_multiple to what it began with"),
}
_OPTIONAL = ("weights", "buckets")  # left out of a checkpoint where the run has none


def rng(seed: int, position: int) -> np.random.Generator:
    """The random generator of one position of one stream."""
    return np.random.default_rng([seed, position])


def as_floats(batch: Batch) -> Batch:
    """Pictures uint8 (..., H, W, 3) become float32 (..., 3, H, W) in [-1, 1]; float16 becomes float32."""
    return batch._make(map(as_float, batch))


def as_float(field: Tensor) -> Tensor:
    """One field of a batch, as `as_floats`."""
    if field.dtype == torch.uint8:
        return from_uint8(field.movedim(-1, -3).contiguous())
    return field.float() if field.dtype == torch.float16 else field


def collate(items: Sequence[Batch]) -> Batch:
    """Stack the items of a batch field by field.

    A loader process stacks with torch, which writes into shared memory. Other processes stack with numpy, whose large
    arrays come in huge pages: this takes half the time.
    """
    if get_worker_info() is not None:
        return default_collate(list(items))
    return items[0]._make(torch.from_numpy(np.stack([field.numpy() for field in fields])) for fields in zip(*items))


def _serve_to_the_end(_: int) -> None:
    """Let a loader process end only when the training process ends it.

    SLURM and Ctrl-C signal all processes of a job, but the training process needs clips until it has saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in all threads, which begin later
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class PositionSampler(Sampler[int]):
    """Yield positions without end from `start` on; each process takes its own slice of each global batch."""

    def __init__(self, *, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.batch_size, self.rank, self.world_size = start, batch_size, rank, world_size

    def __iter__(self) -> Iterator[int]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield from range(first, first + self.batch_size)
            first += self.world_size * self.batch_size


def list_fingerprint(names: Sequence[str]) -> str:
    """Fingerprint of a list of files, wherever they lie: of its length and up to a thousand names."""
    sample = [str(names[i]) for i in range(0, len(names), len(names) // 1000 + 1)]
    return text_sha256("\n".join([str(len(names)), *sample]))[:16]


class StreamData(L.LightningDataModule):
    """Train without end on `train`, validate on each item of `val` once.

    Clips of a dataset with `row` have several shapes, and one shape in each whole row of so many positions: batches
    must not cross the end of a row. A `val` with `numbers`, the number of each item's shape, is validated in batches
    of one shape.

    Args:
        train: Dataset addressed by any position >= 0; its length is not used.
        val: Dataset with a length; each item is scored by one process. If it is empty, nothing is validated.
        batch_size: Clips per process and step.
        num_workers: Loader processes; 0 loads in the training process.
    """

    def __init__(self, *, train: Dataset, val: Dataset, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.train, self.val, self.batch_size, self.num_workers = train, val, batch_size, num_workers
        self._start = 0
        self._batches_before = 0  # batches that the loops of a resumed run had counted before

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        self._identity()  # looks up sizes here, and not in every loader process
        self._check_one_list()
        self._check_rows()
        self._batches_before = self._batches()
        sampler = PositionSampler(
            start=self._start, batch_size=self.batch_size, rank=trainer.global_rank, world_size=trainer.world_size
        )
        return DataLoader(self.train, self.batch_size, sampler=sampler, **self._worker_options())

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """No loader if there is nothing to validate on: Lightning then skips validation.

        Raises:
            ValueError: If some processes would have no item, for which the others would wait without end.
        """
        if len(self.val) == 0:
            return []
        rank, world = self.trainer.global_rank, self.trainer.world_size
        mixed = self._val_shapes() is not None
        if min(len(each) for each in self.val_batches(world)) == 0:
            what = f"{len(self.val)} validation clips" + " in batches of one shape" * mixed
            raise ValueError(
                f"{what} are fewer than {world} processes: validate on more, or lower "
                "trainer.devices or trainer.num_nodes"
            )
        return DataLoader(self.val, batch_sampler=self.val_batches(world)[rank], **self._worker_options())

    def val_batches(self, world: int) -> list[list[list[int]]]:
        """The validation items of each batch of each of `world` processes."""
        size, shapes = self.batch_size, self._val_shapes()
        if shapes is None:
            each = [list(range(rank, len(self.val), world)) for rank in range(world)]
            return [[mine[first : first + size] for first in range(0, len(mine), size)] for mine in each]
        alike = [np.flatnonzero(shapes == shape).tolist() for shape in np.unique(shapes)]
        batches = [items[first : first + size] for items in alike for first in range(0, len(items), size)]
        return [batches[rank::world] for rank in range(world)]

    def _val_shapes(self) -> np.ndarray | None:
        return getattr(self.val, "numbers", None)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return as_floats(batch)

    def first_val(self, count: int) -> Any:
        """The first `count` validation items, or all if there are fewer, as one batch.

        Of several shapes the most frequent one is taken.
        """
        shapes = self._val_shapes()
        items = range(len(self.val)) if shapes is None else np.flatnonzero(shapes == np.bincount(shapes).argmax())
        return as_floats(collate([self.val[int(i)] for i in items[:count]]))

    def _worker_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "worker_init_fn": _serve_to_the_end,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self.trainer.accelerator is not None and self.trainer.strategy.root_device.type == "cuda",
        }

    def state_dict(self) -> dict[str, int | str | None]:
        """Clips whose gradient the checkpointed weights hold, and what decides which clip stands at a position.

        A half-accumulated step is not counted, so that it is done again on resume. Clips and not batches are counted,
        so that a run goes on with another batch size or number of processes.
        """
        done = self._batches() - self._batches_before
        return {"clips": self._start + done * self.batch_size * self.trainer.world_size, **self._identity()}

    def _batches(self) -> int:
        """Batches of whole steps that the loops have counted, including those before a resume."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return done - done % self.trainer.accumulate_grad_batches

    def _identity(self) -> dict[str, int | str | None]:
        """The values that decide which clip stands at a position, by the keys of `_IDENTITY` that the dataset has.

        `dataset` is the fingerprint of prepared latents, `files` that of a list of files, and `flow` the name of the
        flow estimator, which names its weights wherever they lie.
        """
        found: dict[str, int | str | None] = {"dataset": getattr(self.train, "fingerprint", None)}
        found |= {name: getattr(self.train, name) for name in ("seed", "shuffle_shards") if hasattr(self.train, name)}
        found |= {name: value for name in _OPTIONAL if (value := getattr(self.train, name, None)) is not None}
        if (names := getattr(self.train, "names", None)) is not None:
            found["files"] = list_fingerprint(names)
        if (estimator := getattr(self.train, "flow_estimator", None)) is not None:
            found["flow"] = estimator.name
        return found

    def _check_rows(self) -> None:
        """Raises ValueError if a batch over all processes would hold clips of two shapes."""
        row, world = getattr(self.train, "row", None), self.trainer.world_size
        whole = self.batch_size * world
        if row is None or not (row % whole or self._start % whole):
            return
        batch = f"batch_size={self.batch_size} times {world} processes"
        if row % whole:
            raise ValueError(
                f"{batch} must divide scale.bucket_clips={row}, the clips in a row of one shape: set "
                f"scale.bucket_clips={math.lcm(row, whole)} in a new run, or another batch size"
            )
        raise ValueError(
            f"{batch}: the run goes on at clip {self._start}, which is no multiple of {whole}, so that batches would "
            "cross from one shape to the next: resume with a smaller batch or fewer processes"
        )

    def _check_one_list(self) -> None:
        """Raises ValueError, in all processes, if their lists of files differ because files came or went meanwhile."""
        if self.trainer.world_size == 1:
            return
        strategy, found = self.trainer.strategy, self._identity()
        lists = [found.get("files"), found.get("buckets")]
        if not strategy.reduce_boolean_decision(strategy.broadcast(lists) == lists):
            raise ValueError(
                "the processes of this run found other lists of files, as files came or went meanwhile: start it again"
            )

    def load_state_dict(self, state: dict[str, int | str | None]) -> None:
        """Raises ValueError as `check_state`."""
        self.check_state(state)
        self._start = state["clips"]

    def check_state(self, state: dict[str, int | str | None]) -> None:
        """Check that a run can go on from here; take the list of files that it began with, if the source keeps it.

        Raises:
            ValueError: If the checkpoint does not say at which clip it was written, or if other clips would follow.
        """
        if "clips" not in state:
            raise ValueError(
                "the checkpoint is of an earlier version, which counted batches and not clips: finish that run with "
                "the version it began with, or begin a new one"
            )
        now = self._identity()
        for name, (what, remedy) in _IDENTITY.items():
            # Checkpoints of earlier versions lack some.
            began = state.get(name, None if name in _OPTIONAL else now.get(name))
            if began == now.get(name) or (name == "files" and self._take_list(began)):
                continue
            raise ValueError(
                f"the run began with {what.format(began)} and would go on with {what.format(now.get(name))}, so that "
                f"other clips would follow: {remedy.format(began)}, or start a new run"
            )

    def _take_list(self, wanted: str) -> bool:
        """Train on the earlier list of files with this fingerprint; whether the source keeps it."""
        names = getattr(self.train, "names", None)
        for earlier in names.earlier() if hasattr(names, "earlier") else ():
            if list_fingerprint(earlier) == wanted:
                logger.warning("files came or went since the run began: it goes on with the list that it began with")
                self.train.names = earlier
                return True
        return False
