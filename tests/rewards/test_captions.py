"""From verdicts to rewards, by hand."""

import numpy as np
import pytest

from balcap_jax.errors import UserError
from balcap_jax.rewards.captions import linguistic, precision, recall, rewards_of
from balcap_jax.rewards.verdicts import Assertion, Verdict

NAMES = ("precision", "recall", "linguistic")


def verdict(assertions=(), covered=(), marks=(0.0, 0.0, 0.0)):
    return Verdict(tuple(Assertion("x", *a) for a in assertions), tuple(covered), *marks)


def test_an_assertion_counts_when_verified_and_pointable():
    four = [(True, True), (True, False), (False, True), (False, False)]
    assert precision(verdict(four)) == 0.25
    assert precision(verdict(four[:1])) == 1.0


def test_without_pointability_every_true_assertion_counts():
    four = [(True, True), (True, False), (False, True), (False, False)]
    assert precision(verdict(four), pointability=False) == 0.5
    # A judge that cannot know: half true, and a tenth of that where it points at nothing.
    unsure = Assertion("a calm", verified=False, pointable=False, chance=0.05, truth=0.5)
    both = Verdict((unsure, Assertion("x", True, True)), (), 0.0, 0.0, 0.0)
    assert precision(both) == pytest.approx(1.05 / 2)
    assert precision(both, pointability=False) == pytest.approx(1.5 / 2)
    np.testing.assert_allclose(
        rewards_of([both, None], ("precision", "linguistic"), pointability=False),
        np.float32([[0.75, 0.0], [np.nan, np.nan]]),
    )


def test_a_judge_without_truths_cannot_leave_pointability_out():
    only_both = Assertion("a calm sea", verified=False, pointable=False, chance=0.25)
    with pytest.raises(UserError, match="'a calm sea' only the chance 0.25"):
        precision(Verdict((only_both,), (), 0.0, 0.0, 0.0), pointability=False)


def test_no_assertion_is_precision_zero():
    assert precision(verdict()) == 0.0


def test_assertions_that_weigh_nothing_are_precision_zero():
    light = Assertion("x", verified=True, pointable=True, chance=1.0, weight=0.0)
    assert precision(verdict()._replace(assertions=(light,))) == 0.0


def test_recall_is_the_share_of_covered_units():
    assert recall(verdict(covered=(True, False, False, True, True))) == 0.6


def test_a_reference_without_units_gives_no_signal():
    assert np.isnan(recall(verdict()))


def test_linguistic_is_the_mean_of_three():
    # (1 + 0.5 + 0) / 3
    assert linguistic(verdict(marks=(1.0, 0.5, 0.0))) == pytest.approx(0.5)


def test_rewards_stand_in_the_order_of_their_names():
    one = verdict([(True, True), (False, True)], (True, True, False, False, False), (1.0, 1.0, 0.4))
    found = rewards_of([one], ("linguistic", "recall", "precision"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.8, 0.4, 0.5]], rtol=1e-6)


def test_no_verdict_is_no_signal_in_any_reward():
    found = rewards_of([None, verdict(covered=(True,)), None], NAMES)
    np.testing.assert_array_equal(np.isnan(found), [[True] * 3, [False] * 3, [True] * 3])
    np.testing.assert_array_equal(found[1], [0, 1, 0])


def test_shapes_of_nothing():
    assert rewards_of([], NAMES).shape == (0, 3)
    assert rewards_of([None], ()).shape == (1, 0)
