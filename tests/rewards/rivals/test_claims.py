"""FEEDQUILL-style rewards by hand, and the answers of the splitter."""

import numpy as np
import pytest

from balcap_jax.rewards.llm.answer_text import BadAnswer
from balcap_jax.rewards.rivals.claim_questions import units
from balcap_jax.rewards.rivals.claim_votes import claims_precision, claims_recall, correctness

# Three judges, four units: 3, 2, 1 and 0 of them say that it is correct.
VOTES = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)


def test_votes_by_hand():
    majority, mean = (correctness(VOTES, vote=vote) for vote in ("majority", "mean"))
    np.testing.assert_array_equal(majority, [1, 1, 0, 0])
    np.testing.assert_allclose(mean, [1, 2 / 3, 1 / 3, 0])
    assert (claims_precision(majority), claims_recall(majority)) == (0.5, 2.0)
    assert claims_precision(mean) == pytest.approx(0.5)
    assert claims_recall(mean) == pytest.approx(2.0)


def test_half_of_the_judges_are_no_majority():
    np.testing.assert_array_equal(
        correctness(np.array([[1, 1], [0, 1]], bool), vote="majority"), [0, 1]
    )


def test_order_of_judges_and_units_changes_nothing():
    rng = np.random.default_rng(0)
    votes = rng.random((5, 9)) < 0.6
    for vote in ("majority", "mean"):
        plain = correctness(votes, vote=vote)
        other = correctness(votes[rng.permutation(5)][:, rng.permutation(9)], vote=vote)
        assert claims_precision(plain) == pytest.approx(claims_precision(other))
        assert claims_recall(plain) == pytest.approx(claims_recall(other))


def test_no_units_are_no_correct_ones():
    none = correctness(np.zeros((3, 0), bool), vote="majority")
    assert (claims_precision(none), claims_recall(none)) == (0.0, 0.0)


def test_units_are_read():
    assert units('{"units": ["A bus.", " A  bus. ", "It is red."]}') == ("A bus.", "It is red.")
    for bad in ('{"units": []}', '{"units": [""]}', '{"units": "A bus."}', '{"units": [1]}', "no"):
        with pytest.raises(BadAnswer):
            units(bad)
