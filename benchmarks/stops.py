"""Stops a training in every way we know, resumes it, and compares what was kept and its losses with a whole run's.

python benchmarks/stops.py [--steps 200] [--only WORD] [--report benchmarks/stops.md]

Each case runs the real command in its own fork of a process that has imported everything. It trains the LoRA of the
embedded base on clips of 32 x 32 px, is stopped near the middle, and resumes by `ckpt_path=auto`. Losses are compared
as metrics.csv prints them, so that equal means equal to the last digit.
"""

import argparse
import contextlib
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from stopping import COLUMNS, EVERY, Bench, Row, Training, losses, short, small_disk, step_of

import motionanim.training.motion_lora as motion_lora
import motionanim.training.runs.checkpoints as checkpoints
from motionanim.data.synthetic.clips import SyntheticClips


def at_step(step: int, action: Callable[[motion_lora.DiffusionModule], object]) -> Callable[[], None]:
    """Makes the training process do something before the batch of a step, which no config can."""

    def install() -> None:
        losses = motion_lora.DiffusionModule.losses

        def changed(self, *args, **options):
            if self.training and self.global_step == step:
                made = action(self)
                if made is not None:
                    return torch.full((1,), made, requires_grad=True), torch.ones(1)
            return losses(self, *args, **options)

        motion_lora.DiffusionModule.losses = changed

    return install


def slow_save() -> None:
    """Every checkpoint stays half written for two seconds."""
    save = torch.save

    def half(value, file) -> None:
        file.write(b"half of it")
        file.flush()
        time.sleep(2)
        file.seek(0)
        save(value, file)

    checkpoints.torch.save = half


def broken_weights(module: motion_lora.MotionLoraModule) -> None:
    """From the next step on, every optimizer step leaves infinity, as an exploding gradient does."""
    step = module.optimizer_step

    def explode(*args, **options) -> None:
        step(*args, **options)
        next(p for p in module.parameters() if p.requires_grad).data.fill_(torch.inf)

    module.optimizer_step = explode


def files_up_to(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def child_of(training: Training) -> int:
    """The process that the training started last, which is its loader."""
    return int(Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()[-1])


def stopped_by_signals(bench: Bench) -> Iterator[Row]:
    kill, term, user, ctrl_c = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
    for what, name, numbers in (
        ("kill -9", "kill", (kill,)), ("SIGTERM", "term", (term,)), ("SIGUSR1 (SLURM's time limit)", "usr1", (user,)),
        ("Ctrl-C", "ctrlc", (ctrl_c,)), ("SIGTERM and kill -9 after 0.3 s", "termkill", (term, kill)),
    ):  # fmt: skip
        yield bench.row(what, bench.started(name).kill(*numbers).wait(), name)
    run = bench.started("twice")
    os.killpg(run.pid, ctrl_c)
    time.sleep(0.01)
    yield bench.row("Ctrl-C twice", run.kill(ctrl_c).wait(), "twice")
    run = bench.train("writing", before=slow_save)
    run.wait(bench.until("writing", bench.half))
    run.wait(lambda: list(bench.run("writing").glob("checkpoints/.last.*"))).kill(kill)
    yield bench.row("kill -9 while a checkpoint is written", run.wait(), "writing")
    run = bench.started("between").kill(kill).wait()
    (bench.run("between") / "checkpoints" / "last.ckpt").unlink()
    yield bench.row("kill -9 between the two renames of a checkpoint", run, "between")
    run = bench.started("damaged").kill(kill).wait()
    last = bench.run("damaged") / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    yield bench.row("last.ckpt damaged by hand; `auto`", run, "damaged")
    yield bench.row(
        "the same, by the name of previous.ckpt", run, "damaged", resume=str(last.with_name("previous.ckpt"))
    )
    run = bench.started("loader")
    os.kill(child_of(run), kill)
    yield bench.row("kill -9 of the loader process", run.wait(), "loader")
    often = [f"trainer.val_check_interval={bench.half}", "sampling.num_steps=400"]
    run = bench.train("preview", *often)
    run.wait(lambda: list(bench.run("preview").glob("hparams.yaml")) and bench.until("preview", bench.half)())
    yield bench.row("SIGTERM in a preview", run.kill(term).wait(), "preview")
    run = bench.train("early").wait(lambda: (bench.run("early") / ".lock").exists()).kill(ctrl_c)
    yield bench.row("Ctrl-C before the first step", run.wait(), "early")
    run = bench.train("twokills").wait(bench.until("twokills", EVERY)).kill(kill).wait()
    run = bench.train("twokills", "ckpt_path=auto").wait(bench.until("twokills", bench.half)).kill(kill)
    yield bench.row("kill -9, resumed, kill -9", run.wait(), "twokills")


def stopped_by_faults(bench: Bench) -> Iterator[Row]:
    step = bench.half + 5
    run = bench.train("nan", before=at_step(step, lambda _: float("nan")))
    yield bench.row("a NaN loss (as by one broken clip)", run.wait(), "nan")
    run = bench.train("inf", before=at_step(bench.half // EVERY * EVERY + EVERY - 2, broken_weights))
    yield bench.row("infinite weights in a step that saves", run.wait(), "inf")
    run = bench.train("fsize", before=at_step(step, lambda _: files_up_to(100_000)))
    yield bench.row("no file may grow (RLIMIT_FSIZE)", run.wait(), "fsize")
    with small_disk(24) as disk:
        bench.run("full").symlink_to(disk)
        run = bench.started("full")
        with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        run.wait()
        (disk / "filler").unlink()
        yield bench.row("a full disk", run, "full")
        bench.run("full").unlink()

    def lost(_: object) -> None:
        SyntheticClips.__getitem__ = lambda *_: (_ for _ in ()).throw(
            OSError(5, "Input/output error", "/data/clip.mp4")
        )

    run = bench.train("lost", "scale.num_workers=0", before=at_step(step, lost))
    yield bench.row("the disk of the data is gone", run.wait(), "lost", "scale.num_workers=0")
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40}
    run = bench.train("nowandb", WANDB_BASE_URL="http://127.0.0.1:9", **online).wait()
    yield Row("W&B refuses connections", short(run), {}, bench.compared("nowandb", run))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        run = bench.train("mute", WANDB_BASE_URL=url, **online).wait(bench.until("mute", EVERY))
        first = time.monotonic() - began
        run.wait()
    yield Row(
        f"W&B accepts and never answers (step {EVERY} after {first:.0f} s)", short(run), {}, bench.compared("mute", run)
    )


def changed_settings(bench: Bench) -> Iterator[Row]:
    for what, word in (
        ("model.lr", "model.lr=1e-4"), ("model.weight_decay", "model.weight_decay=0.1"),
        ("model.sigma_mean", "model.sigma_mean=0.5"), ("data", "data=synthetic_panning"),
        ("trainer.precision", "trainer.precision=bf16-mixed"), ("model.rank", "model.rank=4"), ("seed", "seed=1"),
        ("data.num_workers", "scale.num_workers=0"),
    ):  # fmt: skip
        name = what.replace(" ", "").replace(".", "")
        yield bench.row(f"kill -9, then other {what}: `{word}`", killed(bench, name), name, *word.split())
    # Two processes of one clip are a step of two clips: another run, which goes on with the next clip.
    name = "world"
    words = "trainer=ddp", "trainer.devices=2"
    row = bench.row("kill -9, then two processes", killed(bench, name), name, *words)
    clips = torch.load(bench.run(name) / "checkpoints" / "last.ckpt", weights_only=True)["StreamData"]["clips"]
    yield row._replace(note=f"{clips} clips were trained on")


def killed(bench: Bench, name: str) -> Training:
    return bench.started(name).kill(signal.SIGKILL).wait()


def two_at_once(bench: Bench) -> Iterator[Row]:
    first = bench.train("two").wait(bench.until("two", EVERY))
    second = bench.train("two", "ckpt_path=auto").wait()
    first.wait()
    yield Row("a second one in the folder of a training", short(second), {}, bench.compared("two", first))
    again = bench.train("two").wait()
    yield Row("the same command once more", short(again), {}, bench.compared("two", first))
    both = [Training(bench.folder, f"trainer.max_steps={EVERY}") for _ in range(2)]
    folders = {line for run in both for line in run.wait().told() if line.startswith("done: ")}
    yield Row("two at once without run=NAME", short(both[0]), {}, "", f"{len(folders)} folders")
    words = ["-m", "model.alpha=16,8"]
    run = bench.train("sweep", *words).wait(bench.until("sweep/0", bench.half)).kill(signal.SIGKILL).wait()
    row = bench.row("kill -9 of a sweep; `auto`", run, "sweep", *words)
    kept = {"last.ckpt": step_of(bench.run("sweep/0") / "checkpoints" / "last.ckpt")}
    equal = sum(losses(bench.run("sweep/0")).get(step) == loss for step, loss in bench.losses.items())
    note = f"of job 0; job 1 has {len(losses(bench.run('sweep/1')))} steps"
    yield row._replace(kept=kept, after=f"{equal} of {bench.steps}", note=note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="", help="cases whose group has this word in its name")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    groups = [stopped_by_signals, stopped_by_faults, changed_settings, two_at_once]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    folder = Path(tempfile.mkdtemp())
    try:
        bench = Bench(folder, args.steps)
        for group in groups:
            for row in group(bench) if args.only in group.__name__ else ():
                lines.append(f"| {' | '.join(row.cells())} |")
                print(lines[-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.report:
        about = __doc__.split("\n\n")[2]
        head = ["# Runs that were stopped", "", f"`python benchmarks/stops.py --steps {args.steps}`", "", about]
        args.report.write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
