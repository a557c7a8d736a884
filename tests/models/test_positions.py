"""Positions of a tower for images of another size."""

import numpy as np
import pytest

from balcap_jax.models.llava.positions import resize_positions


def test_by_hand():
    """From 2 to 4 places: the first lies at -0.25 and takes of place 1, at distance 1.25,
    -0.75 * (1.25^3 - 5 * 1.25^2 + 8 * 1.25 - 4) = -0.1055; all the rest is of place 0.
    """
    table = np.array([7.0, 0, 0, 1, 1], np.float32)[:, None]  # the same in each column
    resized = resize_positions(table, 4)[:, 0]
    assert resized[0] == 7  # the class token stays
    rows = np.array([-0.10546875, 0.2265625, 0.7734375, 1.10546875])
    np.testing.assert_allclose(resized[1:].reshape(4, 4), rows[:, None] * np.ones(4), atol=1e-6)


def test_the_same_size_is_the_same_table():
    table = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    assert resize_positions(table, 3) is table


@pytest.mark.torch
@pytest.mark.parametrize(("old", "new"), [(5, 3), (3, 5), (37, 16), (2, 7)])
def test_it_is_torchs_bicubic(old, new):
    torch = pytest.importorskip("torch", reason="the test extra has torch")
    table = np.random.default_rng(0).normal(size=(1, old**2 + 1, 4)).astype(np.float32)
    grid = torch.tensor(table[:, 1:]).reshape(1, old, old, 4).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic")
    ours = resize_positions(table, new)[:, 1:].reshape(1, new, new, 4)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5)
