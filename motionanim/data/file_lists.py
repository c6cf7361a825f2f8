"""Lists of video files, and their split into training and validation."""

import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

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


class Pool(Sequence[str]):
    """The names of several roots, one root after another; each begins with its root's number, as "0/clip.mp4"."""

    def __init__(self, parts: Sequence[Sequence[str]], weights: Sequence[int]) -> None:
        self.parts, self.weights = parts, list(weights)
        self.sizes = list(map(len, parts))
        self._ends = list(accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        root = bisect_right(self._ends, index)
        return f"{root}/{self.parts[root][index - self._ends[root] + self.sizes[root]]}"


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


def weighted_roots(root: Mapping[str, int]) -> dict[Path, int]:
    """Folders and the weights by which clips are drawn from them.

    Raises:
        ValueError: If there is none, or a weight is no whole number from 1 to 1000.
    """
    for folder, weight in root.items():
        if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= 1000:
            raise ValueError(
                f"data.root: {folder} has the weight {weight}: must be a whole number from 1 to 1000, such as 7 and 3 "
                "for 70 % and 30 %"
            )
    if not root:
        raise ValueError("data.root={}: give folders with their weights, such as data.root={mine: 2, others: 1}")
    return {Path(os.path.expanduser(folder)): weight for folder, weight in root.items()}
