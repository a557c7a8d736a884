"""Long prompts share a micro-batch, and a device of one memory, with short ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rl.balance import Parts
from balcap_jax.rl.update import split_micro_batches


def test_order_by_hand():
    """Two rows of four prompts: the longest goes with the shortest."""
    counts, parts = np.array([5, 1, 7, 3, 2, 8, 8, 4]), Parts(2, 2)
    order = parts.order(counts)
    np.testing.assert_array_equal(order, [[2, 0, 1, 3], [1, 2, 0, 3]])
    micro = split_micro_batches(parts.reordered(jnp.asarray(counts), jnp.asarray(order)), 2)
    # Micro-batch 0 has 7 + 1 of the first row and 8 + 2 of the second.
    np.testing.assert_array_equal(micro, [[7, 1, 8, 2], [5, 3, 8, 4]])


def test_order_over_rows_by_hand():
    """The two longest are of the first row; each row and each micro-batch gets one of them."""
    counts, parts = np.array([9, 8, 4, 3, 2, 5, 1, 6]), Parts(2, together=True)
    order = parts.order(counts)
    np.testing.assert_array_equal(counts[order], [[9, 5, 4, 1], [8, 6, 3, 2]])
    np.testing.assert_array_equal(parts.ordered(counts, order), [9, 5, 4, 1, 8, 6, 3, 2])
    both = Parts(2, 2, together=True)
    micro = split_micro_batches(jnp.asarray(both.ordered(counts, both.order(counts))), 2)
    np.testing.assert_array_equal(micro, [[9, 1, 6, 3], [8, 2, 5, 4]])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("rows", "micro_batches"), [(1, 4), (2, 2), (4, 3), (4, 1)])
def test_host_and_device_find_the_same_order_and_it_is_undone(rows, micro_batches, together):
    counts = np.random.default_rng(0).integers(0, 4, rows * micro_batches * 3).astype(np.int32)
    parts = Parts(rows, micro_batches, together)
    order = parts.order(jnp.asarray(counts))
    np.testing.assert_array_equal(order, parts.order(counts))
    x = jnp.arange(len(counts) * 2).reshape(-1, 2)
    there = parts.reordered(x, order)
    assert (there != x).any()
    np.testing.assert_array_equal(there, parts.ordered(np.asarray(x), np.asarray(order)))
    np.testing.assert_array_equal(parts.reordered(there, parts.inverse(order)), x)


@pytest.mark.parametrize("parts", [Parts(1, 8), Parts(8, together=True), Parts(4, 2, True)])
def test_sums_of_parts_become_alike(parts):
    counts = np.random.default_rng(1).integers(100, 900, 32)

    def spread(counts):
        micro = split_micro_batches(jnp.asarray(counts), parts.micro_batches)
        sums = micro.reshape(parts.micro_batches, parts.rows, -1).sum(axis=-1)
        return sums.max() / sums.mean()

    assert spread(parts.ordered(counts, parts.order(counts))) < 1.06 < 1.14 < spread(counts)


def test_cores_of_one_machine_are_together():
    mesh = make_mesh(devices=jax.devices()[:4], fsdp=2)
    assert Parts.of(mesh, 2) == (4, 2, True)
    assert Parts(2).alone
    assert Parts(1, together=True).alone
    assert not Parts(2, together=True).alone
    assert not Parts(1, 2).alone
