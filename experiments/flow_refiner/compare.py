"""How far from the true field are T and what it starts from? Writes errors.json and examples.png beside this file.

python experiments/flow_refiner/compare.py "T=FILE" "T, no image=FILE"    (files that experiment=flow_refiner left)
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from motionanim.data.synthetic import SyntheticFlowPairs
from motionanim.hints import sample_hint
from motionanim.interval import mean_interval
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.pictures import flow_to_rgb, write_picture

HERE = Path(__file__).resolve().parent
SIGMA, R, ARROWS = 170 / 512, 0.05, 8  # Sec. 3.2; at most this many arrows
HINTS = {
    "as printed": {"edge": "cut", "threshold_on": "magnitude", "normalized": False},
    "averaged, cut": {"edge": "cut", "threshold_on": "weight", "normalized": True},
    "exact, cut": {"edge": "cut", "threshold_on": "weight", "normalized": "exact"},
    "exact, fills the mask": {"edge": "soft", "threshold_on": "weight", "normalized": "exact"},
}
GIVEN = list(HINTS)[-1]  # to T, here and by `controls`


def all_hints(flow: Tensor, mask: Tensor, generator: np.random.Generator) -> Tensor:
    """The hints of the same arrows, (2 * len(HINTS), H, W)."""
    seed = int(generator.integers(2**31))
    hint = partial(sample_hint, flow, mask, max_points=ARROWS, sigma=SIGMA, threshold=R)
    return torch.cat([hint(np.random.default_rng(seed), **options) for options in HINTS.values()])


def error(flow: Tensor, true: Tensor, mask: Tensor) -> float:
    """End-point error over the movable pixels, px per frame."""
    return float((torch.linalg.vector_norm(flow - true, dim=0) * mask[0]).sum() / mask.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("refiners", nargs="*", metavar="LABEL=FILE")
    parser.add_argument("--n", type=int, default=400, help="held-out scenes")
    parser.add_argument("--side", type=int, default=64, help="px")
    parser.add_argument("--examples", type=int, default=6)
    args = parser.parse_args()
    refiners = {label: FlowRefiner.load(file).eval() for label, file in (each.split("=", 1) for each in args.refiners)}
    scenes = SyntheticFlowPairs(
        seed=1, length=args.n, height=args.side, width=args.side, split="val", hint=all_hints
    )  # fmt: skip
    errors: dict[str, list[float]] = {}
    rows = []
    for position in tqdm(range(args.n), desc="scenes"):
        pair = scenes[position]
        if not pair.mask.any():
            continue
        fields = {"no motion": torch.zeros_like(pair.flow), **dict(zip(HINTS, pair.hint.split(2), strict=True))}
        for label, refiner in refiners.items():
            fields[label] = refiner.refine(pair.image[None], fields[GIVEN][None], pair.mask[None])[0]
        for label, field in fields.items():
            errors.setdefault(label, []).append(error(field, pair.flow, pair.mask))
        if len(rows) < args.examples:
            shown = [fields[GIVEN], *(fields[label] for label in refiners), pair.flow]
            rows.append(torch.cat([pair.image, *flow_to_rgb(torch.stack(shown))], dim=-1))
    given = np.array(errors[GIVEN])
    table = {
        label: {"error": mean_interval(values), "less_than_given": mean_interval(given - np.array(values))}
        for label, values in errors.items()
    }
    (HERE / "errors.json").write_text(json.dumps(table, indent=1) + "\n")
    picture = torch.cat(rows, dim=-2)
    write_picture(HERE / "examples.png", picture.repeat_interleave(2, -2).repeat_interleave(2, -1))
    print(f"{'':24} error, px per frame     less than '{GIVEN}'")
    for label, row in table.items():
        print("{:24} {:.3f} [{:.3f}, {:.3f}]".format(label, *row["error"][:3]), end="   ")
        print("{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["less_than_given"][:3]))


if __name__ == "__main__":
    main()
