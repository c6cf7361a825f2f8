"""experiments/embedded_base/make.py: from nothing to a pipeline folder, and the same one after a kill."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import StableVideoDiffusionPipeline
from interrupted import interrupt

SCRIPT = Path(__file__).resolve().parents[3] / "experiments" / "embedded_base" / "make.py"
SMALL = [
    "scale.height=64", "scale.width=64", "scale.num_frames=3", "scale.batch_size=2", "scale.num_workers=0",
    "trainer.val_check_interval=100000", "trainer.accelerator=cpu",
    "trainer.precision=32-true",  # bfloat16 takes minutes on a processor that has no instructions for it
    "callbacks.checkpoint.every_n_train_steps=2", "logger=csv",
]  # fmt: skip


def command(runs: Path, out: Path, steps: int) -> list[str]:
    options = ["--runs", str(runs), "--out", str(out), "--clips", "3"]
    return [sys.executable, str(SCRIPT), *options, *SMALL, f"trainer.max_steps={steps}"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_killed_training_makes_the_same_base(tmp_path: Path) -> None:
    whole = subprocess.run(command(tmp_path / "whole", tmp_path / "a", 4), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr[-3000:]
    StableVideoDiffusionPipeline.from_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "motion" / "motion.safetensors").is_file()

    # The stages before the base are done already; the base is killed after its first checkpoint.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", ignore=shutil.ignore_patterns("tiny_base"))
    checkpoint = tmp_path / "cut" / "tiny_base" / "base" / "checkpoints" / "last.ckpt"
    interrupt(command(tmp_path / "cut", tmp_path / "b", 4), signal.SIGKILL, when=checkpoint.exists)
    done = subprocess.run(command(tmp_path / "cut", tmp_path / "b", 4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "experiment=tiny_autoencoder" not in done.stdout, "a finished stage is skipped"
    assert files(tmp_path / "a") == files(tmp_path / "b")
