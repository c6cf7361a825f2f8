"""Fréchet video distance between generated and real clips, on features such as those of `i3d.I3DFeatures`."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from motionanim.files import text_sha256
from motionanim.metrics.base import Column, Direction, SumMetric
from motionanim.metrics.frechet import frechet_distance, jackknife, moments

Sums = tuple[Tensor, Tensor, Tensor]  # over some clips: () their number, (D,) features, (D, D) outer products

_ALL, _EVEN, _ODD = slice(None), slice(0, None, 2), slice(1, None, 2)


class Variant(NamedTuple):
    """A further number of an FVD, under the key fvd_NAME_VARIANT."""

    part: str  # of `FVD.compute`
    name: str
    direction: Direction | None
    remark: str = ""


CORRECTED = "corrected"  # suffix of the key of the corrected distance, which has an interval
_HALVES = "of about half the clips against half of the real ones, so it compares with other halves only"
VARIANTS = {
    "half": Variant("half", "half: paired", "lower", _HALVES),
    "disjoint": Variant("disjoint", "half: other real clips", "lower", _HALVES),
    "floor": Variant("floor", "half: real against real", None, _HALVES),
}
# Extractors whose distance has a name of its own; other distances are "FVD" and the extractor's name.
_NAMES = {"videomae": "FVD VideoMAE", "jedi": "JEDi", "fvmd": "FVMD"}
_KEY = re.compile(rf"(?P<kind>fvd|fid)_(?P<features>.+?)(_(?P<variant>{'|'.join([CORRECTED, *VARIANTS])}))?")
_AS_PUBLISHED = "computed as published ones are, which is biased upwards: compare it at equal n only"


def fvd_key(name: str) -> str:
    """The key of the distance of record on a feature extractor: fvd_NAME; for features of frames, fid_..., NAME."""
    return name if name.startswith("fid_") else f"fvd_{name}"


def fvd_column(key: str) -> Column | None:
    """The column of fvd_NAME or fvd_NAME_VARIANT, where NAME is a feature extractor; None for other keys."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    name, which = match["features"], match["variant"]
    least = -math.inf if name == "fvmd" else 0  # see `published.fvmd`
    name = _NAMES.get(name, f"{match['kind'].upper()} {name.replace('_', ' ')}")
    if which is None:
        return Column(key, name, 1, "lower", "quality", remark=_AS_PUBLISHED, significant=4, range=(least, math.inf))
    if which == CORRECTED:
        return Column(key, f"{name}, bias removed", 1, "lower", "quality", significant=4)
    variant = VARIANTS[which]
    return Column(key, f"{name}, {variant.name}", 1, variant.direction, "frechet", remark=variant.remark, significant=4)


def group_of(clip: str, groups: int) -> int:
    """The jackknife group of a clip, in [0, groups): a hash of its id.

    The place in a list will not do: a benchmark that deals its categories in turn would have other categories in the
    even groups than in the odd ones.
    """
    return int(text_sha256(clip)[:8], 16) % groups


def fvd_of(key: str) -> str | None:
    """The key of the FVD as published, of its own key or that of the one without bias; None for other keys."""
    base = key.removesuffix(f"_{CORRECTED}")
    return base if is_fvd(base) else None


def is_fvd(key: str) -> bool:
    """Whether this is the key of an FVD as published rather than of a variant."""
    match = _KEY.fullmatch(key)
    return match is not None and match["variant"] is None


def distance(fake: Sums, real: Sums, *, ddof: int) -> Tensor:
    """Fréchet distance between two sets of clips, () float64; NaN if either has fewer than 2 clips."""
    if min(fake[0], real[0]) < 2:
        return torch.tensor(torch.nan, dtype=torch.float64)
    return frechet_distance(*moments(*fake, ddof=ddof), *moments(*real, ddof=ddof))


class FVD(SumMetric):
    """FVD of generated (fake) against real clips. The state is sums, so processes may share the clips.

    A generated clip begins with the first frame of its real clip, so paired fake and real clips are not independent,
    which lowers the distance. Each distance also has a bias that grows as clips get fewer, so only distances of equally
    many clips compare: `value` with that of other n clips; `half`, `disjoint` and `floor`, of n/2 clips, with each
    other.

    - value: All fake against all real clips, as published FVDs are.
    - corrected: `value` without its bias in 1/n, by the jackknife over groups. It may be negative.
    - low, high: The 95 % interval of `corrected`. NaN unless more than D clips of each side remain without any group.
    - half: Fake against real clips of the even groups, and of the odd groups, averaged.
    - disjoint: Fake clips of the even groups against real clips of the odd groups, and the reverse, averaged.
    - floor: Real clips of the even groups against real clips of the odd groups.
    - n, n_real: The number of fake and of real clips.
    - left_out: (G,) `value` without each group; NaN for a group without clips. `frechet.jackknife` of the differences
      between two methods on the same clips tells whether they differ.
    - share: (G,) the groups' shares of the clips.

    In the simulations of experiments/fvd_interval, with n above D, `corrected` is right within a few per cent and the
    interval holds the truth in 9 of 10 draws. With n below D the bias is not in 1/n: `corrected` lies between the truth
    and `value`, and an interval around it may always miss the truth, so there is none.

    Args:
        dim: D, length of a feature, at least 1.
        groups: G of the jackknife, even and at least 2; 32 is usual.
        ddof: Covariances divide by n - ddof, 0 or 1, as the features' protocol says.
        between: Another distance of two sets in place of Fréchet's, such as that of `published.jedi`.

    Raises:
        ValueError: If an argument is not as above.
    """

    count: Tensor  # (2, G) clips, fake and real
    total: Tensor  # (2, G, D)
    outer: Tensor  # (2, G, D, D)

    def __init__(
        self, *, dim: int, groups: int, ddof: int, between: Callable[[Sums, Sums], Tensor] | None = None
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: must be at least 1")
        if groups < 2 or groups % 2:
            raise ValueError(f"groups={groups}: must be even and at least 2, such as 32")
        if ddof not in (0, 1):
            raise ValueError(f"ddof={ddof}: must be 0 or 1")
        self.dim, self.groups, self.ddof = dim, groups, ddof
        self.between = between or partial(distance, ddof=ddof)
        self.add_sum("count", 2, groups)
        self.add_sum("total", 2, groups, dim)
        self.add_sum("outer", 2, groups, dim, dim)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        # Moves sums to the module's device but keeps float64: processes could not add sums of different types.
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), exclude_state)

    def update(self, features: Tensor, group: Tensor, *, real: bool) -> None:
        """Add clips of one side.

        Args:
            features: (B, D).
            group: (B,) integers in [0, G), `group_of` each clip. A fake and its real clip have the same group.
            real: Whether the clips are real.

        Raises:
            ValueError: If a shape or a group is not as above, or a feature is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dim or group.shape != features.shape[:1]:
            raise ValueError(
                f"features {tuple(features.shape)}, group {tuple(group.shape)}: must be (B, {self.dim}) and (B,)"
            )
        if group.is_floating_point() or ((group < 0) | (group >= self.groups)).any():
            raise ValueError(f"group={group.tolist()}: must be integers in [0, {self.groups - 1}]")
        features, side = features.to(self.total.device, torch.float64), int(real)
        broken = ~features.isfinite().all(-1)
        if broken.any():
            raise ValueError(
                f"features of clips {broken.nonzero().flatten().tolist()} of this batch are not finite and "
                "would make the whole score NaN"
            )
        # In place, unlike `accumulate`, because a copy of all G * D * D sums for each clip would be slow.
        for index in group.unique().tolist():
            members = features[group.to(features.device) == index]
            self.count[side, index] += len(members)
            self.total[side, index] += members.sum(0)
            self.outer[side, index] += members.T @ members

    def compute(self) -> dict[str, Tensor]:
        """The numbers of the class, float64; NaN where there are too few clips for one.

        `half`, `disjoint` and `floor` need 2 clips of a side in the even groups and 2 in the odd groups; `corrected`
        needs 2 without any one group.

        Raises:
            ValueError: If a side has fewer than 2 clips in all.
        """
        count, total, outer = self.count.cpu(), self.total.cpu(), self.outer.cpu()
        clips = count.sum(1)
        if clips.min() < 2:
            fakes, reals = map(int, clips)
            raise ValueError(f"FVD of {fakes} generated and {reals} real clips, in all processes: 2 of each are needed")

        def sums(side: int, groups: slice) -> Sums:
            return count[side, groups].sum(), total[side, groups].sum(0), outer[side, groups].sum(0)

        def without(whole: Sums, side: int, group: int) -> Sums:
            return whole[0] - count[side, group], whole[1] - total[side, group], whole[2] - outer[side, group]

        between = self.between
        fake, real = sums(0, _ALL), sums(1, _ALL)
        fake_even, fake_odd, real_even, real_odd = (sums(side, half) for side in (0, 1) for half in (_EVEN, _ODD))
        value, share = between(fake, real), count.sum(0) / count.sum()
        used = share.nonzero().flatten()
        left_out = torch.full_like(share, torch.nan)
        for group in used.tolist():
            left_out[group] = between(without(fake, 0, group), without(real, 1, group))
        corrected, low, high = jackknife(value, left_out[used], share[used])
        if (clips - count.amax(1)).min() <= self.dim:
            low = high = torch.full_like(corrected, torch.nan)
        result = {
            "value": value, "corrected": corrected, "low": low, "high": high,
            "half": (between(fake_even, real_even) + between(fake_odd, real_odd)) / 2,
            "disjoint": (between(fake_even, real_odd) + between(fake_odd, real_even)) / 2,
            "floor": between(real_even, real_odd),
            "n": clips[0], "n_real": clips[1], "left_out": left_out, "share": share,
        }  # fmt: skip
        return {key: number.to(self.total.device) for key, number in result.items()}
