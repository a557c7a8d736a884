"""Curves: one panel per number worth it, for rewards of any names."""

import numpy as np
import pytest

from balcap_jax.reporting import plots
from balcap_jax.reporting.plots import draw_curves, draw_lengths, smooth


def test_smoothing_keeps_constants_and_does_not_lag():
    np.testing.assert_allclose(smooth(np.full(9, 0.3), width=2.0), 0.3)
    line = np.arange(41.0)
    np.testing.assert_allclose(smooth(line, width=2.0)[6:-6], line[6:-6])
    noisy = line + np.tile([1.0, -1.0], 21)[:41]
    assert np.abs(smooth(noisy, width=2.0) - line)[6:-6].max() < 0.05
    np.testing.assert_array_equal(smooth(np.array([4.0]), width=0.0), [4.0])
    assert smooth(np.array([1.0, 2.0]), width=3.0).shape == (2,)
