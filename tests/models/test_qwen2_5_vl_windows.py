"""Windowed attention does only the windows' work and gives what a mask over all patches gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from balcap_jax.models.attention.plain import attend_rows, attend_segments
from balcap_jax.models.geometry import window_ids, window_patches
from balcap_jax.models.padding import pad_windows
from balcap_jax.models.qwen2_5_vl.windows import attend_windows, index_windows
from balcap_jax.models.rearrange import rearrange

PATCHES = 48


def two_prompts():
    """Two images of odd grids in the first prompt, one in the second; ids and windows [b ...]."""
    ids = [window_ids(grid, merge=2, window=2) for grid in ((4, 6), (2, 4), (6, 6))]
    ids = [np.concatenate([ids[0], ids[1] + 2]), ids[2]]
    windows = pad_windows([window_patches(row, slots=16) for row in ids], PATCHES)
    padded = np.stack([np.pad(row, (0, PATCHES - len(row)), constant_values=-1) for row in ids])
    return padded, windows


def test_windows_equal_a_mask_over_all_patches():
    ids, windows = two_prompts()
    assert (windows < 0).any(axis=-1).any()  # some are partial
    assert (windows < 0).all(axis=-1).any()  # and some empty
    real = (ids >= 0)[..., None, None]
    rng = np.random.default_rng(0)
    q, k, v, weights = (rng.normal(size=(2, PATCHES, 3, 8)).astype(np.float32) for _ in range(4))

    def run(attend):
        def objective(q, k, v):
            out = jnp.where(real, attend(q, k, v), 0)
            return jnp.sum(weights * out), out

        return jax.jit(jax.grad(objective, (0, 1, 2), has_aux=True))(q, k, v)

    index = index_windows(windows, PATCHES)
    gradients, out = run(partial(attend_windows, index=index, attend_rows=attend_rows))
    expected, plain = run(partial(attend_segments, segments=jnp.asarray(ids)))
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        assert np.abs(ours).max() > 0.1


def test_gradient_does_not_see_what_padding_holds():
    """Patches in no window are read by none: not even NaN in them reaches a gradient."""
    ids, windows = two_prompts()
    index = index_windows(windows, PATCHES)
    real = (ids >= 0)[..., None, None]
    x = np.where(real, np.random.default_rng(0).normal(size=(2, PATCHES, 1, 4)), np.nan)
    x = jnp.asarray(x, jnp.float32)

    def objective(x):
        return jnp.sum(attend_windows(x, x, x, index=index, attend_rows=attend_rows) ** 2)

    assert np.isfinite(jax.grad(objective)(x)).all()


def test_rearrange_by_hand():
    x = jnp.asarray([[[[1.0]], [[2.0]], [[3.0]]]])
    source, target = jnp.asarray([[2, -1, 0, -1]]), jnp.asarray([[2, -1, 0]])
    out, vjp = jax.vjp(lambda x: rearrange(x, source, target), x)
    np.testing.assert_array_equal(out.ravel(), [3, 0, 1, 0])
    (gradient,) = vjp(jnp.asarray([10.0, 20.0, 30.0, 40.0]).reshape(out.shape))
    # Row 0 went to place 2, row 1 nowhere, row 2 to place 0.
    np.testing.assert_array_equal(gradient.ravel(), [30, 0, 10])


def test_index_is_both_ways():
    index = index_windows(np.array([[[2, 0, -1], [1, -1, -1]]], np.int32), 4)
    np.testing.assert_array_equal(index.slots, [[1, 3, 0, -1]])


def test_windows_are_padded_in_half_steps():
    """64 patches fill 4 windows of 16, so that counts are rounded up to multiples of 2."""
    rows = [np.zeros((count, 16), np.int32) for count in (5, 1)]
    padded = pad_windows(rows, 64)
    assert padded.shape == (2, 6, 16)
    assert (padded >= 0).any(axis=-1).sum(axis=-1).tolist() == [5, 1]
    # No more slots than patches, and none for prompts without images.
    assert pad_windows([np.full((1, 64), -1, np.int32)], 8).shape == (1, 1, 8)
    assert pad_windows([np.zeros((0, 0), np.int32)], 0).shape == (1, 0, 0)
