"""Keep clips of the procedural world on the device, so that training never waits for the processor."""

import queue
import threading
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from motionanim.data.stream import as_floats, collate
from motionanim.media.image_io import to_uint8
from motionanim.models.svd.codec import Codec
from motionanim.types import ClipBatch, LatentBatch

CHUNK = 4  # clips that a loader hands over at once
TOGETHER = 8  # chunks that are encoded at once


class Stored(Dataset[ClipBatch]):
    """Clips in a quarter of the bytes, as files store them: frames uint8 (T, H, W, 3), flow float16."""

    def __init__(self, clips: Dataset[ClipBatch]) -> None:
        self.clips = clips

    def __getitem__(self, position: int) -> ClipBatch:
        clip = self.clips[position]
        frames = to_uint8(clip.frames).permute(0, 2, 3, 1).contiguous()
        return clip._replace(frames=frames, flow=clip.flow.half())


class Pool:
    """A ring buffer of encoded clips: loader processes fill it while training draws from it at random.

    With a slow processor the device does not wait, but draws each clip more often, each time with other noise. The
    speed of the loaders thus decides which clips are drawn: such a training is not reproducible bit for bit.

    Args:
        clips: The training stream, indexed by position.
        start: Its first position.
        size: Maximum number of clips in the ring.
        workers: Loader processes, at least 1.
    """

    def __init__(self, clips: Dataset[ClipBatch], codec: Codec, *, start: int, size: int, workers: int) -> None:
        self.codec, self.size, self.device = codec, size, next(codec.parameters()).device
        self.made = 0  # clips rendered so far
        self.parts: dict[str, Tensor] = {}
        self._queue: queue.Queue[ClipBatch | Exception] = queue.Queue(maxsize=max(workers, 4))
        sampler = range(start, start + 2**40)
        loader = DataLoader(Stored(clips), CHUNK, sampler=sampler, num_workers=workers, collate_fn=collate)
        threading.Thread(target=self._pull, args=(loader,), daemon=True).start()

    def _pull(self, batches: Iterable[ClipBatch]) -> None:
        try:
            for batch in batches:
                # A copy, so that shared memory and its file descriptors go back to the loaders.
                self._queue.put(ClipBatch(*(field.clone() for field in batch)))
        except Exception as error:
            self._queue.put(error)

    def __len__(self) -> int:
        return min(self.made, self.size)

    def take_in(self, most: int, *, least: int) -> None:
        """Encode the clips that are ready, up to `most` in total; wait only while the ring holds fewer than `least`.

        `least` is at most the ring's size.

        Raises:
            RuntimeError: If the loaders failed, for example for lack of shared memory.
        """
        while len(self) < least or (self.made < most and not self._queue.empty()):
            ready = [self._queue.get()]
            while len(ready) < TOGETHER and not self._queue.empty():
                ready.append(self._queue.get())
            for error in ready:
                if isinstance(error, Exception):
                    raise RuntimeError(f"the loader processes failed: {error}") from error
            self._put(ClipBatch(*map(torch.cat, zip(*ready, strict=True))))

    @torch.no_grad()
    def _put(self, stored: ClipBatch) -> None:
        batch = as_floats(ClipBatch(*(field.to(self.device, non_blocking=True) for field in stored)))
        rows = {
            "latents": self.codec.encode(batch.frames).half(),
            "warped_latents": self.codec.warp_image(batch.image, batch.flow).half(),
            "image": batch.image.half(),
            "image_embed": self.codec.embed_image(batch.image).half(),
            "flow": batch.flow.half(),
            "fps": batch.fps,
        }
        places = torch.arange(self.made, self.made + len(stored.fps), device=self.device) % self.size
        for name, values in rows.items():
            if name not in self.parts:
                self.parts[name] = values.new_zeros(self.size, *values.shape[1:])
            self.parts[name][places] = values
        self.made += len(stored.fps)

    def draw(self, count: int, generator: torch.Generator) -> LatentBatch:
        """`count` random clips; their positions are their places in the ring."""
        places = torch.randint(len(self), (count,), generator=generator, device=self.device)
        return as_floats(LatentBatch(**{name: part[places] for name, part in self.parts.items()}, position=places))
