"""b-CapScore by hand."""

import numpy as np
import pytest

from balcap_jax.rewards.capscore import b_capscore, harmonic_mean

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5], 0.5),
        ([0.7, 0.7, 0.7], 0.7),
        ([1.0, 0.5], 2 / 3),  # 2 / (1 + 2)
        ([0.75, 0.4, 0.75], 18 / 31),  # 3 / (4/3 + 5/2 + 4/3) = 3 / (31/6)
        ([1.0, 1.0, 0.0], 0.0),  # one that fails is not made up for
        ([1.0, 1.0, -0.5], 0.0),
        ([1.0, 1.0, NAN], NAN),
        ([0.0, 1.0, NAN], NAN),  # unknown, though another is 0
        ([NAN], NAN),
    ],
)
def test_harmonic_mean(values, expected):
    np.testing.assert_allclose(harmonic_mean(np.array(values)), expected, rtol=1e-12)


def test_harmonic_mean_is_over_the_first_axis():
    values = np.array([[1.0, 0.5, 0.0, NAN], [0.5, 0.25, 1.0, 1.0]])
    # 2 / (1 + 2), 2 / (2 + 4)
    np.testing.assert_allclose(harmonic_mean(values), [2 / 3, 1 / 3, 0.0, NAN])
    assert harmonic_mean(values[:, :, None]).shape == (4, 1)


def test_harmonic_mean_is_of_double_precision():
    assert harmonic_mean(np.float32([1.0, 0.5])).dtype == np.float64
    np.testing.assert_allclose(harmonic_mean(np.array([1e-300, 1.0])), 2e-300)


def test_b_capscore_is_of_the_three_by_name():
    # 3 / (1/0.5 + 1/0.25 + 1/1) = 3/7, whatever the order and the others
    rewards = {"short": -4.0, "linguistic": 1.0, "precision": 0.5, "recall": 0.25, "own": NAN}
    assert b_capscore(rewards) == pytest.approx(100 * 3 / 7)
    assert b_capscore(rewards | {"recall": 0.0}) == 0.0
    assert np.isnan(b_capscore(rewards | {"recall": NAN}))


@pytest.mark.parametrize("missing", ["precision", "recall", "linguistic"])
def test_b_capscore_needs_all_three(missing):
    rewards = {"precision": 0.5, "recall": 0.5, "linguistic": 0.5, "short": 0.5}
    del rewards[missing]
    assert b_capscore(rewards) is None
    assert b_capscore({}) is None
