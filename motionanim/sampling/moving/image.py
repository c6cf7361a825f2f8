"""The input image in motion: what each window of a long video begins from and is expected to be near."""

from collections.abc import Sequence

import torch
from torch import Tensor

from motionanim.models.svd.codec import Codec
from motionanim.motion.flow import warp


class MovingImage:
    """An image warped to any frame of a video, as pixels and as latents.

    Every window is warped from the input image itself, because frames that are decoded, warped and encoded again and
    again lose fine detail.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        places: (B, M, 2, H, W) of `trace_back`, or the warped frames themselves, (B, M, 3, H, W). Past the end the last
            one stays.
        latents: (B, M', C, h, w) of the first M' frames, where they are known.
    """

    def __init__(self, codec: Codec, image: Tensor, places: Tensor, latents: Tensor | None = None) -> None:
        self.codec, self.image, self.places = codec, image, places
        self._latents: dict[int, Tensor] = dict(enumerate([] if latents is None else latents.unbind(1)))

    def frames(self, numbers: Sequence[int]) -> Tensor:
        """(B, len(numbers), 3, H, W)."""
        places = self.places[:, [min(number, self.places.shape[1] - 1) for number in numbers]]
        if places.shape[2] == 3:
            return places
        return torch.stack([warp(self.image, place) for place in places.unbind(1)], dim=1)

    def latents(self, start: int, length: int) -> Tensor:
        """(B, length, C, h, w) of frames [start, start + length); each is encoded once for all windows."""
        numbers = range(start, start + length)
        new = [number for number in numbers if number not in self._latents]
        for first in range(0, len(new), 16):  # a long video's frames need not be in memory at once
            some = new[first : first + 16]
            self._latents.update(zip(some, self.codec.encode(self.frames(some)).unbind(1), strict=True))
        return torch.stack([self._latents[number] for number in numbers], dim=1)
