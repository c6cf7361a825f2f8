"""The folder of a training run. It belongs to one run and one process; a resumed run replaces no earlier records."""

import errno
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

RECORDS = ("config.yaml", ".hydra/overrides.yaml")  # the settings of a run


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest last.

    previous.ckpt comes before last.ckpt whatever their times, because copying a folder may change these.
    """
    found = {}
    for rank, name in enumerate(("previous.ckpt", "last*.ckpt")):
        for path in (folder / "checkpoints").glob(name):
            with suppress(FileNotFoundError):  # another process renamed it in the meantime
                found[path] = rank, path.stat().st_mtime_ns
    return sorted(found, key=found.__getitem__)


def newest_run(experiment: Path) -> str | None:
    """Name of the run with the newest checkpoint in an experiment's folder; jobs of sweeps are left out."""
    found = {}
    for folder in experiment.glob("*"):
        for path in checkpoints(folder):
            with suppress(FileNotFoundError):
                found[path.stat().st_mtime_ns] = folder.name
    return found[max(found)] if found else None


def claim(folder: Path, checkpoint: str | None) -> TextIO:
    """Create and lock a run's folder, and remove the half-written checkpoint of a process that was killed.

    Args:
        checkpoint: The checkpoint that the run resumes from.

    Returns:
        The lock; closing it, or the end of the process, frees the folder.

    Raises:
        ValueError: If another process trains there, or the folder holds checkpoints of which `checkpoint` is none.
    """
    import fcntl  # not on Windows, where animate must still work

    folder.mkdir(parents=True, exist_ok=True)
    lock, alone = (folder / ".lock").open("a+"), True
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by child processes, which may outlive this one
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # others mean that the disk has no locks
            raise ValueError(f"a training runs in {folder} now: wait for its end, or give another run=NAME") from None
        alone = False  # another process may train there
    own = checkpoints(folder)
    if own and (checkpoint is None or Path(checkpoint).resolve().parent != own[0].resolve().parent):
        raise ValueError(
            f"{folder} holds the checkpoints of an earlier run: give another run=NAME, or ckpt_path=last to train it on"
        )
    for temporary in (folder / "checkpoints").glob(".last*.ckpt") if alone else ():
        temporary.unlink()
    return lock


def next_number(path: Path) -> int:
    """The number for renaming config.yaml to config.0.yaml and so on: one above the highest that exists."""
    taken = (other.suffixes[0][1:] for other in path.parent.glob(f"{path.stem}.*{path.suffix}"))
    return max((int(number) for number in taken if number.isdigit()), default=-1) + 1


def set_records_aside(folder: Path) -> None:
    """Rename config.yaml of a run that is resumed to config.0.yaml and so on; the same for overrides and metrics.csv.

    Lightning's CSV logger would delete metrics.csv.
    """
    for names in (RECORDS, ("metrics.csv",)):
        if (folder / names[0]).exists():
            number = max(next_number(folder / name) for name in names)
            for path in (folder / name for name in names):
                if path.exists():
                    path.rename(path.with_suffix(f".{number}{path.suffix}"))


def earlier_metrics(folder: Path) -> list[Path]:
    """The metrics.csv of the earlier parts of a resumed run, oldest first."""
    return sorted(folder.glob("metrics.*.csv"), key=lambda path: int(path.suffixes[0][1:]))


def write_records(folder: Path, config: str, overrides: Sequence[str]) -> None:
    """Write the resolved config, and the command's overrides in the form that Hydra gives them."""
    for name, text in zip(RECORDS, (config, "".join(f"- {override}\n" for override in overrides)), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def tracking_id(folder: Path) -> str:
    """The run's W&B id. It is drawn once and kept in the folder, so that a resumed run continues the same W&B run."""
    path = folder / "wandb.id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12] + os.linesep)
    return path.read_text().strip()
