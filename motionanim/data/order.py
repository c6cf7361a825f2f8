"""The order of training: which item of a data set stands at each position of the endless stream, in which shape."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from motionanim.files import text_sha256

_LARGE = 2**12, 2**8  # shard and block by which a list of more than 4 M items is shuffled, to keep permutations small

LONGEST = 4  # most times that one side of a shape is as long as the other

Size = tuple[int, int]  # height, width


class Buckets(NamedTuple):
    """The shapes of a run's clips."""

    shapes: tuple[Size, ...]  # px, from the tallest to the widest
    own: int  # the number of the shape that clips of unknown size get: the scale's
    row: int  # clips in a row of one shape

    def numbers(self, sizes: np.ndarray) -> np.ndarray:
        """The number of the shape nearest to each size (N, 2) by the logarithm of width over height: (N,) uint16."""
        aspects = np.log([width / height for height, width in self.shapes])
        known = (sizes > 0).all(axis=1)
        heights, widths = np.where(known[:, None], sizes, 1).T
        nearest = np.searchsorted((aspects[1:] + aspects[:-1]) / 2, np.log(widths / heights))
        return np.where(known, nearest, self.own).astype(np.uint16)

    def shape_of(self, height: int, width: int) -> Size:
        """The shape of a clip from a video of this size."""
        return self.shapes[int(self.numbers(np.array([[height, width]]))[0])]

    def fingerprint(self, numbers: np.ndarray | None = None) -> str:
        """Of all that decides the shape at a position; `numbers` of the shapes of all items, where these have one."""
        items = "" if numbers is None else text_sha256(numbers.tobytes().hex())[:16]
        return f"{len(self.shapes)} in rows of {self.row} ({text_sha256(f'{self}{items}')[:8]})"


def buckets(*, used: bool, height: int, width: int, multiple: int, row: int) -> Buckets | None:
    """All shapes whose pixels fit into height x width, and neither side of which could be longer by `multiple`.

    Args:
        used: Whether clips have several shapes; None is returned otherwise.

    Raises:
        ValueError: If height or width is no multiple of `multiple`, a number is below 1, or `used` is no boolean.
    """
    if not isinstance(used, bool):
        raise ValueError(f"scale.buckets={used}: must be true or false")
    if not used:
        return None
    if multiple < 1 or row < 1:
        raise ValueError(f"scale.bucket_multiple={multiple}, scale.bucket_clips={row}: both must be at least 1")
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise ValueError(
            f"scale.height={height}, scale.width={width}: must be multiples of scale.bucket_multiple={multiple}"
        )
    area = height * width // multiple**2
    pairs = ((rows, area // rows) for rows in range(area, 0, -1))
    kept = [(rows, columns) for rows, columns in pairs if area // columns == rows]
    shapes = tuple(
        (rows * multiple, columns * multiple)
        for rows, columns in kept
        if max(rows, columns) <= LONGEST * min(rows, columns) or rows * multiple == height
    )
    return Buckets(shapes, shapes.index((height, width)), row)


@lru_cache(maxsize=4)
def _permutation(length: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length)


def shuffled_index(seed: int, position: int, length: int, *, shard: int | None = None, block: int = 1) -> int:
    """The item at `position`: every epoch of `length` positions is its own permutation of 0 ... length-1.

    With `shard` neighbouring positions read from few shards: every epoch permutes the shards, and then the items of
    every `block` shards among themselves. Memory grows with the number of shards and the items of a block, not with
    `length`. So a list of more than 4 M items is shuffled in blocks of 1 M.

    Args:
        shard: Items of a shard; the last shard may hold fewer.
        block: Shards whose items are mixed, at least 1.
    """
    epoch, place = divmod(position, length)
    if shard is None and length > 2**22:
        shard, block = _LARGE
    if shard is None:
        return int(_permutation(length, seed, epoch, length)[place])
    shards = -(-length // shard)
    order = _permutation(shards, seed, epoch, length)
    absent = shards * shard - length  # items that the last shard lacks
    short = int(np.flatnonzero(order == shards - 1)[0]) // block  # the block with the last shard
    size = block * shard
    number = (place if place < (short + 1) * size - absent else place + absent) // size
    begin = number * size - (absent if number > short else 0)
    members = np.sort(order[number * block : (number + 1) * block])  # the last shard comes last
    count = len(members) * shard - (absent if number == short else 0)
    which, item = divmod(int(_permutation(count, seed, epoch, length, number)[place - begin]), shard)
    return int(members[which]) * shard + item


def epoch_order(seed: int, epoch: int, length: int, *, shard: int | None = None, block: int = 1) -> np.ndarray:
    """All items (length,) of an epoch as `shuffled_index` gives them."""
    if shard is None and length > 2**22:
        shard, block = _LARGE
    if shard is None:
        return _permutation.__wrapped__(length, seed, epoch, length)  # not kept: it is as long as the list
    order, parts = _permutation(-(-length // shard), seed, epoch, length), []
    for number, first in enumerate(range(0, len(order), block)):
        members = np.sort(order[first : first + block])
        items = (members[:, None] * shard + np.arange(shard)).ravel()
        items = items[items < length]  # the last shard may hold fewer, and comes last
        parts.append(items[_permutation(len(items), seed, epoch, length, number)])
    return np.concatenate(parts)


class Rows(NamedTuple):
    """Items of several shapes, of which `length` in a row have one shape, so that batches can be stacked."""

    numbers: np.ndarray  # (N,) unsigned: the number of each item's shape
    length: int


class _Walk(NamedTuple):
    """An epoch, walked through item by item: a row is complete when its last item is met."""

    before: np.ndarray  # (S,): how often items of each shape were met in earlier epochs
    members: list[np.ndarray]  # of each shape, in the order of the walk
    rows: np.ndarray  # (K, 2): shape of each row that is completed here, and its number among the rows of this shape
    done: int  # rows that were completed in earlier epochs


class Order:
    """Every epoch is another permutation of all items. A pure function of the position, which nothing has to store.

    With several roots an item is drawn from each in proportion to its weight: an epoch has `weight` draws of every root
    for as often as it takes to draw all items of all roots at least once, and each root goes on where it ended.

    With `rows` the same walk through the items fills a row for each shape, and a row is trained on when it is full. So
    no item is left out, and items that are left at the end of an epoch come in the next.

    Args:
        sizes: Number of items of each root; the items of all roots are numbered one root after another.
        weights: Of each root, whole numbers of at least 1.
        shards: `shard` and `block` of `shuffled_index`; None shuffles all items among each other.
    """

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int],
        weights: Sequence[int] = (1,),
        *,
        rows: Rows | None = None,
        shards: dict[str, int] | None = None,
    ) -> None:
        self.seed, self.rows, self._shards = seed, rows, shards or {}
        self._sizes, self._first = np.array(sizes), np.concatenate([[0], np.cumsum(sizes)])
        self.items = int(self._first[-1])
        rounds = max(-(-size // weight) for size, weight in zip(sizes, weights, strict=True))
        self._draws = rounds * np.array(weights)  # of an epoch, from each root
        self._ends = np.cumsum(self._draws)
        self.length = int(self._ends[-1])  # of an epoch
        self._walks: dict[int, _Walk] = {}
        if rows is not None:
            shapes = int(rows.numbers.max()) + 1
            self._counts = np.stack([self._count(0, size, root, shapes) for root, size in enumerate(sizes)])

    def item(self, position: int) -> int:
        """The item at a position."""
        if self.rows is not None:
            return self._in_row(position)[0]
        slot = shuffled_index(self.seed, position, self.length, **self._shards)
        return int(self._items(position // self.length, np.array(slot)))

    def shape(self, position: int) -> int:
        """The number of the shape at a position, with `rows`."""
        return self._in_row(position)[1]

    def alike(self, item: int) -> Sequence[int]:
        """All items of the same root, and with `rows` of the same shape, ascending."""
        root = int(np.searchsorted(self._first, item, side="right")) - 1
        first, end = int(self._first[root]), int(self._first[root + 1])
        if self.rows is None:
            return range(first, end)
        return first + np.flatnonzero(self.rows.numbers[first:end] == self.rows.numbers[item])

    def _items(self, epoch: int, slots: np.ndarray) -> np.ndarray:
        """The items that are drawn at slots of an unshuffled epoch, where the draws of a root stand together."""
        root = np.searchsorted(self._ends, slots, side="right")
        draw = slots - self._ends[root] + self._draws[root] * (epoch + 1)
        return self._first[root] + draw % self._sizes[root]

    def _in_row(self, position: int) -> tuple[int, int]:
        """Item and shape at a position."""
        row, place = divmod(position, self.rows.length)
        epoch = row * self.rows.length // self.length  # no earlier one can have so many full rows
        while row >= (walk := self._walk(epoch)).done + len(walk.rows):
            epoch += 1
        shape, number = walk.rows[row - walk.done]
        wanted = number * self.rows.length + place  # among all items of this shape that are met
        while wanted < walk.before[shape]:
            epoch -= 1
            walk = self._walk(epoch)
        return int(walk.members[shape][wanted - walk.before[shape]]), int(shape)

    def _before(self, epoch: int) -> np.ndarray:
        """How often items of each shape are met before an epoch."""
        before = np.zeros(self._counts.shape[1], dtype=np.int64)
        for root, size in enumerate(self._sizes):
            passes, rest = divmod(epoch * int(self._draws[root]), int(size))
            before += passes * self._counts[root] + self._count(0, rest, root, len(before))
        return before

    def _count(self, begin: int, end: int, root: int, shapes: int) -> np.ndarray:
        first = self._first[root]
        return np.bincount(self.rows.numbers[first + begin : first + end], minlength=shapes)

    def _walk(self, epoch: int) -> _Walk:
        if epoch not in self._walks:
            if len(self._walks) >= 4:  # a batch reads one or two; rows of a rare shape reach further back
                del self._walks[min(self._walks)]
            self._walks[epoch] = self._walked(epoch)
        return self._walks[epoch]

    def _walked(self, epoch: int) -> _Walk:
        slots = epoch_order(self.seed, epoch, self.length, **self._shards)
        items = self._items(epoch, slots).astype(np.int32)
        shapes = self.rows.numbers[items]
        members = [np.flatnonzero(shapes == shape) for shape in range(self._counts.shape[1])]
        before, length, found = self._before(epoch), self.rows.length, []
        for shape, places in enumerate(members):
            last = np.arange(-(before[shape] + 1) % length, len(places), length)  # of those that fill a row
            numbers = (before[shape] + last) // length
            found.append(np.stack([places[last], np.full(len(last), shape), numbers], axis=1))
        rows = np.concatenate(found)
        rows = rows[np.argsort(rows[:, 0]), 1:]
        return _Walk(before, [items[places] for places in members], rows, int((before // length).sum()))
