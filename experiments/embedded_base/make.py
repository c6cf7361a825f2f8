"""The embedded base from nothing: python experiments/embedded_base/make.py. Killed and started again, it goes on.

Autoencoder, latents of the procedural world, base, and a copy of the result. Stages that are done are skipped, one that
was interrupted resumes from its checkpoint. Everything else is in conf/experiment/tiny_*.yaml.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIPS = 3200  # of training, rendered and encoded beforehand: 1.3 MB each


def train(experiment: str, runs: Path, *overrides: str, name: str = "base") -> Path:
    """One experiment, resumed if it has a checkpoint; the pipeline folder that it exports."""
    run = runs / experiment / name
    # The last file of an export: an interrupted one is made again.
    last = "motion/config.json" if experiment == "tiny_base" else "model_index.json"
    if not (run / "pipeline" / last).is_file():
        checkpoint = run / "checkpoints" / "last.ckpt"
        resume = [f"ckpt_path={checkpoint}"] if checkpoint.is_file() else []
        call("train.py", f"experiment={experiment}", f"paths.runs={runs}", f"run={name}", *overrides, *resume)
    return run / "pipeline"


def call(*command: str) -> None:
    print("$ python", *command, flush=True)
    status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "embedded_base", help="checkpoints and logs")
    parser.add_argument("--out", type=Path, default=ROOT / "motionanim" / "assets" / "tiny-svd")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("overrides", nargs="*", default=[], help="of every stage, such as scale.num_frames=8")
    args = parser.parse_args()
    runs, overrides = args.runs.resolve(), args.overrides
    autoencoder = train("tiny_autoencoder", runs, *overrides)
    shared = [override for override in overrides if override.startswith(("scale.", "conditioning.", "data."))]
    latents = runs / "latents"
    call("-m", "motionanim.data.encode", f"scale.base={autoencoder}", f"out={latents}", f"clips={args.clips}", *shared)
    made = train("tiny_base", runs, *overrides, f"scale.base={autoencoder}", f"data.latents={latents}")
    for part in made.iterdir():  # beside the card, which stays
        target = args.out / part.name
        if part.is_dir():
            shutil.copytree(part, target, dirs_exist_ok=True)
        else:
            args.out.mkdir(parents=True, exist_ok=True)
            shutil.copy2(part, target)
    print(f"done: {args.out}")


if __name__ == "__main__":
    main()
