"""The values that flow through the system, with their shapes and units.

Letters: B clips, T frames, H and W pixels, h and w latent pixels, C latent channels. All latents are scaled: multiplied
by the VAE's scaling factor.

All are NamedTuples without optional fields, because torch's default collate stacks them field by field and rejects
dataclasses and None. A dataset yields one without the B axis; the loader adds it.

A dataset over files yields pictures as uint8 (..., H, W, 3) and other fields as float16, a quarter of the bytes between
loader and device; `data.stream.as_floats` converts them there to the types below.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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

    latents: Tensor  # (B, T, C, h, w) float32
    warped_latents: Tensor  # as in Condition, with the flow in use
    image: Tensor  # (B, 3, H, W) float32 in [-1, 1], RGB, frame 0: training adds noise to it before it is encoded
    image_embed: Tensor  # as in Condition
    flow: Tensor  # as in ClipBatch
    fps: Tensor
    position: Tensor


class Hint(NamedTuple):
    """The arrows as the flow refiner T sees them (Sec. 3.2); of one drawing without the batch dimension."""

    flow: Tensor  # (B, 2, H, W) px per frame, Eq. 6: everywhere as fast as the arrows, `motion.paths.spread_paths`
    reach: Tensor  # (B, 1, H, W) the sum of the arrows' weights: 1 and more near them, towards 0 far away
    arrows: Tensor  # (B, 3, H, W) the sparse flow of Eq. 5 and where it is given, `motion.paths.draw_paths`


class FlowPairBatch(NamedTuple):
    """Images with arrows on them and the motion of the arrows: training data of the flow refiner T (Sec. 3.2)."""

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
    """All that steers the denoiser besides the noisy latents.

    A flag of 0 drops its part, whose values are then not read. `MotionConditioner.context` alone drops parts.
    """

    image_latents: Tensor  # (B, C, h, w) latents of frame 0 with noise on its pixels
    image_embed: Tensor  # (B, 1, D) CLIP embedding of frame 0
    # (B, T, C, h, w) latents of frame 0 warped along the flow to every frame; T times frame 0 where nothing moves it.
    warped_latents: Tensor
    flow: Tensor  # (B, T-1, 2, H, W) px per frame at H x W
    motion_strength: Tensor  # (B,) px per frame at H x W
    use_image: Tensor  # (B,) float32 in {0, 1}; 0 drops all that shows the image: both latents and the embedding
    use_flow: Tensor  # (B,) float32 in {0, 1}; 0 drops the motion field, and the warped latents stand still
    use_strength: Tensor  # (B,) float32 in {0, 1}; 0 drops the motion strength
    fps: Tensor  # (B,) frames per second
    noise_aug: Tensor  # (B,) standard deviation of the noise on the condition image's pixels

    @classmethod
    def blank(
        cls, batch: int, frames: int, *, latents: tuple[int, int, int], pixels: tuple[int, int], embed_width: int
    ) -> "Condition":
        """Zeros with every part on; `latents` is (C, h, w), `pixels` is (H, W), `embed_width` is D."""
        zeros, ones = torch.zeros(batch), torch.ones(batch)
        return cls(
            image_latents=torch.zeros(batch, *latents),
            image_embed=torch.zeros(batch, 1, embed_width),
            warped_latents=torch.zeros(batch, frames, *latents),
            flow=torch.zeros(batch, frames - 1, 2, *pixels),
            motion_strength=zeros,
            use_image=ones,
            use_flow=ones,
            use_strength=ones,
            fps=zeros,
            noise_aug=zeros,
        )

    @classmethod
    def cat(cls, conditions: Sequence["Condition"]) -> "Condition":
        """The clips of all `conditions`, one after another."""
        return cls(*map(torch.cat, zip(*conditions, strict=True)))

    def repeat(self, times: int) -> "Condition":
        """All clips `times` times, (B, ...) to (times * B, ...)."""
        return Condition(*(field.repeat(times, *[1] * (field.ndim - 1)) for field in self))

    def window(self, start: int, length: int) -> "Condition":
        """Flow of frames [start, start + length), where the last step goes on past the end; the image stands still."""
        steps = torch.arange(start, start + length - 1).clamp(max=self.flow.shape[1] - 1).to(self.flow.device)
        still = self.warped_latents[:, :1].expand(-1, length, -1, -1, -1)
        return self._replace(flow=self.flow[:, steps], warped_latents=still)


class Sample(NamedTuple):
    """A video to be scored, with what is known of it. The evaluation's metrics name the fields they need."""

    frames: Tensor  # (T, 3, H, W) float32 in [-1, 1], RGB; frame 0 stands for the condition image
    real: Tensor | None  # like frames: the true clip
    flow: Tensor | None  # (T-1, 2, H, W) px per frame: the motion that was asked for
    mask: Tensor | None  # (1, H, W) float32 in {0, 1}; 1 where pixels may move
    segment_starts: tuple[int, ...]  # first frames of the segments after the first
    period: int  # L, frames of one window of the model
    loop: bool = False  # whether the last frame shall lead back to the first
