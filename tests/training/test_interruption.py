"""A run that is killed or told to stop goes on with ckpt_path=last as if nothing had happened."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import forked
import pytest
import torch
from conftest import free_port
from interrupted import LONGEST, wait_until
from mixed_videos import write_videos

ROOT = Path(__file__).resolve().parents[2]
FOREVER = 100000  # steps


def command(base: Path, run: str, steps: int, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "train.py"), "experiment=motion_lora", f"run={run}", f"scale.base={base}",
        "scale.height=16", "scale.width=16", "scale.num_frames=5", "scale.batch_size=2", "scale.num_workers=1",
        "scale.motion_channels=8", "scale.median_strength=0.01", f"trainer.max_steps={steps}",
        "trainer.val_check_interval=100000", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
        "callbacks.checkpoint.every_n_train_steps=3", "callbacks.camera.clips=2", "logger=csv", *more,
    ]  # fmt: skip


def losses(out: Path) -> dict[int, str]:
    """Step to loss as printed, so that equal means equal to the last digit."""
    with (out / "metrics.csv").open() as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stops", "mixed"), [((signal.SIGKILL, signal.SIGTERM), False), ((signal.SIGKILL,), True)],
    ids=["kill -9 and SIGTERM", "kill -9, clips of several shapes, vram=16"],
)  # fmt: skip
def test_killed_and_resumed_equals_uninterrupted(stops, mixed, base, tmp_path):
    given = []
    if mixed:
        write_videos(tmp_path / "videos", 15)
        given = [
            "data=folder", "data.root=videos", "scale.height=32", "scale.width=32", "scale.buckets=true",
            "scale.bucket_multiple=8", "scale.bucket_clips=4", "sampling.num_steps=2", "vram=16",
            "trainer.precision=bf16-mixed",
        ]  # fmt: skip
        if find_spec("bitsandbytes") is None:
            given.append("model.moments=float32")

    def arguments(run: str, steps: int, *more: str) -> list[str]:
        return command(base, run, steps, *given, *more)[1:]

    def finish(run: str, *more: str) -> str:
        done = forked.run(*arguments(run, step + 3, *more), cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    runs = tmp_path / "runs" / "motion_lora"
    last = runs / "cut" / "checkpoints" / "last.ckpt"
    step, more, before = 0, (), None
    for how in stops:
        with forked.started(*arguments("cut", FOREVER, *more), cwd=tmp_path) as cut:
            wait_until(lambda: inode(last) not in (None, before), cut)  # noqa: B023
            os.killpg(cut.pid, how)  # with its loader process, as SLURM does
            assert cut.wait() != 0
            assert "Traceback" not in cut.read(2)
            assert step == 0 or f"going on from {last}, step {step}" in cut.read(1)
        step, before, more = torch.load(last, weights_only=True)["global_step"], last.stat().st_ino, ("ckpt_path=last",)
    if how == signal.SIGTERM:
        assert step == max(losses(runs / "cut")) + 1, "SIGTERM saves the last step"
    assert f"going on from {last}, step {step}" in finish("cut", *more)
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    finish("whole")
    tail, reference = losses(runs / "cut"), losses(runs / "whole")
    assert tail == {number: reference[number] for number in range(step, step + 3)}
    weights = [(runs / run / "lora.safetensors").read_bytes() for run in ("cut", "whole")]
    assert weights[0] == weights[1]


def inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:  # for a moment while it is replaced
        return None


def living(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "trainer", "victim"), [("torchrun", "fsdp", 1), ("lightning", "ddp", 0)])
def test_a_killed_rank_ends_all_others(launcher: str, trainer: str, victim: int, base: Path, tmp_path: Path) -> None:
    arguments = command(
        base, "two", FOREVER, f"trainer={trainer}", "trainer.devices=2", "scale.num_workers=0", "~callbacks.camera",
    )[1:]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if launcher == "torchrun" else []
    last = tmp_path / "runs" / "motion_lora" / "two" / "checkpoints" / "last.ckpt"
    with forked.started(*torchrun, *arguments, cwd=tmp_path, pythons=2 if torchrun else 1) as process:
        wait_until(last.exists, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [*([] if torchrun else [process.pid]), *map(int, children)]
        try:
            assert len(ranks) == 2
            os.kill(ranks[victim], signal.SIGKILL)
            killed = time.monotonic()
            assert process.wait(timeout=LONGEST) != 0
            while any(map(living, ranks)) and time.monotonic() < killed + LONGEST:
                time.sleep(0.1)
            assert not any(map(living, ranks)), "a process outlives the run"
        finally:
            for pid in filter(living, ranks):
                os.kill(pid, signal.SIGKILL)
    print(f"{launcher}, {trainer}, rank {victim}: over after {time.monotonic() - killed:.1f} s")
    assert torch.load(last, weights_only=True)["global_step"] % 3 == 0


def srun_of(recipe: Path, folder: Path, *settings: str, tasks: int, job: int = 3) -> list[str]:
    """What a recipe has srun start on each of its tasks."""
    (folder / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/called\n')
    (folder / "srun").chmod(0o755)
    slurm = {"SLURM_CPUS_PER_TASK": "3", "SLURM_JOB_ID": f"{job}", "SLURM_NNODES": "1"}
    slurm |= {f"SLURM_{name}": f"{tasks}" for name in ("NTASKS", "NTASKS_PER_NODE")}
    subprocess.run(["bash", recipe, *settings], env={**slurm, "PATH": f"{folder}:{os.environ['PATH']}"}, check=True)
    return (folder / "called").read_text().splitlines()


@pytest.mark.long
@pytest.mark.slow
def test_a_slurm_job_at_its_time_limit_saves_and_goes_back_into_the_queue(base: Path, tmp_path: Path) -> None:
    called = tmp_path / "requeued"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_CPUS_PER_TASK": "3",
        "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip

    @contextmanager
    def sbatch(steps: int) -> Iterator[list[forked.Process]]:
        settings = [each for each in command(base, "7", steps, "trainer=fsdp")[2:] if not each.startswith("run=")]
        recipe = ROOT / "recipes" / "train.sbatch"
        first, _, python, *arguments = srun_of(recipe, tmp_path, *settings, f"paths.runs={tmp_path}", tasks=2, job=7)
        assert (first, python) == ("--kill-on-bad-exit=1", "python")
        with ExitStack() as running:
            yield [
                running.enter_context(forked.started(
                    *arguments, cwd=ROOT, env={**slurm, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
                )) for rank in "01"
            ]  # fmt: skip

    last = tmp_path / "motion_lora" / "7" / "checkpoints" / "last.ckpt"
    with sbatch(FOREVER) as ranks:
        wait_until(last.exists, ranks[0])
        os.killpg(ranks[1].pid, signal.SIGUSR1)  # with its loader process; one of the two is enough
        # If the second failed, srun would end the first, which requeues the job.
        assert [rank.wait(LONGEST) for rank in ranks] == [1, 0], ranks[1].read(2)[-2000:]
    assert called.read_text() == "requeue 7\n"
    saved = torch.load(last, weights_only=True)
    step = saved["global_step"]
    assert saved["StreamData"] == {"clips": step * 2 * 2, "dataset": None, "seed": 0}
    with sbatch(step + 2) as ranks:
        assert [rank.wait(LONGEST) for rank in ranks] == [0, 0], ranks[0].read(2)[-2000:]
    assert sorted(losses(last.parents[1])) == [step, step + 1]


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_through_submitit_leaves_a_run_a_job(base: Path, tmp_path: Path) -> None:
    _, script, *settings = command(base, "sweep", 1, "model.rank=2,4")
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=20", "hydra.sweep.subdir=${hydra.job.num}"]
    # The process of the second job is a real one, with its own imports.
    done = forked.run(script, "-m", *launcher, *settings, cwd=tmp_path, pythons=1)
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = (tmp_path / "runs" / "motion_lora" / "sweep" / job / "lora.safetensors" for job in "01")
    assert small.stat().st_size < large.stat().st_size


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.sbatch")), ids=lambda path: path.stem)
def test_a_recipe_passes_its_cores_on_to_srun(recipe: Path, tmp_path: Path) -> None:
    assert "--cpus-per-task=3" in srun_of(recipe, tmp_path, tasks=3)
