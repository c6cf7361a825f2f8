"""Check FVD's interval: python experiments/fvd_interval/simulate.py [--draws 100] [--dim 100] [--report FILE]

It scores n pairs of features from two normal distributions of known Fréchet distance by `motionanim.metrics.fvd.FVD`.
Reported are the means of `value` and `corrected`, and how often the interval holds the true distance. If n is too small
for the metric to give an interval, the interval of the jackknife is counted, to show why the metric gives none.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from motionanim.metrics.frechet import frechet_distance, jackknife
from motionanim.metrics.fvd import FVD

GROUPS, PAIRED = 32, 0.5  # correlation of a pair's two features


def simulate(dim: int, n: int, power: float, equal: bool, draws: int) -> dict[str, float]:
    """Means over draws, for variances that fall like k^-power."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    spread = torch.arange(1, dim + 1, dtype=torch.float64) ** (-power / 2)
    mean, turn, stretch = torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64), torch.ones(dim)
    if not equal:
        tilt = normal(dim, dim)
        mean, turn = 0.5 * spread * normal(dim), torch.matrix_exp(0.3 * (tilt - tilt.T) / dim**0.5)
        stretch = 1 + 0.3 * torch.rand(dim, generator=generator)
    shape = turn @ (spread * stretch).diag()
    truth = frechet_distance(mean, shape @ shape.T, torch.zeros(dim), (spread**2).diag())
    group, found = torch.arange(n) % GROUPS, []
    for _ in range(draws):
        shared = normal(n, dim)
        own = PAIRED * shared + (1 - PAIRED**2) ** 0.5 * normal(n, dim)
        fake, real = mean + own @ shape.T, shared * spread
        metric = FVD(dim=dim, groups=GROUPS, ddof=1)
        metric.update(fake, group, real=False)
        metric.update(real, group, real=True)
        scores = metric.compute()
        given, used = bool(scores["low"].isfinite()), scores["share"] > 0
        ends = jackknife(scores["value"], scores["left_out"][used], scores["share"][used])
        found.append(torch.stack([scores["value"], *ends]))
    value, corrected, low, high = torch.stack(found).T
    inside = ((low <= truth) & (truth <= high)).double().mean()
    return {"truth": truth, "value": value.mean(), "corrected": corrected.mean(), "inside": inside, "given": given}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    lines = [
        f"{args.dim} features, {args.draws} draws a row, pairs correlated by {PAIRED}, {GROUPS} groups; "
        f"{time.strftime('%Y-%m-%d')}.", "",
        "| variances | n | truth | value | corrected | interval holds the truth | FVD gives an interval |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    settings = [
        (power, equal, round(share * args.dim)) for power in (0.0, 1.0, 2.0) for equal in (False, True)
        for share in (0.5, 0.8, 1.12, 2, 4)
    ]  # fmt: skip
    for power, equal, n in tqdm(settings):
        row = simulate(args.dim, n, power, equal, args.draws)
        kind = f"k^-{power:g}" + (", equal" if equal else "")
        lines.append(
            f"| {kind} | {n} | {row['truth']:.2f} | {row['value']:.2f} | {row['corrected']:.2f} | "
            f"{row['inside']:.0%} | {'yes' if row['given'] else 'no'} |"
        )
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
