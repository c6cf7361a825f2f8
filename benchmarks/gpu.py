"""Measure, test and train on a GPU: python benchmarks/gpu.py --minutes 10 --out FOLDER [KEY=VALUE ...] [--parts ...]

It measures the machine's ceilings, runs the tests marked gpu, measures the cost of Stable Video Diffusion's size, and
trains the embedded base for the rest of the time. Each part is a process with a share of the time; it writes its own
file in FOLDER after every figure. The same command again keeps these figures, adds missing ones and continues training.

python benchmarks/gpu.py --take FOLDER     copies the report into benchmarks/ and better weights into the assets.

It needs no network; benchmarks/gpu.md lists what a bare machine lacks. A KEY must be in both conf/animate.yaml and
conf/train.yaml.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
GRACE = 8.0  # seconds that a part may run over its time before it is killed
LEAST = 25.0  # seconds for every step; imports take up to ten of them


class Step(NamedTuple):
    """A process of a part."""

    part: str
    module: str  # of gpu_parts
    share: float  # of the minutes; time that a step leaves goes to the later ones
    overrides: bool  # whether it reads the configuration
    on_cpu: bool = True  # whether a CPU can do it in minutes


STEPS = (
    Step("machine", "machine", 0.05, False),
    Step("tests", "tests", 0.2, False),
    Step("full_scale", "attention", 0.05, False),
    Step("full_scale", "svd_size", 0.3, True),
    Step("full_scale", "compiled", 0.15, True, on_cpu=False),
    Step("train", "train", 1.0, True),
)
PARTS = tuple(dict.fromkeys(step.part for step in STEPS))


def run_step(step: Step, args: argparse.Namespace, until: float) -> str | None:
    """Run one process until it ends or its time is over; the reason if it failed, else None."""
    command = [
        sys.executable, "-m", f"gpu_parts.{step.module}", "--out", str(args.out), "--device", args.device, "--until",
        str(until), *(args.overrides if step.overrides else []),
    ]  # fmt: skip
    if step.part == "train" and args.source is not None:
        command += ["--from", str(args.source)]
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    # The pipe to its standard input closes when this process ends, even by a kill, and the child then ends too. It has
    # its own process group, so that its loader processes can be killed with it.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, cwd=HERE.parent, start_new_session=True)
    try:
        status = process.wait(timeout=max(until + GRACE - time.time(), 1))
    except subprocess.TimeoutExpired:
        return "stopped: its time was over"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return None if status == 0 else f"ended with exit code {status}"


def measure(args: argparse.Namespace) -> None:
    """All parts, their report, and a summary on the screen."""
    from gpu_parts.report import report, summary
    from gpu_parts.results import check_settings, read_rows

    begin = time.time()
    over = begin + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        read_rows(args.out / f"{part}.json")  # raises if the file is not a part's, before any time is spent
    check_settings(args.out, args.device, args.overrides)
    notes: dict[str, str] = {}
    chosen = [step for step in STEPS if step.part in args.parts and (step.on_cpu or args.device == "cuda")]
    for step in chosen:
        last = step is chosen[-1]
        share = over if last else time.time() + max(LEAST, step.share * 60 * args.minutes)
        until = min(over, share)
        print(f"{step.part} ({step.module}): {max(0, until - time.time()):.0f} s at most", flush=True)
        failed = run_step(step, args, until)
        if failed:
            notes[f"{step.part} ({step.module})"] = failed
            print(f"  {step.part} ({step.module}) {failed}; the next part begins", flush=True)
        report(args.out, notes)
    print("\n".join(summary(args.out, notes, minutes=(time.time() - begin) / 60)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    parser.add_argument("--out", type=Path, help="folder of the results, new or of an earlier call")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--from", dest="source", type=Path, help="results whose training continues in --out")
    parser.add_argument("--take", type=Path, metavar="FOLDER", help="results to copy into the project")
    parser.add_argument("--assets", type=Path, default=HERE.parent / "motionanim" / "assets" / "tiny-svd")
    parser.add_argument("--reports", type=Path, default=HERE, help="where --take puts the report")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.take is not None:
        from gpu_parts.take import take

        try:
            print("\n".join(take(args.take, reports=args.reports, assets=args.assets)))
        except (ValueError, OSError) as error:
            parser.error(str(error))
        return
    if args.out is None:
        parser.error("--out is missing: give a folder for the results")
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes}: must be above 0")
    if wrong := [text for text in args.overrides if "=" not in text]:
        parser.error(f"{wrong[0]}: settings are KEY=VALUE, such as scale.height=64")
    if args.source is not None and not (args.source / "train.json").is_file():
        parser.error(f"--from {args.source}: holds no train.json of an earlier call")
    for name in ("out", "source"):
        if getattr(args, name) is not None:
            setattr(args, name, getattr(args, name).resolve())
    try:
        measure(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
