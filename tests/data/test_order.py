"""The order of training: what stands at a position, with rows of one shape and with weights of roots."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.data.order import Order, Rows, epoch_order, shuffled_index

BLOCKS = {"shard": 4, "block": 3}


def test_without_rows_and_weights_it_is_the_shuffled_index():
    assert [Order(3, [10]).item(p) for p in range(25)] == [shuffled_index(3, p, 10) for p in range(25)]
    found = [Order(3, [23], shards=BLOCKS).item(p) for p in range(50)]
    assert found == [shuffled_index(3, p, 23, **BLOCKS) for p in range(50)]


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 60), shard=st.integers(1, 9), block=st.integers(1, 9), epoch=st.integers(0, 3))
def test_an_epoch_at_once_is_its_positions_one_by_one(length, shard, block, epoch):
    positions, options = range(epoch * length, (epoch + 1) * length), {"shard": shard, "block": block}
    one_by_one = [shuffled_index(5, p, length, **options) for p in positions]
    assert epoch_order(5, epoch, length, **options).tolist() == one_by_one
    assert epoch_order(5, epoch, length).tolist() == [shuffled_index(5, p, length) for p in positions]


@pytest.mark.slow
def test_an_epoch_of_a_long_list_at_once():
    length = 2**22 + 5
    order = epoch_order(1, 2, length)
    assert np.bincount(order, minlength=length).max() == 1
    places = [0, 77, 2**20, length - 1]
    assert [int(order[p]) for p in places] == [shuffled_index(1, 2 * length + p, length) for p in places]


def filled(order, numbers, length, count):
    """`count` positions by walking through the items of the same order without rows, as long as it takes."""
    waiting, done, position = {}, [], 0
    while len(done) < count:
        item = order.item(position)
        row = waiting.setdefault(numbers[item], [])
        row.append(item)
        if len(row) == length:
            done += row
            row.clear()
        position += 1
    return done[:count]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data(), length=st.integers(1, 9), shards=st.sampled_from([None, BLOCKS]), seed=st.integers(0, 3))
def test_rows_are_filled_by_walking_through_the_items(data, length, shards, seed):
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    weights = data.draw(st.lists(st.integers(1, 4), min_size=len(sizes), max_size=len(sizes)))
    of_items = data.draw(st.lists(st.integers(0, 3), min_size=sum(sizes), max_size=sum(sizes)))
    numbers = np.array(of_items, dtype=np.uint16)
    order = Order(seed, sizes, weights, rows=Rows(numbers, length), shards=shards)
    wanted = filled(Order(seed, sizes, weights, shards=shards), of_items, length, 120)
    assert [order.item(p) for p in range(120)] == wanted
    assert [order.shape(p) for p in range(120)] == [of_items[item] for item in wanted]
    fresh = Order(seed, sizes, weights, rows=Rows(numbers, length), shards=shards)
    assert [fresh.item(p) for p in (119, 0, 60)] == [wanted[p] for p in (119, 0, 60)], "a function of the position"


def test_every_root_has_its_share_in_every_epoch_and_every_item_of_it_too():
    order = Order(0, [100, 7], [2, 1])
    assert order.length == 150
    seen = [order.item(p) for p in range(14 * order.length)]
    for epoch in range(14):
        assert sum(item < 100 for item in seen[epoch * 150 : (epoch + 1) * 150]) == 100
    counts = Counter(seen)
    assert {counts[item] for item in range(100)} == {14}
    assert {counts[item] for item in range(100, 107)} == {100}, "14 epochs of 50 draws among 7"
    assert len({tuple(seen[e * 150 : e * 150 + 150]) for e in range(14)}) == 14
    assert order.alike(103) == range(100, 107)


@pytest.mark.parametrize("weights", [[1], [3, 1]])
def test_no_item_is_left_out_of_rows(weights):
    sizes = [50, 30][: len(weights)]
    numbers = np.arange(sum(sizes), dtype=np.uint16) % 7 // 6  # the second shape is rare
    order = Order(0, sizes, weights, rows=Rows(numbers, 8))
    epochs = 40
    counts = Counter(order.item(p) for p in range(epochs * order.length // 8 * 8))
    for root, first in enumerate(np.cumsum([0, *sizes[:-1]])):
        draws = weights[root] * order.length * epochs / sum(weights) / sizes[root]
        # All but what waits in a row that is not yet full, and what the root's last pass has not reached.
        assert all(abs(counts[first + item] - draws) <= 2 for item in range(sizes[root]))
