"""Small shards of latents, the numbers of the clips that are read from them, and clips that are encoded into them."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from motionanim.data.engine import ProcessEngine
from motionanim.data.latents.encoding import encode_clips, encode_shard
from motionanim.data.latents.prepared import PreparedLatents
from motionanim.data.latents.shards import write_shard

SIZE = {"num_frames": 3, "height": 4, "width": 4}
READING = {"shuffle_shards": 2, "cache": "unused", "cache_gb": 0, "retries": 1}


def sample(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "latents": torch.randn(3, 4, 2, 2, generator=generator).half(),
        "flow": torch.randn(2, 2, 4, 4, generator=generator).half(),
        "image": torch.full((4, 4, 3), number, dtype=torch.uint8),
        "image_embed": torch.zeros(1, 4, dtype=torch.float16),
        "fps": torch.tensor(7.0),
    }


def make_shard(numbers: range, folder: Path) -> None:
    write_shard(folder, numbers, map(sample, numbers))


def made(folder: Path, count: int = 23, **changes) -> Path:
    options = {"shard_clips": 4, "predict": False, "vae": "v", "size": SIZE, "source": {}} | changes
    encode_clips(make_shard, count=count, folder=folder, engine=ProcessEngine(workers=0), **options)
    return folder


def encoded(clips: Dataset, codec, folder: Path, *, encode=None, warp=None, batch_size: int, **options) -> int:
    """Encode a stream of clips in this process, by `encode` instead of the codec's if it is given."""
    shard = functools.partial(
        encode_shard, clips=clips, encode=encode or codec.encode, embed=codec.embed_image, warp=warp,
        batch_size=batch_size, num_workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    return encode_clips(shard, predict=warp is not None, folder=folder, engine=ProcessEngine(workers=0), **options)


def ends_after(calls: int, codec, error: BaseException) -> Callable[[Tensor], Tensor]:
    """The codec's `encode`, which raises `error` after so many calls."""
    left = iter(range(calls))

    def encode(frames: Tensor) -> Tensor:
        if next(left, None) is None:
            raise error
        return codec.encode(frames)

    return encode


def prepared(folder: Path | str, **changes) -> PreparedLatents:
    return PreparedLatents(folder, **{"seed": 0} | SIZE | READING | changes)


def numbers_of(data: PreparedLatents, positions: range) -> list[int]:
    return [int(data[position].image[0, 0, 0]) for position in positions]
