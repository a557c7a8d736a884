"""Which examples a step sees."""

import numpy as np
import pytest

from balcap_jax.data.order import Extent, Order, spread, step_places


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_example_once_per_epoch_in_an_order_of_its_own(count):
    drawn = [i for step in range(30) for i in step_places(10, step=step, count=count, seed=0)]
    epochs = [drawn[i : i + 10] for i in range(0, len(drawn) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    # A function of step alone: a resumed run sees the same images.
    assert step_places(10, step=7, count=count, seed=0) == drawn[7 * count : 8 * count]
    assert [step_places(10, step=s, count=count, seed=1) for s in range(4)] != [
        step_places(10, step=s, count=count, seed=0) for s in range(4)
    ]


def test_a_million_examples_are_shuffled_and_the_order_is_that_of_numpy():
    size, count = 10**6 + 1, 64
    order = np.random.default_rng((5, 0)).permutation(size)
    for step in (0, 7, size // count):  # the last one goes on with the next epoch
        places = step_places(size, step=step, count=count, seed=5)
        first = step * count
        wanted = order[first : first + count].tolist()
        assert places[: len(wanted)] == wanted
    again = np.random.default_rng((5, 1)).permutation(size)
    assert places[len(wanted) :] == again[: count - len(wanted)].tolist()


def test_an_endless_source_never_repeats():
    drawn = [i for step in range(20) for i in step_places(10**9, step=step, count=7, seed=3)]
    assert drawn == list(range(140))


# By length ----------------------------------------------------------------------------------------


def lengths_of(size, *, seed=0):
    """A tenth of long ones, the others of a few lengths, as photos have."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([216, 234, 252, 324], size)
    return np.where(rng.random(size) < 0.1, 1369, lengths)


def at_lengths(lengths):
    return [Extent(int(n), int(n) // 10) for n in lengths]


def grouped(size, *, count, window, seed=0, lengths=None):
    lengths = lengths_of(size) if lengths is None else lengths
    return Order(
        size, count=count, seed=seed, window=window, extents=lambda at: at_lengths(lengths[at])
    )


@pytest.mark.parametrize(
    ("size", "count", "window"), [(100, 8, 3), (97, 8, 2), (13, 8, 4), (5, 8, 2), (64, 4, 16)]
)
def test_an_epoch_by_length_has_each_example_once(size, count, window):
    order = grouped(size, count=count, window=window)
    drawn = [i for step in range(4 * size // count + 8) for i in order.places(step)]
    for start in range(0, 4 * size, size):
        assert sorted(drawn[start : start + size]) == list(range(size))
    # A function of the step alone: one that starts later, or goes back, sees the same.
    again = grouped(size, count=count, window=window)
    for step in (5, 1, 3, 6):
        assert again.places(step) == drawn[step * count : (step + 1) * count]
    assert grouped(size, count=count, window=window, seed=1).places(0) != order.places(0)


@pytest.mark.parametrize(("size", "count", "window"), [(100, 8, 3), (97, 8, 2), (13, 8, 4)])
def test_windows_are_those_of_the_plain_order(size, count, window):
    order = grouped(size, count=count, window=window)
    for epoch in range(4):
        plain = [
            step_places(size, step=number, count=1, seed=0)[0]
            for number in range(epoch * size, (epoch + 1) * size)
        ]
        at, windows = 0, 0
        while at < size:
            found = order.window_of(epoch, at)
            assert (found.epoch, found.start) == (epoch, at)
            drawn = [
                order.places(number // count)[number % count]
                for number in range(epoch * size + at, epoch * size + found.stop)
            ]
            assert sorted(drawn) == sorted(plain[at : found.stop])
            # Whole batches but for the ends, which share theirs with another epoch.
            whole = found.stop - at - found.head - found.tail
            assert whole % count == 0
            assert (epoch * size + at + found.head) % count == 0 or whole == 0
            at, windows = found.stop, windows + 1
        assert windows <= size // (count * window) + 1


def test_examples_of_one_length_stay_where_they_are():
    lengths = np.full(50, 49)
    order = grouped(50, count=4, window=3, lengths=lengths)
    for step in range(30):
        assert order.places(step) == step_places(50, step=step, count=4, seed=0)
    lengths[7] = 50  # and only its windows move
    order = grouped(50, count=4, window=3, lengths=lengths)
    moved = [order.places(s) != step_places(50, step=s, count=4, seed=0) for s in range(12)]
    assert 0 < sum(moved) <= 6


def test_without_a_window_or_lengths_the_order_is_plain():
    for order in (
        grouped(50, count=4, window=0),
        Order(50, count=4, seed=0, window=3),
        Order(10**9, count=4, seed=0, window=3, extents=at_lengths),
    ):
        assert not order.window
        plain = step_places(order.size, step=2, count=4, seed=0)
        assert order.places(2) == plain


def test_long_examples_come_together_and_little_is_padded():
    """A tenth of long ones in 40 batches of 64: padded to their longest, 27 % is real by chance."""
    size, count = 40 * 64, 64
    lengths = lengths_of(size)

    def real(order):
        longest = [lengths[order.places(step)].max() for step in range(size // count)]
        padded = [max(n, order.extent(step).tokens) for step, n in enumerate(longest)]
        return lengths.sum() / (count * sum(padded))

    assert real(grouped(size, count=count, window=0)) < 0.28
    assert real(grouped(size, count=count, window=10)) > 0.79
    assert real(grouped(size, count=count, window=40)) > 0.85


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_parts_of_a_batch_are_long_alike(hosts):
    """Within the difference of two examples, whichever they are: of sorted ones, each part has one
    of every few neighbours.
    """
    size, count = 40 * 64, 64
    rng = np.random.default_rng(1)
    lengths = rng.integers(200, 1400, size)
    order = grouped(size, count=count, window=10, lengths=lengths)
    for step in range(size // count):
        parts = lengths[order.places(step)].reshape(hosts, -1)
        spread_of_batch = np.ptp(lengths[order.places(step)])
        assert np.ptp(parts.sum(axis=1)) <= spread_of_batch
        assert spread_of_batch < 300


@pytest.mark.parametrize("count", [1, 2, 6, 8, 64, 100])
def test_spread_has_each_number_once_and_halves_alike(count):
    found = spread(count)
    assert sorted(found) == list(range(count))
    if count % 2 == 0:
        assert abs(found[: count // 2].sum() - found[count // 2 :].sum()) <= count // 2


def test_lengths_are_asked_once_a_window_and_few_are_kept():
    asked = []
    lengths = lengths_of(96)

    def look(places):
        asked.append(len(places))
        return at_lengths(lengths[places])

    order = Order(96, count=4, seed=0, window=2, extents=look)
    for step in range(24):
        order.places(step)
    assert asked == [8] * 12
    order.places(23)
    assert len(asked) == 12
    order.places(0)
    assert len(asked) == 13
    assert len(order._made) <= 3


def test_batches_of_about_one_length_are_padded_alike():
    """By the longest of their window: 216 tokens are of a size, 257 to 384 of one, 1369 of one."""
    order = grouped(40 * 64, count=64, window=10)
    lengths, seen = lengths_of(40 * 64), set()
    for step in range(40):
        longest = int(lengths[order.places(step)].max())
        least = order.extent(step)
        assert longest <= least.tokens
        assert least == {216: (252, 25), 234: (252, 25), 252: (252, 25), 324: (324, 32)}.get(
            longest, (1369, 136)
        )
        seen.add(least)
    assert len(seen) == 3


def test_nothing_is_padded_more_where_all_are_of_one_length_or_nothing_is_grouped():
    lengths = np.full(50, 49)
    assert grouped(50, count=4, window=3, lengths=lengths).extent(3) == (0, 0)
    assert grouped(50, count=4, window=0).extent(3) == (0, 0)
