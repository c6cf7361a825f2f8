"""What each metric key is called, how it prints, and which end is the better one."""

import math
import re
from typing import Literal, NamedTuple

Direction = Literal["higher", "lower", "one"]

# Groups become tables, in this order.
GROUPS = {
    "quality": "Quality",
    "frechet": "Fréchet video distance, other numbers",
    "control": "Controllability",
    "long": "Long video",
    "frame0": "Counting frame 0, the condition image",
    "cost": "Cost",
    "other": "Other numbers, not ranked",
}
ARROWS = {"higher": "↑", "lower": "↓", "one": "→1", None: ""}


class Key(NamedTuple):
    """A number of a run."""

    key: str
    name: str
    digits: int
    direction: Direction | None  # None: no end is better, so that it is never ranked
    group: str
    unit: str = ""
    remark: str = ""

    @property
    def header(self) -> str:
        return " ".join(filter(None, (self.name, self.unit and f"({self.unit})", ARROWS[self.direction])))

    def loss(self, value: float) -> float:
        """What to make small.

        Raises:
            ValueError: If no end of this key is the better one.
        """
        if self.direction is None:
            raise ValueError(f"{self.key}: no end of it is the better one, so nothing can be ranked by it")
        return {"higher": -value, "lower": value, "one": abs(value - 1)}[self.direction]

    def print(self, value: float, *, sign: bool = False) -> str:
        digits = self.digits
        if _FVD.fullmatch(self.key):  # features have any scale: at least 4 digits that count
            digits = max(digits, 3 - math.floor(math.log10(max(abs(value), 1e-3))))
        return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # adding zero makes -0.0 plain


_FVD = re.compile(r"fvd_(?P<features>.+?)(?P<variant>_plain|_half|_disjoint|_floor)?")

KEYS = {
    key.key: key
    for key in (
        Key("psnr", "PSNR", 2, "higher", "quality", "dB"),
        Key("ssim", "SSIM", 3, "higher", "quality"),
        Key("lpips", "LPIPS", 3, "lower", "quality"),
        Key(
            "clip_consistency",
            "CLIP consistency",
            4,
            "higher",
            "quality",
            remark="saturates, and a frozen picture scores 1: read it beside the static copy and a motion score",
        ),
        Key("warp_error", "Warping error", 4, "lower", "quality", remark="a frozen picture scores 0"),
        Key("flicker", "Flicker", 4, "lower", "quality", remark="a frozen picture scores 0"),
        Key("flow_epe", "Flow error", 3, "lower", "control", "px/frame"),
        Key("direction_error", "Direction error", 1, "lower", "control", "°"),
        Key("within_30", "Within 30°", 3, "higher", "control", "share"),
        Key("speed_gain", "Speed gain", 3, "one", "control"),
        Key("requested_strength", "Requested strength", 3, None, "control", "px/frame"),
        Key("realised_strength", "Realised strength", 3, None, "control", "px/frame"),
        Key("strength_spearman", "Strength, rank correlation", 3, "higher", "control"),
        Key("static_drift", "Static drift", 4, "lower", "control", remark="a frozen picture scores 0"),
        Key("static_change", "Static change", 4, "lower", "control", remark="a frozen picture scores 0"),
        Key("moved_precision", "Moved, precision", 3, "higher", "control"),
        Key("moved_recall", "Moved, recall", 3, "higher", "control"),
        Key("camera_residual", "Camera residual", 5, "lower", "control", "diagonals/frame"),
        Key("seam_ratio", "Seam ratio", 2, "one", "long"),
        Key(
            "wrap_ratio", "Wrap ratio", 2, "one", "long", remark="1 is a perfect loop; no loop is asked of other modes"
        ),
        Key("periodicity", "Periodicity", 2, None, "long", "dB", remark="high for a video that begins again"),
        Key("calls", "Denoiser calls", 1, None, "cost", "per clip"),
        Key("seconds", "Time", 2, None, "cost", "s/clip"),
    )
}
_VARIANTS = {
    "_plain": ("uncorrected", "lower"),
    "_half": ("half: paired", "lower"),
    "_disjoint": ("half: other real clips", "lower"),
    "_floor": ("half: real against real", None),
}
_HALVES = "of half the clips against half of the real ones, so it compares with other halves only"
_FRAME0 = "_with_frame0"


def describe(key: str) -> Key:
    """The key's entry; a key that is not known has its own name and no better end."""
    if key.endswith(_FRAME0):
        return describe(key.removesuffix(_FRAME0))._replace(key=key, group="frame0")
    if key in KEYS:
        return KEYS[key]
    if match := _FVD.fullmatch(key):
        name = f"FVD {match['features'].replace('_', ' ')}"
        if match["variant"] is None:
            return Key(key, name, 1, "lower", "quality")
        variant, direction = _VARIANTS[match["variant"]]
        remark = "" if variant == "uncorrected" else _HALVES
        return Key(key, f"{name}, {variant}", 1, direction, "frechet", remark=remark)
    if key.startswith("axes/"):
        return Key(key, key.removeprefix("axes/"), 3, None, "cost")
    return Key(key, key, 4, None, "other")


def is_fvd(key: str) -> bool:
    """Whether this is an FVD that results are compared by, not one of its variants."""
    match = _FVD.fullmatch(key)
    return match is not None and match["variant"] is None and not key.endswith(_FRAME0)


def place(key: str) -> tuple[int, int, str]:
    """Sorts keys: by table, FVD first, then as in `KEYS`."""
    entry = describe(key)
    known = list(KEYS)
    base = key.removesuffix(_FRAME0)
    position = -1 if _FVD.fullmatch(base) else known.index(base) if base in known else len(known)
    return list(GROUPS).index(entry.group), position, key
