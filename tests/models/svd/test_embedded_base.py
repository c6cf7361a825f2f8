"""experiments/embedded_base/make.py: from nothing to a pipeline folder, and the same one after a kill."""

import runpy
import shutil
import sys
from pathlib import Path

import forked
import pytest
from diffusers import StableVideoDiffusionPipeline
from interrupted import wait_until

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "experiments" / "embedded_base" / "make.py"
SMALL = [
    "scale.height=64", "scale.width=64", "scale.num_frames=2", "scale.batch_size=1", "scale.num_workers=0",
    "trainer.val_check_interval=100000", "trainer.accelerator=cpu",
    "trainer.precision=32-true",  # bfloat16 takes minutes on a processor that has no instructions for it
    "callbacks.checkpoint.every_n_train_steps=1", "logger=csv", "trainer.max_steps=2",
]  # fmt: skip


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch):
    """Run make.py, its stages in forks and list them. The base is killed once the file `until` exists."""

    def main(runs: Path, out: Path, until: Path | None = None) -> list[str]:
        stages = []

        def call(*command: str) -> None:
            stages.append(command[1])
            if command[1] == "motionanim.data.encode":
                command = (*command, "engine.workers=0")
            with forked.started(*command, cwd=ROOT) as stage:
                if until and command[1] == "experiment=tiny_base":
                    wait_until(until.exists, stage)
                    raise InterruptedError
                assert stage.wait() == 0, stage.read(2)[-3000:]

        script = runpy.run_path(str(SCRIPT))
        script["train"].__globals__["call"] = call
        monkeypatch.setattr(sys, "argv", ["make.py", "--runs", str(runs), "--out", str(out), "--clips", "3", *SMALL])
        script["main"]()
        return stages

    return main


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_training_makes_the_same_base(make, tmp_path: Path) -> None:
    stages = ["experiment=tiny_autoencoder", "motionanim.data.encode", "experiment=tiny_base"]
    assert make(tmp_path / "whole", tmp_path / "a") == stages
    StableVideoDiffusionPipeline.from_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "motion" / "motion.safetensors").is_file()

    # The stages before the base are done already; the base is killed after its first checkpoint.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", ignore=shutil.ignore_patterns("tiny_base"))
    checkpoint = tmp_path / "cut" / "tiny_base" / "base" / "checkpoints" / "last.ckpt"
    with pytest.raises(InterruptedError):
        make(tmp_path / "cut", tmp_path / "b", until=checkpoint)
    assert make(tmp_path / "cut", tmp_path / "b") == stages[1:], "a finished stage is skipped"
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_stage_that_fails_ends_the_script_with_its_code() -> None:
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT))["call"]("-c", "raise SystemExit(3)")
    assert ended.value.code == 3
