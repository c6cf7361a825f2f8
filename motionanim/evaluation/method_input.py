"""The input of a method: the whole motion of a clip, or a few arrows with or without the clip's mask."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from motionanim.evaluation.benchmark import EvalClip
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.models.weights_io import weights_fingerprint
from motionanim.motion.controls import Fields
from motionanim.motion.drawing import Controls

RequestKind = Literal["arrows", "exact"]


class MethodInput:
    """Turns a clip into the motion field and the mask that a method gets.

    Args:
        request: "arrows" gives the clip's arrows, spread by `controls`; "exact" gives its whole motion.
        controls: `motion_field` with its options bound.
        refiner: File of the flow refiner T, which decides how far arrows reach without a mask; None if not wanted.
        use_refiner: Whether the conditioning uses T.
        mask: True gives the clip's mask, as a careful user paints it; False gives arrows alone.

    Raises:
        ValueError: If `request` is neither of the two, "exact" comes without the mask, or T is used and has no file.
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
        """Values that determine the input besides the config."""
        hint = {} if self.request == "exact" else {"arrows": "along the motion"}
        return hint | {"refiner": None if self.refiner is None else weights_fingerprint(self.refiner)}

    @property
    def label(self) -> str:
        """A suffix for the row's name."""
        return "" if self.gives_mask else ", no mask"

    def mask(self, clip: EvalClip) -> Tensor:
        """(1, H, W) in {0, 1}; 1 where a method may move pixels."""
        return clip.mask if self.gives_mask else torch.ones_like(clip.mask)

    def field(self, clip: EvalClip) -> Tensor:
        """(T-1, 2, H, W) px per frame."""
        if self.request == "exact":
            return clip.flow
        if not clip.arrows:
            return torch.zeros_like(clip.flow)
        drawn = Controls(clip.arrows, (), self.mask(clip))
        return self.controls(drawn, num_frames=len(clip.frames), image=clip.frames[0], refiner=self.refiner).per_step


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
