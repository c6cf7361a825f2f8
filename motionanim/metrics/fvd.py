"""Fréchet video distance of generated from real clips, by features such as `i3d.I3DFeatures` gives."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from motionanim.metrics.base import SumMetric
from motionanim.metrics.frechet import frechet_distance, jackknife, moments

Sums = tuple[Tensor, Tensor, Tensor]  # of some clips: () their number, (D,) their features, (D, D) outer products

_ALL, _EVEN, _ODD = slice(None), slice(0, None, 2), slice(1, None, 2)


def distance(fake: Sums, real: Sums, *, ddof: int) -> Tensor:
    """Fréchet distance between two sums of clips, () float64; NaN if either has fewer than 2 clips."""
    if min(fake[0], real[0]) < 2:
        return torch.tensor(torch.nan, dtype=torch.float64)
    return frechet_distance(*moments(*fake, ddof=ddof), *moments(*real, ddof=ddof))


class FVD(SumMetric):
    """FVD of pairs of a generated and a real clip, from sums: the same however the clips were spread over processes.

    A generated clip begins with its real clip's first frame, so fake and real are no independent samples, which lowers
    the distance. And each distance has a bias that grows as clips get fewer, so only distances of equally many clips
    compare: `value` with others' of n clips; `half`, `disjoint` and `floor`, of n/2 clips, with each other.

    - value: All fake clips against all real ones, as others print it.
    - corrected: `value` without its bias in 1/n, by the jackknife over groups. It may fall below 0.
    - low, high: The 95 % interval of `corrected`. NaN unless more than D clips remain without any one group.
    - half: Fake clips of the even groups against real ones of the even groups, and so the odd ones, averaged.
    - disjoint: Fake clips of the even groups against real ones of the odd groups, and the reverse, averaged.
    - floor: Real clips of the even groups against real ones of the odd groups.
    - n: Clips.

    Simulated in experiments/fvd_interval: once n is above D, `corrected` is right within a few per cent and the
    interval holds the truth in 9 of 10 draws. For n below D the bias is not in 1/n: `corrected` lies between the truth
    and `value`, often near `value`, and an interval about it can miss the truth every time; hence its NaN.

    Args:
        dim: D, numbers in a feature, at least 1.
        groups: G of the jackknife, even and at least 2; 32 is usual.
        ddof: Covariances divide by n - ddof, 0 or 1, as the features' protocol says.

    Raises:
        ValueError: If an argument is not as above.
    """

    count: Tensor  # (G,) clips
    total: Tensor  # (2, G, D), fake and real
    outer: Tensor  # (2, G, D, D)

    def __init__(self, *, dim: int, groups: int, ddof: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: must be at least 1")
        if groups < 2 or groups % 2:
            raise ValueError(f"groups={groups}: must be even and at least 2, such as 32")
        if ddof not in (0, 1):
            raise ValueError(f"ddof={ddof}: must be 0 or 1")
        self.dim, self.groups, self.ddof = dim, groups, ddof
        self.add_sum("count", groups)
        self.add_sum("total", 2, groups, dim)
        self.add_sum("outer", 2, groups, dim, dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        # Sums go to another device with the module, but never to another type: float64 in one process and bfloat16 in
        # another cannot be added up.
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), exclude_state)

    def update(self, fake: Tensor, real: Tensor, group: Tensor) -> None:
        """Add pairs of clips.

        Args:
            fake: (B, D) features of the generated clips.
            real: (B, D) features of the real clips they belong to.
            group: (B,) integers in [0, G): each clip's place in the benchmark modulo G, whichever process has it.

        Raises:
            ValueError: If a shape or a group is not as above, or a feature is not finite.
        """
        if fake.ndim != 2 or fake.shape[1] != self.dim or real.shape != fake.shape or group.shape != fake.shape[:1]:
            raise ValueError(
                f"fake {tuple(fake.shape)}, real {tuple(real.shape)}, group {tuple(group.shape)}: "
                f"must be (B, {self.dim}), (B, {self.dim}) and (B,)"
            )
        if group.is_floating_point() or ((group < 0) | (group >= self.groups)).any():
            raise ValueError(f"group={group.tolist()}: must be integers in [0, {self.groups - 1}]")
        device = self.total.device
        features = torch.stack([fake.to(device, torch.float64), real.to(device, torch.float64)])
        broken = ~features.isfinite().all(-1)
        if broken.any():
            raise ValueError(
                f"features of clips {broken.any(0).nonzero().flatten().tolist()} of this batch are not finite: one of "
                "them would make the whole score NaN"
            )
        # In place, unlike `accumulate`: adding one clip must not copy all G * D * D sums.
        for index in group.unique().tolist():
            members = features[:, group.to(device) == index]
            self.count[index] += members.shape[1]
            self.total[:, index] += members.sum(1)
            self.outer[:, index] += members.mT @ members

    def compute(self) -> dict[str, Tensor]:
        """The numbers of the class, () float64. Where too few clips leave one undefined it is NaN.

        `half`, `disjoint` and `floor` need 2 clips in the even groups and 2 in the odd ones, `corrected` needs 2
        whichever group is left out.

        Raises:
            ValueError: If there are fewer than 2 clips in all.
        """
        count, total, outer = self.count.cpu(), self.total.cpu(), self.outer.cpu()
        if count.sum() < 2:
            raise ValueError(f"FVD of {int(count.sum())} clips, in all processes: at least 2 are needed")

        def sums(side: int, groups: slice) -> Sums:
            return count[groups].sum(), total[side, groups].sum(0), outer[side, groups].sum(0)

        def without(whole: Sums, side: int, group: int) -> Sums:
            return whole[0] - count[group], whole[1] - total[side, group], whole[2] - outer[side, group]

        def between(first: Sums, second: Sums) -> Tensor:
            return distance(first, second, ddof=self.ddof)

        fake, real = sums(0, _ALL), sums(1, _ALL)
        fake_even, fake_odd, real_even, real_odd = (sums(side, half) for side in (0, 1) for half in (_EVEN, _ODD))
        value = between(fake, real)
        used = count.nonzero().flatten().tolist()
        left_out = torch.stack([between(without(fake, 0, group), without(real, 1, group)) for group in used])
        corrected, low, high = jackknife(value, left_out, count[used])
        if count.sum() - count.max() <= self.dim:
            low = high = torch.full_like(corrected, torch.nan)
        result = {
            "value": value,
            "corrected": corrected,
            "low": low,
            "high": high,
            "half": (between(fake_even, real_even) + between(fake_odd, real_odd)) / 2,
            "disjoint": (between(fake_even, real_odd) + between(fake_odd, real_even)) / 2,
            "floor": between(real_even, real_odd),
            "n": count.sum(),
        }
        return {key: number.to(self.total.device) for key, number in result.items()}
