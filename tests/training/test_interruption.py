"""A run that is killed or told to stop goes on with ckpt_path=last as if nothing had happened."""

import csv
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import forked
import pytest
import torch
from conftest import free_port
from interrupted import LONGEST, read_errors, started, wait_until
from mixed_videos import write_videos

ROOT = Path(__file__).resolve().parents[2]
FOREVER = 100000  # steps


def command(base: Path, run: str, steps: int, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "train.py"), "experiment=motion_lora", f"run={run}", f"scale.base={base}",
        "scale.height=16", "scale.width=16", "scale.num_frames=5", "scale.batch_size=2", "scale.num_workers=1",
        "scale.motion_channels=8", "scale.median_strength=0.01", f"trainer.max_steps={steps}",
        "trainer.val_check_interval=100000", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
        "callbacks.checkpoint.every_n_train_steps=5", "callbacks.camera.clips=2", "logger=csv", *more,
    ]  # fmt: skip


def losses(out: Path) -> dict[int, str]:
    """Step to loss as printed, so that equal means equal to the last digit."""
    with (out / "metrics.csv").open() as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "mixed"), [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGKILL, True)],
    ids=["kill -9", "SIGTERM", "kill -9, clips of several shapes, vram=16"],
)  # fmt: skip
def test_killed_and_resumed_equals_uninterrupted(how: signal.Signals, mixed: bool, base: Path, tmp_path: Path) -> None:
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

    def finish(run: str, *more: str) -> subprocess.CompletedProcess[str]:
        done = forked.run(*command(base, run, step + 4, *given, *more)[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    runs = tmp_path / "runs" / "motion_lora"
    last = runs / "cut" / "checkpoints" / "last.ckpt"
    with forked.started(*command(base, "cut", FOREVER, *given)[1:], cwd=tmp_path) as cut:
        wait_until(last.exists, cut)
        os.killpg(cut.pid, how)  # with its loader process, as SLURM does
        assert cut.wait() != 0
        assert "Traceback" not in cut.read(2)
    step = torch.load(last, weights_only=True)["global_step"]  # readable after any kill
    if how == signal.SIGTERM:
        assert step == max(losses(runs / "cut")) + 1, "SIGTERM saves the last step"
    assert f"going on from {last}, step {step}" in finish("cut", "ckpt_path=last").stdout
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    finish("whole")
    tail, reference = losses(runs / "cut"), losses(runs / "whole")
    assert tail == {number: reference[number] for number in range(step, step + 4)}
    weights = [(runs / run / "lora.safetensors").read_bytes() for run in ("cut", "whole")]
    assert weights[0] == weights[1]


def ranks(run: str) -> dict[int, int]:
    """Rank to process id of a running training; loader processes, the children of a rank, are left out."""
    rank, parent = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = dict(e.split(b"=", 1) for e in (folder / "environ").read_bytes().split(b"\0") if b"=" in e)
            status = (folder / "stat").read_text()
        except OSError:
            continue
        if f"run={run}".encode() in words and b"python" in words[0] and b"torch.distributed.run" not in words:
            pid = int(folder.name)
            rank[pid] = int(environment.get(b"LOCAL_RANK", environment.get(b"SLURM_PROCID", 0)))
            parent[pid] = int(status.rpartition(")")[2].split()[1])
    return {rank[pid]: pid for pid in rank if rank.get(parent[pid]) != rank[pid]}


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "trainer", "victim"), [("torchrun", "fsdp", 1), ("lightning", "ddp", 0)])
def test_a_killed_rank_ends_all_others(launcher: str, trainer: str, victim: int, base: Path, tmp_path: Path) -> None:
    run = f"{tmp_path.name}_{launcher}"
    python, *rest = command(
        base, run, FOREVER, f"trainer={trainer}", "trainer.devices=2", "scale.num_workers=0", "~callbacks.camera",
    )  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if launcher == "torchrun" else []
    last = tmp_path / "runs" / "motion_lora" / run / "checkpoints" / "last.ckpt"
    with started([python, *torchrun, *rest], cwd=tmp_path) as process:
        wait_until(last.exists, process)
        pids = ranks(run)
        try:
            assert pids.keys() == {0, 1}
            os.kill(pids[victim], signal.SIGKILL)
            killed = time.monotonic()
            assert process.wait(timeout=LONGEST) != 0
            while ranks(run) and time.monotonic() < killed + LONGEST:
                time.sleep(0.1)
            assert ranks(run) == {}, "a process outlives the run"
        finally:
            for pid in ranks(run).values():
                os.kill(pid, signal.SIGKILL)
    print(f"{launcher}, {trainer}, rank {victim}: over after {time.monotonic() - killed:.1f} s")
    assert torch.load(last, weights_only=True)["global_step"] % 5 == 0


# As the real one with --kill-on-bad-exit: the first that fails ends the others, with all that they have started.
SRUN = """#!/bin/bash
[ "$1 $2" = "--kill-on-bad-exit=1 --cpus-per-task=3" ] && shift 2 || exit 3
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank setsid "$@" & pids="$pids $!"
done
for each in $pids; do
    wait -n || { status=1; for pid in $pids; do kill -KILL -- -$pid; done; }
done
exit ${status:-0}
"""


@pytest.mark.slow
def test_a_slurm_job_at_its_time_limit_saves_and_goes_back_into_the_queue(base: Path, tmp_path: Path) -> None:
    called, job, programs = tmp_path / "called", f"{os.getpid()}", tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", f'#!/bin/sh\nsleep 3\necho "$@" >> {called}\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    slurm = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "SLURM_JOB_ID": job,
        "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1",
        "SLURM_CPUS_PER_TASK": "3", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip

    def sbatch(steps: int) -> list[str]:
        _, _, *settings = command(base, job, steps, "trainer=fsdp", f"paths.runs={tmp_path / 'runs'}")
        return ["bash", "recipes/train.sbatch", *(each for each in settings if not each.startswith("run="))]

    last = tmp_path / "runs" / "motion_lora" / job / "checkpoints" / "last.ckpt"
    with started(sbatch(FOREVER), cwd=ROOT, env={**os.environ, **slurm}) as first:
        wait_until(last.exists, first)
        os.killpg(ranks(job)[1], signal.SIGUSR1)  # with its loader process; one of the two is enough
        assert first.wait(timeout=LONGEST) == 1
    assert called.read_text() == f"requeue {job}\n"
    saved = torch.load(last, weights_only=True)
    step = saved["global_step"]
    assert saved["StreamData"] == {"clips": step * 2 * 2, "dataset": None, "seed": 0}
    with started(sbatch(step + 2), cwd=ROOT, env={**os.environ, **slurm}) as again:
        assert again.wait(timeout=LONGEST) == 0, read_errors(again)[-2000:]
    assert sorted(losses(last.parents[1])) == [step, step + 1]


@pytest.mark.slow
def test_a_sweep_through_submitit_leaves_a_run_a_job(base: Path, tmp_path: Path) -> None:
    _, script, *settings = command(base, "sweep", 1, "model.rank=2,4")
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=20", "hydra.sweep.subdir=${hydra.job.num}"]
    done = forked.run(script, "-m", *launcher, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = (tmp_path / "runs" / "motion_lora" / "sweep" / job / "lora.safetensors" for job in "01")
    assert small.stat().st_size < large.stat().st_size


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.sbatch")), ids=lambda path: path.stem)
def test_a_recipe_passes_its_cores_on_to_srun(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    (tmp_path / "srun").chmod(0o755)
    slurm = {f"SLURM_{name}": "3" for name in ("NTASKS", "NTASKS_PER_NODE", "NNODES", "JOB_ID", "CPUS_PER_TASK")}
    subprocess.run(["bash", recipe], env={**slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    assert "--cpus-per-task=3 " in (tmp_path / "called").read_text()
