"""Differences of seeds, their intervals and verdicts, by hand."""

import numpy as np
import pytest

from balcap_jax.evidence.compare import Difference, difference, student_interval, verdict
from balcap_jax.evidence.report import inside_each_other

NAN = float("nan")


def test_differences_are_paired_by_seed():
    one = {0: 81.0, 1: 80.0, 2: 84.0, 7: 99.0}
    found = difference(one, {2: 80.0, 0: 79.0, 1: 79.0, 8: 1.0})
    assert found.values == (2.0, 1.0, 4.0)
    # Mean 7/3; squares of -1/3, -4/3, 5/3 sum to 42/9, over 2: variance 7/3, std 1.527525.
    assert found.mean == pytest.approx(7 / 3)
    assert found.effect == pytest.approx((7 / 3) / 1.527525, rel=1e-6)
    # Student with 2 degrees of freedom: 4.302653 x 1.527525 / sqrt(3) = 3.794583.
    np.testing.assert_allclose(found.student, (7 / 3 - 3.794583, 7 / 3 + 3.794583), rtol=1e-5)
    # Resampled means lie between the least and the largest difference: all three the least happens
    # once in 27 times, more often than 2.5 %, and the same for the largest.
    assert found.bootstrap == (1.0, 4.0)


def test_pairs_without_a_number_are_none():
    found = difference({0: NAN, 1: 2.0}, {0: 1.0, 1: 1.5})
    assert (found.values, found.mean) == ((0.5,), 0.5)
    assert np.isnan([*found.bootstrap, *found.student, found.effect]).all()
    assert np.isnan(difference({}, {0: 1.0}).mean)


def test_equal_differences_have_no_width():
    found = difference({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert found.bootstrap == found.student == (1.0, 1.0)
    assert found.effect == np.inf


def made(low, high, *, pairs=5, student=None):
    return Difference((0.0,) * pairs, (low + high) / 2, (low, high), student or (low, high), 1.0)


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (made(2, 4), "higher", "shown"),
        (made(2, 4), "lower", "the opposite"),
        (made(-4, -2), "lower", "shown"),
        (made(-4, -2), "higher", "the opposite"),
        (made(-4, 2), "higher", "not shown"),
        (made(0.2, 0.9), "higher", "equal"),  # there, and smaller than anyone would care for
        (made(0.2, 1.1), "higher", "shown"),
        (made(-0.9, 0.9), "equal", "equal"),
        (made(2, 4), "equal", "unequal"),
        (made(-2, 4), "equal", "not shown"),
        (made(2, 4, student=(-1, 6)), "higher", "not shown"),  # the bootstrap alone is too sure
        (made(-0.5, 0.5, student=(-2, 2)), "equal", "not shown"),
        (made(2, 4, pairs=2), "higher", "not testable"),
    ],
)
def test_verdicts_follow_from_the_intervals(found, expected, said):
    assert verdict(found, expected=expected, margin=1.0) == said


def test_an_interval_of_a_mean_holds_it_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(2000, 5))
    inside = [low <= 0 <= high for low, high in map(student_interval, samples)]
    assert 0.935 < np.mean(inside) < 0.965


def test_curves_inside_each_others_interval():
    # Two seeds a side: means 1 and 2 with half-widths 12.7 x 0.5; then 0.1 and 9 with 12.7 x 0.1,
    # of which neither holds the other.
    one = np.array([[0.5, 0.0], [1.5, 0.2]])
    other = np.array([[1.5, 8.9], [2.5, 9.1]])
    assert inside_each_other(one, other) == (0.5, 2)
    # The wide one alone holds the other's mean: not inside each other.
    assert inside_each_other(np.array([[-5.0], [15.0]]), np.array([[0.0], [0.1]]))[0] == 0
    assert np.isnan(inside_each_other(one[:1], other)[0])
