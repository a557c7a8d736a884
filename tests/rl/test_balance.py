"""Long prompts share a micro-batch with short ones."""

import jax.numpy as jnp
import numpy as np

from balcap_jax.rl.balance import balanced_order, inverse, reordered
from balcap_jax.rl.update import split_micro_batches


def test_order_by_hand():
    """Two rows of four prompts: the longest goes with the shortest."""
    counts = np.array([5, 1, 7, 3, 2, 8, 8, 4])
    order = balanced_order(counts, rows=2, micro_batches=2)
    np.testing.assert_array_equal(order, [[2, 0, 1, 3], [1, 2, 0, 3]])
    parts = split_micro_batches(reordered(jnp.asarray(counts), jnp.asarray(order)), 2)
    # Micro-batch 0 has 7 + 1 of the first row and 8 + 2 of the second.
    np.testing.assert_array_equal(parts, [[7, 1, 8, 2], [5, 3, 8, 4]])


def test_host_and_device_find_the_same_order_and_it_is_undone():
    rng = np.random.default_rng(0)
    for rows, micro_batches in ((1, 4), (2, 2), (4, 3)):
        counts = rng.integers(0, 4, rows * micro_batches * 3).astype(np.int32)  # many are equal
        split = {"rows": rows, "micro_batches": micro_batches}
        order = balanced_order(jnp.asarray(counts), **split)
        np.testing.assert_array_equal(order, balanced_order(counts, **split))
        x = jnp.arange(len(counts) * 2).reshape(-1, 2)
        assert (reordered(x, order) != x).any()
        np.testing.assert_array_equal(reordered(reordered(x, order), inverse(order)), x)


def test_sums_of_micro_batches_become_alike():
    counts = np.random.default_rng(1).integers(100, 900, 32)
    order = balanced_order(counts, rows=1, micro_batches=8)

    def spread(counts):
        sums = counts.reshape(-1, 8).sum(axis=0)
        return sums.max() / sums.mean()

    assert spread(counts[order[0]]) < 1.06 < 1.14 < spread(counts)
