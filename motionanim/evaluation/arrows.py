"""What a method is told of a case: its whole motion, or a few arrows of it with or without its mask."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from motionanim.evaluation.cases import Case
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.models.weights_io import weights_fingerprint
from motionanim.motion.controls import Fields
from motionanim.motion.drawing import Controls

RequestKind = Literal["arrows", "exact"]


class Asked:
    """From a case to the motion field and the mask that a method gets.

    Args:
        request: "arrows" are the case's arrows, spread by `controls`; "exact" is its whole motion.
        controls: `motion_field` with its options bound.
        refiner: File of T, which decides how far arrows reach without a mask; None where it is not wanted.
        use_refiner: Whether the conditioning has T.
        mask: True gives the case's mask, as a careful user paints it; False gives arrows alone.

    Raises:
        ValueError: If `request` is neither, there is a motion without its mask, or T is wanted and there is none.
    """

    def __init__(
        self,
        *,
        request: RequestKind,
        controls: Callable[..., Fields],
        refiner: str | None,
        use_refiner: bool,
        mask: bool,
    ) -> None:
        if request not in ("arrows", "exact"):
            raise ValueError(f"method.request={request!r}: must be 'arrows' or 'exact'")
        if request == "exact" and not mask:
            raise ValueError("mask=false: the exact motion tells what moves; use method.request=arrows")
        self.request, self.controls, self.gives_mask = request, controls, mask
        self.refiner = _load(refiner) if use_refiner and not mask and request == "arrows" else None

    @property
    def identity(self) -> dict[str, Any]:
        """What determines a row beyond its config."""
        hint = {} if self.request == "exact" else {"arrows": "along the motion"}
        return hint | {"refiner": None if self.refiner is None else weights_fingerprint(self.refiner)}

    @property
    def label(self) -> str:
        """What it adds to a row's name."""
        return "" if self.gives_mask else ", no mask"

    def mask(self, case: Case) -> Tensor:
        """(1, H, W) in {0, 1}; 1 where a method may move pixels."""
        return case.mask if self.gives_mask else torch.ones_like(case.mask)

    def field(self, case: Case) -> Tensor:
        """(T-1, 2, H, W) px per frame."""
        if self.request == "exact":
            return case.flow
        if not case.arrows:
            return torch.zeros_like(case.flow)
        drawn = Controls(case.arrows, (), self.mask(case))
        return self.controls(drawn, num_frames=len(case.frames), image=case.frames[0], refiner=self.refiner).per_step


def _load(path: str | None) -> FlowRefiner:
    if path is None:
        raise ValueError(
            "refiner=null: this conditioning has the refiner T; leave out refiner= for the one that is shipped, or "
            "evaluate conditioning=no_refiner"
        )
    try:
        return FlowRefiner.load(path).eval()
    except FileNotFoundError as error:
        raise ValueError(f"refiner={path}: no such file; leave it out for the one that is shipped") from error
