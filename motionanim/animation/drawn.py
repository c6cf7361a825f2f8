"""The drawing that a config asks for, with notes on what looks wrong in it."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from motionanim.media.image_io import load_mask
from motionanim.models.svd.bases import control_note
from motionanim.motion.controls import at_strength, may_refine
from motionanim.motion.drawing import Controls, parse_controls
from motionanim.motion.example_arrows import example_arrow
from motionanim.motion.kinds import doubts
from motionanim.motion.regions import propose_region


def plain(value: Any) -> Any:
    """A value of a config as plain Python values."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def is_refined(config: DictConfig, controls: Controls) -> bool:
    """Whether T will be used: for flow arrows that neither a mask nor a region bounds."""
    free = any(arrow.kind == "flow" and arrow.region is None for arrow in controls.arrows)
    wanted = config.refiner is not None and config.conditioning.refiner and config.mask is None and free
    return wanted and may_refine(config.controls.field, config.controls.entries, config.controls.normalized)


def read_drawing(config: DictConfig, photo: Tensor) -> tuple[Controls, list[str]]:
    """The drawing in the photo's pixels, and notes for the user, one line each."""
    drawn = plain(config.arrows)
    mask, notes = torch.ones_like(photo[:1]), []
    if config.mask == "auto":
        # The drawing is read twice, because the mask that it must fit is made from it.
        free = parse_controls(drawn, mask)
        _undrawn(config, free)
        mask = propose_region(photo, [arrow.path for arrow in free.arrows if arrow.region is None], free.pins)
        regions = [arrow.region for arrow in free.arrows if arrow.region is not None]
        mask = torch.stack([mask, *regions]).amax(0)
        picture = Path(config.out).with_suffix(".png")
        notes.append(
            f"mask=auto: GrabCut proposes that {float(mask.mean()):.0%} of the photo may move; {picture} shows it: "
            "paint a mask if it is wrong"
        )
    elif config.mask is not None:
        mask = load_mask(config.mask, *photo.shape[1:])
    controls = parse_controls(drawn, mask)
    notes += _undrawn(config, controls)
    if controls.arrows and config.renderer == "diffusion":
        notes += filter(None, [control_note(config.scale.base, config.control)])
    span, shown = config.controls.span, controls
    strengths = list(config.strength) if OmegaConf.is_list(config.strength) else [config.strength]
    if None not in strengths:
        shown = at_strength(controls, max(strengths), span=span, median_strength=config.scale.median_strength)
    return controls, notes + doubts(shown, span=span, crossings=config.controls.field == "eulerian")


def _undrawn(config: DictConfig, controls: Controls) -> list[str]:
    """Notes on a drawing without arrows, one line each.

    Raises:
        ValueError: With an arrow to copy, if the renderer or the mask needs arrows; or with the embedded base, which
            turns a photo into blotches without arrows, unless the user asked for that by `arrows=[]`.
    """
    if controls.arrows:
        return []
    embedded = Path(config.scale.base).is_relative_to(config.paths.assets)
    asked = OmegaConf.is_list(config.arrows) and len(config.arrows) == 0
    method, reason = config.long_video._target_.rpartition(".")[2], None
    if config.renderer == "eulerian":
        reason = "renderer=eulerian moves along them and nowhere else"
    elif config.mask == "auto":
        reason = "mask=auto proposes what they may move"
    elif embedded and not asked:
        reason = "left alone, the embedded base turns a photo into blotches (arrows=[] shows it; scale=svd needs none)"
    if reason is not None:
        height, width = controls.mask.shape[1:]
        raise ValueError(
            f"no arrows: {reason}; draw what moves and which way, [[x0,y0,x1,y1], ...] in the photo's {width}x{height} "
            f'px, such as arrows="[{str(example_arrow(controls.mask)).replace(" ", "")}]"'
        )
    if config.frames > config.scale.num_frames and method in ("continuous", "loop"):
        return [
            f"no arrows: after the first {config.scale.num_frames} frames long_video={method} moves little at a low "
            "long_video.sigma; long_video=direct keeps moving"
        ]
    return []
