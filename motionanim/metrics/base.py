"""What the metric classes share: pure functions score clips, and sums that any process may hold make the mean.

A metric class names the fields of `types.Sample` that it looks at (`needs`) and the numbers that it returns for each
clip (`keys`). `score` gives those numbers, `update` adds them up, and `compute` is their mean over clips: the same
for clips seen one by one, in batches, in merged metrics or by several processes, one of which may have seen none.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SumMetric(Metric):
    """A metric whose whole state is sums in float64."""

    full_state_update = False

    def add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def accumulate(self, name: str, value: Tensor) -> None:
        """Add to a sum, out of place and in float64: training in bfloat16 turns a module's tensors into bfloat16."""
        state = getattr(self, name)
        setattr(self, name, state.double() + value.to(state.device, torch.float64))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics keeps the value from before the merge


class ClipMetric(SumMetric):
    """Mean over clips of numbers that each clip has for itself. NaN means that a clip has no such number."""

    keys: tuple[str, ...]
    needs: tuple[str, ...]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("total", len(self.keys))
        self.add_sum("count", len(self.keys))

    @abstractmethod
    def score(self, *args: Any) -> Tensor:
        """The numbers of each clip of a batch: (B, len(keys)) float64, NaN where a clip has none."""

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Plain values that say what the numbers mean: results with different ones are never ranked together."""

    def update(self, *args: Any) -> None:
        self.add(self.score(*args))

    def add(self, values: Tensor) -> None:
        """Add numbers (B, len(keys)) that `score` gave, here or in an earlier run."""
        known = ~values.isnan()
        self.accumulate("total", torch.where(known, values, 0).sum(0))
        self.accumulate("count", known.sum(0))

    def compute(self) -> dict[str, Tensor]:
        """The mean of each key over the clips that have it, NaN where none has.

        Raises:
            ValueError: If no clip was added.
        """
        if not self.count.any():
            raise ValueError(f"{type(self).__name__}: no clip was scored, in any process")
        return dict(zip(self.keys, self.total / self.count))
