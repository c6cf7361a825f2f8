"""Control without training: a run is held at the image in motion down to a noise level, then the network goes on."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.models.schedule import per_clip
from motionanim.motion.flow import integrate_flow
from motionanim.sampling.samplers import Denoise
from motionanim.types import Condition

MOVED = 1 / 8  # of a latent pixel: what has come so far moves


class Release(NamedTuple):
    """The noise levels at which latents are let go: SDEdit (Meng et al., ICLR 2022) with the image in motion as guide.

    Down to its level a latent is the image in motion plus the run's noise; below it is the network's. What moves and
    what stands still have a level each, as in Time-to-Move (Singer et al., ICLR 2026). There the rest of the picture is
    let go first, so that it may move by itself. Here it is the photo, which a low level keeps. Equal levels are
    plain SDEdit.
    """

    moving: float  # sigma, at least 0
    still: float

    @property
    def first(self) -> float:
        """The level of the first call of the network."""
        return max(self)

    def levels(self, condition: Condition) -> Tensor:
        """The level of each latent pixel, (B, T, 1, h, w).

        A latent pixel moves as soon as it or one of its eight neighbours has come `MOVED` latent pixels along the flow
        since the first frame of the window.
        """
        size = condition.flow.shape[-1] // condition.image_latents.shape[-1]
        x, y = integrate_flow(condition.flow.float()).unbind(2)
        near = F.max_pool2d(torch.hypot(x, y), 3 * size, stride=size, padding=size)[:, :, None]
        return torch.where(near > MOVED * size, self.moving, self.still)

    def holding(self, denoise: Denoise, condition: Condition) -> Denoise:
        """`denoise`, asked only where a latent has been let go; above its level the estimate is the image in motion."""
        levels, known = self.levels(condition), condition.warped_latents

        def run(z: Tensor, sigma: Tensor) -> Tensor:
            held = per_clip(sigma, z) > levels
            return known if bool(held.all()) else torch.where(held, known, denoise(z, sigma))

        return run
