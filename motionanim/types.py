"""The values that flow through the system, and the legend of their shapes and units.

Letters: B clips, T frames, H and W pixels, h and w latent pixels, C latent channels.

NamedTuples without optional fields, because torch's default collate stacks them field by field and rejects
dataclasses and None. A dataset yields one without the B axis; the loader adds it.

A dataset over files yields pictures as uint8 (..., H, W, 3) and other fields as float16, as the files hold them: a
quarter of the bytes between loader and device, where `data.stream.as_floats` makes them what is written here.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class ClipBatch(NamedTuple):
    """Clips with their motion."""

    frames: Tensor  # (B, T, 3, H, W) float32 in [-1, 1], RGB
    flow: Tensor  # (B, T-1, 2, H, W) float32; frame k to k+1; channel 0 right, 1 down; px per frame at H x W
    fps: Tensor  # (B,) float32; frames per second of `frames`, after any stride
    position: Tensor  # (B,) int64; place in the endless training stream; seeds every random draw for the clip

    @property
    def image(self) -> Tensor:
        """(B, 3, H, W): frame 0."""
        return self.frames[:, 0]


class LatentBatch(NamedTuple):
    """Clips prepared by motionanim.data.encode, so that training need not decode, encode and embed them."""

    latents: Tensor  # (B, T, C, h, w) float32, multiplied by the VAE's scaling factor
    predicted: Tensor  # as in Condition, the flow in use
    image: Tensor  # (B, 3, H, W) float32 in [-1, 1], RGB, frame 0: the condition encodes it with noise of its own
    image_embed: Tensor  # as in Condition
    flow: Tensor  # as in ClipBatch
    fps: Tensor
    position: Tensor


class Hint(NamedTuple):
    """What T is told of the arrows (Sec. 3.2); of one drawing without the batch dimension."""

    flow: Tensor  # (B, 2, H, W) px per frame, Eq. 6: everywhere as fast as the arrows, `motion.paths.spread_paths`
    reach: Tensor  # (B, 1, H, W) the sum of the arrows' weights: 1 and more near them, towards 0 far away
    arrows: Tensor  # (B, 3, H, W) the sparse flow of Eq. 5 and where it is given, `motion.paths.draw_paths`


class FlowPairBatch(NamedTuple):
    """One image with arrows on it and the motion they are of: what the flow refiner T learns from (Sec. 3.2)."""

    image: Tensor  # (B, 3, H, W) float32 in [-1, 1], RGB, frame 0
    spread: Tensor  # the three parts of `hint`, apart because loaders stack field by field
    reach: Tensor
    arrows: Tensor
    mask: Tensor  # (B, 1, H, W) float32 in {0, 1}; 1 where pixels move
    flow: Tensor  # (B, 2, H, W) float32; true steady field, px per frame at H x W
    position: Tensor  # (B,) int64, as in ClipBatch

    @property
    def hint(self) -> Hint:
        return Hint(self.spread, self.reach, self.arrows)


class Condition(NamedTuple):
    """All that steers the denoiser besides the noisy latents. A part switched off is all zeros with its flag 0."""

    image_latents: Tensor  # (B, C, h, w) of frame 0, *not* multiplied by the VAE's scaling factor, as in SVD
    image_embed: Tensor  # (B, 1, D) CLIP embedding of frame 0
    # (B, T, C, h, w) scaled latents of frame 0 carried along the flow: motion compensation, as video coders call it.
    # Its first frame is frame 0; (B, 1, C, h, w) where no motion is predicted.
    predicted: Tensor
    flow: Tensor  # (B, T-1, 2, H, W) px per frame at H x W
    motion_strength: Tensor  # (B,) px per frame at H x W
    use_flow: Tensor  # (B,) float32 in {0, 1}; 0 drops the motion field
    use_strength: Tensor  # (B,) float32 in {0, 1}; 0 drops the motion strength
    fps: Tensor  # (B,) frames per second
    noise_aug: Tensor  # (B,) standard deviation of the noise on the condition image's pixels


class Kept(Generic[Made]):
    """What `make` makes of a condition, made once for all steps of a run: the last few are remembered.

    A condition is known by its identity, not by its values. Keep this no longer than the weights stay as they are.
    """

    COUNT = 8  # of conditions: windows that take turns within one step

    def __init__(self, make: Callable[[Condition], Made]) -> None:
        self._make = make
        self._known: list[tuple[Condition, Made]] = []

    def __call__(self, condition: Condition) -> Made:
        for other, made in self._known:
            if other is condition:
                return made
        made = self._make(condition)
        self._known = [*self._known[1 - self.COUNT :], (condition, made)]
        return made


class Sample(NamedTuple):
    """A video to be scored, with what is known of it. The evaluation's metrics name the fields they need."""

    frames: Tensor  # (T, 3, H, W) float32 in [-1, 1], RGB; frame 0 stands for the condition image
    real: Tensor | None  # like frames: the true clip
    flow: Tensor | None  # (T-1, 2, H, W) px per frame: the motion that was asked for
    mask: Tensor | None  # (1, H, W) float32 in {0, 1}; 1 where pixels may move
    borders: tuple[int, ...]  # first frames of the segments after the first
    period: int  # L, frames of one window of the model
