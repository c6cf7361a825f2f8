"""Compare Eq. 4, the warped image, and both, at equal training: python experiments/embedded_base/conditioning.py

It trains four small bases from random weights that differ in the conditioning only, and evaluates them, and the plain
warp, with the whole motion field given. Started again after a kill, it continues. It needs the autoencoder of make.py,
or any pipeline folder with an untrained UNet.
"""

import argparse
from pathlib import Path

from make import ROOT, call, train

KINDS = {
    "attention_only": ("Eq. 4",),
    "attention_only_own_keys": ("Eq. 4, keys from the field", "conditioning.motion_keys=field"),
    "warped_only": ("warped frame",),
    "full": ("both",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, default=ROOT / "runs/embedded_base/tiny_autoencoder/base/pipeline")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "conditioning")
    parser.add_argument("--steps", type=int, default=400, help="of training, for each of the four")
    parser.add_argument("--clips", type=int, default=1600, help="of training")
    parser.add_argument("--n", type=int, default=64, help="held-out clips")
    parser.add_argument("--side", type=int, default=64, help="px")
    args = parser.parse_args()
    start, runs = args.start.resolve(), args.runs.resolve()
    if not (start / "model_index.json").is_file():
        parser.error(f"--start {start} is no pipeline folder: run experiments/embedded_base/make.py first")
    size = [f"scale.height={args.side}", f"scale.width={args.side}"]
    latents = runs / "latents"
    call("-m", "motionanim.data.encode", f"scale.base={start}", f"out={latents}", f"clips={args.clips}", *size)
    shared = [f"trainer.max_steps={args.steps}", f"trainer.val_check_interval={args.steps}"]
    evaluation = [f"paths.runs={runs}", "name=report", f"n={args.n}", "method.request=exact", *size]
    for name, (label, *changes) in KINDS.items():
        kind = name.removesuffix("_own_keys")
        made = train(
            "tiny_base", runs, f"conditioning={kind}", *changes, f"scale.base={start}", f"data.latents={latents}",
            f"model.decay_steps={args.steps // 3}", *shared, *size,
            name=f"{name}_{args.steps}",  # other lengths of training are other runs
        )  # fmt: skip
        call(
            "evaluate.py", f"conditioning={kind}", *changes, "conditioning.refiner=false", f"method.label='{label}'",
            f"scale.base={made}", "long_video=direct", *evaluation,
        )  # fmt: skip
    call("evaluate.py", "method=warp", *evaluation)
    print(f"done: {runs / 'evaluate' / 'report' / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
