"""Which examples a step sees."""

import numpy as np
import pytest

from balcap_jax.data.order import step_places


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
