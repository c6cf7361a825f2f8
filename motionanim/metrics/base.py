"""Base classes of the metrics. A clip metric is one class: it scores clips and declares its columns in reports.

`score` gives the numbers of each clip and `compute` their mean over clips. The state is sums, so the mean is the same
whether clips come one by one, in batches, in merged metrics or in several processes, some of which may have no clip.
"""

import math
from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

# The better end; "real": the nearer to the score of the true clips, the better.
Direction = Literal["higher", "lower", "real"]
Group = Literal["quality", "frechet", "control", "long", "vbench", "frame0", "cost", "other"]  # a table of the report

_ARROWS = {"higher": "↑", "lower": "↓", "real": "→ real", None: ""}
Range = tuple[float, float]  # the least and the greatest legal value


class Column(NamedTuple):
    """One number of a metric: its key in result files, and how reports and plots name, print and rank it."""

    key: str
    name: str
    digits: int  # after the point
    direction: Direction | None  # None: no end is better, and the number is never ranked
    group: Group
    unit: str = ""
    remark: str = ""  # a note under the table
    significant: int = 0  # prints at least so many significant digits, for numbers of any scale
    range: Range = (-math.inf, math.inf)  # of legal values, where intervals end

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.name, self.unit and f"({self.unit})")))

    @property
    def header(self) -> str:
        return " ".join(filter(None, (self.label, _ARROWS[self.direction])))

    def loss(self, value: float, real: float | None = None) -> float:
        """The value on a scale where less is better.

        Args:
            value: A score.
            real: The score of the true clip, for columns with the direction "real".

        Raises:
            ValueError: If the column has no better end, or its better end is not known.
        """
        if self.direction is None:
            raise ValueError(f"{self.key}: no end of it is the better one, so nothing can be ranked by it")
        if self.direction == "real":
            if real is None:
                raise ValueError(f"{self.key}: best is the score of the true clips, which is not known here")
            return abs(value - real)
        return -value if self.direction == "higher" else value

    def print(self, value: float, *, sign: bool = False) -> str:
        digits = self.digits
        if self.significant and abs(value) >= 1e-3:  # rounding errors are 0
            digits = max(digits, self.significant - 1 - math.floor(math.log10(max(abs(value), 1e-3))))
        return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0 turns -0.0 into 0.0


class SumMetric(Metric):
    """A metric whose whole state is sums in float64."""

    full_state_update = False

    def add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def accumulate(self, name: str, value: Tensor) -> None:
        """Add to a sum out of place and in float64, because training in bfloat16 casts a module's tensors."""
        state = getattr(self, name)
        setattr(self, name, state.double() + value.to(state.device, torch.float64))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics would return the value from before the merge


class ClipMetric(SumMetric):
    """Mean over clips of numbers that each clip has for itself.

    Attributes:
        columns: The numbers, in the order of `score`.
        keys: Their keys.
        needs: Fields of `types.Sample` that `score` takes, in this order.
        undefined: Why a clip may have no such number.
    """

    columns: tuple[Column, ...] = ()
    keys: tuple[str, ...]
    needs: tuple[str, ...]
    undefined = "not defined for this clip"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.keys = tuple(column.key for column in cls.columns)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("total", len(self.keys))
        self.add_sum("count", len(self.keys))

    @abstractmethod
    def score(self, *args: Any) -> Tensor:
        """Scores of a batch of clips: (B, len(keys)) float64, NaN where a clip has no such number."""

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Plain values that determine what the numbers mean. Results of different protocols are never ranked."""

    def update(self, *args: Any) -> None:
        values = self.score(*args)
        known = ~values.isnan()
        self.accumulate("total", torch.where(known, values, 0).sum(0))
        self.accumulate("count", known.sum(0))

    def compute(self) -> dict[str, Tensor]:
        """Mean of each key over the clips that have it; NaN where none has.

        Raises:
            ValueError: If no clip was added.
        """
        if not self.count.any():
            raise ValueError(f"{type(self).__name__}: no clip was scored, in any process")
        return dict(zip(self.keys, self.total / self.count))
