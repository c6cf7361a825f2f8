"""The endless training stream: what makes runs resumable and independent of the number of processes.

Training data is addressed by *position*, 0, 1, 2, ...: position p is the p-th clip that the run trains on, whatever
the batch size, the number of workers or of processes. A dataset turns a position into a clip and draws every random
choice from `rng(seed, position)`; the training step does the same for its noise. A run resumed at batch n therefore
continues with exactly the clips, crops and noise that the uninterrupted run would have used.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
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

# What a dataset may have that decides about its order, and the setting of each.
_ORDER = {"seed": "data.seed (with data=synthetic data.train.seed)", "shuffle_shards": "reading.shuffle_shards"}


def rng(seed: int, position: int) -> np.random.Generator:
    """The random generator that belongs to one position of one stream."""
    return np.random.default_rng([seed, position])


@lru_cache(maxsize=4)
def _permutation(length: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length)


def shuffled_index(seed: int, position: int, length: int) -> int:
    """Which of `length` items stands at `position`: every epoch of `length` positions is its own permutation.

    Of more than 4 M items neighbours are shuffled in blocks of 1 M, to keep the permutation small.
    """
    if length > 2**22:
        return block_shuffled_index(seed, position, length, shard=2**12, block=2**8)
    epoch, place = divmod(position, length)
    return int(_permutation(length, seed, epoch, length)[place])


def block_shuffled_index(seed: int, position: int, length: int, *, shard: int, block: int) -> int:
    """As `shuffled_index`, for items in shards: positions near each other read from few of them.

    Every epoch permutes the shards, and then the items of every `block` shards among themselves. Memory grows with the
    number of shards and the items of a block, not with `length`.

    Args:
        shard: Items of a shard; the last one may hold fewer.
        block: Shards whose items are mixed, at least 1.
    """
    epoch, place = divmod(position, length)
    shards = -(-length // shard)
    order = _permutation(shards, seed, epoch, length)
    absent = shards * shard - length  # what the last shard lacks
    short = int(np.flatnonzero(order == shards - 1)[0]) // block  # the block that it is in
    size = block * shard
    number = (place if place < (short + 1) * size - absent else place + absent) // size
    begin = number * size - (absent if number > short else 0)
    members = np.sort(order[number * block : (number + 1) * block])  # a short one comes last
    count = len(members) * shard - (absent if number == short else 0)
    which, item = divmod(int(_permutation(count, seed, epoch, length, number)[place - begin]), shard)
    return int(members[which]) * shard + item


def as_floats(batch: Batch) -> Batch:
    """Pictures uint8 (..., H, W, 3) become float32 (..., 3, H, W) in [-1, 1], float16 becomes float32."""
    return batch._make(map(as_float, batch))


def as_float(field: Tensor) -> Tensor:
    """One field of a batch, as `as_floats`."""
    if field.dtype == torch.uint8:
        return from_uint8(field.movedim(-1, -3).contiguous())
    return field.float() if field.dtype == torch.float16 else field


def collate(items: Sequence[Batch]) -> Batch:
    """Stack the items of a batch field by field.

    Outside of a loader process through numpy, whose large arrays come in huge pages: half the time of torch's own,
    which inside of one writes straight into shared memory.
    """
    if get_worker_info() is not None:
        return default_collate(list(items))
    return items[0]._make(torch.from_numpy(np.stack([field.numpy() for field in fields])) for fields in zip(*items))


def _serve_to_the_end(_: int) -> None:
    """In a loader process: leave when the training process says so, not when the whole job is told to stop.

    SLURM signals all processes of a job, a terminal's Ctrl-C too, and the training process needs clips until it has
    saved.
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
    """Yield positions without end, from `start` on; of each global batch a process takes its own slice."""

    def __init__(self, *, start: int, batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.batch_size, self.rank, self.world_size = start, batch_size, rank, world_size

    def __iter__(self) -> Iterator[int]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield from range(first, first + self.batch_size)
            first += self.world_size * self.batch_size


def list_fingerprint(names: Sequence[str]) -> str:
    """Of a list of files, wherever they lie; of a long one a thousand are read."""
    sample = [str(names[i]) for i in range(0, len(names), len(names) // 1000 + 1)]
    return text_sha256("\n".join([str(len(names)), *sample]))[:16]


class StreamData(L.LightningDataModule):
    """Train without end on `train`, validate on each item of `val` once.

    Args:
        train: Dataset addressed by any position >= 0; its length is not used.
        val: Dataset with a length; items 0 ... len-1 are scored, each by one process only. Empty: no validation.
        batch_size: Clips a process and step.
        num_workers: Loader processes; 0 loads in the training process.
    """

    def __init__(self, *, train: Dataset, val: Dataset, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.train, self.val, self.batch_size, self.num_workers = train, val, batch_size, num_workers
        self._start = 0
        self._batches_before = 0  # that the loops of a resumed run had counted already

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        self._check_one_list()
        self._batches_before = self._batches()
        sampler = PositionSampler(
            start=self._start, batch_size=self.batch_size, rank=trainer.global_rank, world_size=trainer.world_size
        )
        return DataLoader(self.train, self.batch_size, sampler=sampler, **self._worker_options())

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Of no items none: Lightning then leaves validations out.

        Raises:
            ValueError: If only some processes would have an item to validate on, and wait for the others for ever.
        """
        if len(self.val) == 0:
            return []
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if len(self.val) < world:
            raise ValueError(
                f"{len(self.val)} validation clips are fewer than {world} processes: validate on more, or lower "
                "trainer.devices or trainer.num_nodes"
            )
        mine = range(rank, len(self.val), world)
        return DataLoader(self.val, self.batch_size, sampler=list(mine), **self._worker_options())

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return as_floats(batch)

    def first_val(self, count: int) -> Any:
        """The first `count` validation items, or all if they are fewer, as one batch: the same on every call."""
        return as_floats(collate([self.val[i] for i in range(min(count, len(self.val)))]))

    def _worker_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "worker_init_fn": _serve_to_the_end,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self.trainer.accelerator is not None and self.trainer.strategy.root_device.type == "cuda",
        }

    def state_dict(self) -> dict[str, int | str | None]:
        """Clips whose gradient the checkpointed weights hold; a half-accumulated step is done again on resume.

        Clips and not batches: a run goes on with another batch size or number of processes where it stopped.
        """
        done = self._batches() - self._batches_before
        clips = self._start + done * self.batch_size * self.trainer.world_size
        return {"clips": clips, "dataset": self._dataset(), **self._order(), **self._files(), **self._flow()}

    def _batches(self) -> int:
        """Batches of whole steps that the loops have counted, those before a resume included."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        return done - done % self.trainer.accumulate_grad_batches

    def _dataset(self) -> str | None:
        """Fingerprint of a prepared dataset; what is made on the fly has none."""
        return getattr(self.train, "fingerprint", None)

    def _order(self) -> dict[str, int]:
        """What else decides which clip stands at a position."""
        return {name: getattr(self.train, name) for name in _ORDER if hasattr(self.train, name)}

    def _files(self) -> dict[str, str]:
        """Fingerprint of the list of files that is trained on."""
        names = getattr(self.train, "names", None)
        return {} if names is None else {"files": list_fingerprint(names)}

    def _check_one_list(self) -> None:
        """Raises ValueError, in all processes, if they have other lists of files, as where files came in meanwhile."""
        if self.trainer.world_size == 1:
            return
        strategy, files = self.trainer.strategy, self._files()
        if not strategy.reduce_boolean_decision(strategy.broadcast(files) == files):
            raise ValueError(
                "the processes of this run found other lists of files, as files came or went meanwhile: start it again"
            )

    def _flow(self) -> dict[str, str]:
        """Name of what estimates the flow of the clips that are trained on; it tells its weights, wherever they lie."""
        estimator = getattr(self.train, "flow_estimator", None)
        return {} if estimator is None else {"flow": estimator.name}

    def load_state_dict(self, state: dict[str, int | str | None]) -> None:
        """Raises ValueError as `check_state`."""
        self.check_state(state)
        self._start = state["clips"]

    def _take_list(self, wanted: str) -> bool:
        """Train on the earlier list of files with this fingerprint; whether there is one."""
        names = getattr(self.train, "names", None)
        for earlier in names.earlier() if hasattr(names, "earlier") else ():
            if list_fingerprint(earlier) == wanted:
                logger.warning("files came or went since the run began: it goes on with the list that it began with")
                self.train.names = earlier
                return True
        return False

    def check_state(self, state: dict[str, int | str | None]) -> None:
        """Whether a run can go on from here; with the list of files that it began with, where the source keeps that.

        Raises:
            ValueError: If the checkpoint does not say at which clip it was written, or was of another dataset or order.
        """
        if "clips" not in state:
            raise ValueError(
                "the checkpoint is of an earlier version, which counted batches and not clips: finish that run with "
                "the version it began with, or begin a new one"
            )
        if state["dataset"] != self._dataset():
            began, now = (
                f"the prepared latents {name}" if name else "no prepared latents"
                for name in (state["dataset"], self._dataset())
            )
            raise ValueError(
                f"the run began with {began} and would go on with {now}, whose positions are other clips: resume with "
                "the data.latents that it began with, or start a new run"
            )
        if state.get("files", files := self._files().get("files")) != files and not self._take_list(state["files"]):
            raise ValueError(
                "the run began with another list of files, so that other clips stand at its positions: resume with the "
                "data that it began with (data.root may have moved), or start a new run"
            )
        if state.get("flow", flow := self._flow().get("flow")) != flow:
            raise ValueError(
                f"the run began with flow by {state['flow']} and would go on with {flow}: set the flow_estimator that "
                "it began with (its weights may have moved), or start a new run"
            )
        for name, value in self._order().items():
            if state.get(name, value) != value:  # checkpoints of earlier versions do not say
                raise ValueError(
                    f"the run began with {name}={state[name]} of its data and would go on with {value}, which puts "
                    f"other clips at its positions: set {_ORDER[name]} to {state[name]}, or start a new run"
                )
