"""The bookkeeping of `tests/measure_refill.py`, by hand."""

import numpy as np
import pytest
from measure_refill import compacted, queue


def test_a_queue_by_hand():
    # Columns: 3, then 2 from step 3 on; 1, then 2 from step 1 on, which leaves step 3 to one of 2.
    assert queue([3, 1, 2, 2], columns=2, every=1) == [2, 2, 2, 1, 1]
    # Looked for after two steps: the column that is free from step 1 on waits until step 2.
    assert queue([3, 1, 2, 2], columns=2, every=2) == [2, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("every", [1, 4])
def test_a_queue_computes_each_token_once(every):
    lengths = np.random.default_rng(0).integers(1, 30, 50)
    used = queue(lengths, columns=8, every=every)
    assert sum(used) == lengths.sum()
    assert max(used) == 8
    if every == 1:  # full until nothing waits
        assert used[: len(used) - 30] == [8] * (len(used) - 30)


def test_a_batch_goes_on_with_the_smallest_size_that_holds_it():
    assert compacted(np.array([1, 1, 2, 4]), sizes=(4, 2)) == [4, 2, 2, 2]
