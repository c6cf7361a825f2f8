"""Lists of video files, and their split into training and validation."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class Names(Sequence[str]):
    """A list of file names in two flat buffers, because each process would copy the Python strings of a long list."""

    def __init__(self, names: Iterable[str]) -> None:
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])


def split_names(names: Iterable[tuple[str, str]], *, val_share: float) -> tuple[Names, Names]:
    """Split by a hash of each name's group, so that a file keeps its side when others come and go.

    Args:
        names: Pairs of a file name and its group; all files of a group are on one side.
        val_share: Share of the groups that validate, in (0, 1).

    Returns:
        Training and validation names, at least one each.

    Raises:
        ValueError: If `val_share` is out of range, or there are fewer than two groups.
    """
    share_of = array("d")

    def each_name() -> Iterator[str]:
        for name, group in names:
            share_of.append(hash_share(group))
            yield name

    listed = Names(each_name())
    border = split_border(min(share_of, default=0), max(share_of, default=0), len(listed), val_share=val_share)
    train = Names(name for name, share in zip(listed, share_of) if share >= border)
    return train, Names(name for name, share in zip(listed, share_of) if share < border)


def split_border(lowest: float, highest: float, count: int, *, val_share: float) -> float:
    """Groups with a `hash_share` below this border validate; `lowest` and `highest` are the shares of `count` names."""
    if not 0 < val_share < 1:
        raise ValueError(f"val_share={val_share}: must be between 0 and 1")
    if lowest >= highest:
        raise ValueError(f"{count} clips, all of one video: at least 2 videos are needed, to train and to validate")
    # The lowest always validates and the highest always trains, so that neither side is empty.
    return min(max(val_share, float(np.nextafter(lowest, 1))), highest)


def hash_share(text: str) -> float:
    """A number in [0, 1) by the text's SHA-256."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:7], "big") / 2**56
