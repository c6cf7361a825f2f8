"""A run that is killed or told to stop goes on with ckpt_path=last as if nothing had happened."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def command(base: Path, run: str, steps: int, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "train.py"), "experiment=motion_lora", f"run={run}", f"scale.base={base}",
        "scale.height=16", "scale.width=16", "scale.num_frames=5", "scale.batch_size=2", "scale.num_workers=1",
        "scale.motion_channels=8", "model.motion.median_strength=0.01", f"trainer.max_steps={steps}",
        "trainer.val_check_interval=100000", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
        "callbacks.checkpoint.every_n_train_steps=5", "~logger.wandb", *more,
    ]  # fmt: skip


def losses(out: Path) -> dict[int, str]:
    """Step to loss as printed, so that equal means equal to the last digit."""
    with (out / "metrics.csv").open() as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(2400):
        if path.exists():
            return
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_killed_and_resumed_equals_uninterrupted(how: signal.Signals, base: Path, tmp_path: Path) -> None:
    whole = subprocess.run(command(base, "whole", 12), cwd=tmp_path, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr[-2000:]

    runs = tmp_path / "runs" / "motion_lora"
    last = runs / "cut" / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(
        command(base, "cut", 100000), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(last, process)
    written = last.stat().st_mtime_ns
    os.kill(process.pid, how)
    assert process.wait(timeout=120) != 0
    step = torch.load(last, weights_only=True)["global_step"]  # readable after any kill
    if how == signal.SIGTERM:
        assert last.stat().st_mtime_ns > written, "SIGTERM writes a checkpoint before leaving"
    # The older run's checkpoints must not be the newest.
    os.utime(runs / "whole" / "checkpoints" / "last.ckpt", ns=(0, 0))
    total = step + 4
    resumed = subprocess.run(
        command(base, "resumed", total, "ckpt_path=last"), cwd=tmp_path, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    tail = losses(runs / "resumed")
    assert sorted(tail) == list(range(step, total))
    if total > 12:  # the machine was quick: compare with a run of the same length
        rerun = subprocess.run(command(base, "whole", total), cwd=tmp_path, capture_output=True, text=True)
        assert rerun.returncode == 0, rerun.stderr[-2000:]
    reference = losses(runs / "whole")
    assert tail == {number: reference[number] for number in tail}
