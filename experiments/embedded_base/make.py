"""Make the embedded base from random weights: python experiments/embedded_base/make.py

It trains the autoencoder, encodes the procedural world, trains the base and copies it. Started again after a kill, it
skips finished stages and resumes the interrupted one. All settings are in conf/experiment/tiny_*.yaml.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIPS = 3200  # training clips, rendered and encoded beforehand, 1.3 MB each


def train(experiment: str, runs: Path, *overrides: str, name: str = "base") -> Path:
    """Run an experiment, from its checkpoint if it has one; the pipeline folder that it exports."""
    run = runs / experiment / name
    # An export is finished once its last file exists.
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
    for part in made.iterdir():  # the model card in the target stays
        target = args.out / part.name
        if part.is_dir():
            shutil.copytree(part, target, dirs_exist_ok=True)
        else:
            args.out.mkdir(parents=True, exist_ok=True)
            shutil.copy2(part, target)
    print(f"done: {args.out}")


if __name__ == "__main__":
    main()
