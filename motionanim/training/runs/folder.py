"""The folder of a training run: one run, one process at a time, and what an earlier part of it left is kept."""

import errno
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

RECORDS = ("config.yaml", ".hydra/overrides.yaml")  # what decided a part of the run


def checkpoints(folder: Path) -> list[Path]:
    """A run's own checkpoints, the newest last; none where it has not saved yet.

    By name first, because a copied folder may have lost its times: previous.ckpt is older than last.ckpt.
    """
    found = {}
    for rank, name in enumerate(("previous.ckpt", "last*.ckpt")):
        for path in (folder / "checkpoints").glob(name):
            with suppress(FileNotFoundError):  # another process has just renamed it
                found[path] = rank, path.stat().st_mtime_ns
    return sorted(found, key=found.__getitem__)


def newest_run(experiment: Path) -> str | None:
    """Name of the run whose checkpoint is the newest in an experiment's folder; the jobs of sweeps do not count."""
    found = {}
    for folder in experiment.glob("*"):
        for path in checkpoints(folder):
            with suppress(FileNotFoundError):
                found[path.stat().st_mtime_ns] = folder.name
    return found[max(found)] if found else None


def claim(folder: Path, checkpoint: str | None) -> TextIO:
    """Take a run's folder, which is made if need be, for this process alone.

    What a killed process left of a checkpoint that it was writing is removed.

    Args:
        checkpoint: What the run goes on from.

    Returns:
        The lock: the folder is free again once it is closed, or the process is gone.

    Raises:
        ValueError: If another process trains there, or it holds the checkpoints of a run that this one would not go on
            with.
    """
    import fcntl  # Windows has none, and needs none to animate

    folder.mkdir(parents=True, exist_ok=True)
    lock, alone = (folder / ".lock").open("a+"), True
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a child that outlives this process does not hold it
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a disk that knows no locks
            raise ValueError(f"a training runs in {folder} now: wait for its end, or give another run=NAME") from None
        alone = False  # for all that is known
    own = checkpoints(folder)
    if own and (checkpoint is None or Path(checkpoint).resolve().parent != own[0].resolve().parent):
        raise ValueError(
            f"{folder} holds the checkpoints of an earlier run: give another run=NAME, or ckpt_path=last to train it on"
        )
    for temporary in (folder / "checkpoints").glob(".last*.ckpt") if alone else ():
        temporary.unlink()
    return lock


def next_number(path: Path) -> int:
    """For what is set aside as config.0.yaml and so on: one above the highest number that there is of `path`."""
    taken = (other.suffixes[0][1:] for other in path.parent.glob(f"{path.stem}.*{path.suffix}"))
    return max((int(number) for number in taken if number.isdigit()), default=-1) + 1


def set_records_aside(folder: Path) -> None:
    """Before a run is resumed: the config and overrides of its earlier part become config.0.yaml and so on."""
    if not (folder / RECORDS[0]).exists():
        return
    number = max(next_number(folder / name) for name in RECORDS)
    for path in (folder / name for name in RECORDS):
        if path.exists():
            path.rename(path.with_suffix(f".{number}.yaml"))


def write_records(folder: Path, config: str, overrides: Sequence[str]) -> None:
    """Write what decides the run: the resolved config, and (as Hydra would) what the command overrode."""
    for name, text in zip(RECORDS, (config, "".join(f"- {override}\n" for override in overrides)), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def tracking_id(folder: Path) -> str:
    """The id of a run's W&B run: made once, kept in the folder, so that a resumed run goes on with the same one."""
    path = folder / "wandb.id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12] + os.linesep)
    return path.read_text().strip()
