"""One row for several steps says what their rows said, also over a resume."""

import json
import math

import numpy as np
import pytest

from balcap_jax.runs.folder import to_json
from balcap_jax.runs.step_average import StepAverage

NAN = float("nan")


def average(*rows):
    mean = StepAverage()
    for row in rows:
        mean.add(row)
    return mean.take()


def test_by_hand():
    row = average(
        {"loss": 1.0, "kl": NAN, "clip": NAN, "rho/hist": [1, 0, 3], "peak_memory_mb": 900.0,
         "words": 40, "learning_rate": 0.1, "epoch": 0.5, "seconds/judge": 1.0, "judge/calls": 4,
         "judge/price_total": 1.0, "judge/price_projected": 8.0, "norm": math.inf},
        {"loss": 2.0, "kl": 0.5, "clip": NAN, "rho/hist": [0, 2, 2], "peak_memory_mb": 950.0,
         "words": 42, "learning_rate": 0.2, "epoch": 1.0, "seconds/judge": 3.0, "judge/calls": 8,
         "judge/price_total": 3.0, "judge/price_projected": 9.0, "norm": 1.0,
         "heldout/b_capscore": 50.0},
        {"loss": 6.0, "kl": 1.5, "clip": NAN, "rho/hist": [2, 2, 0], "peak_memory_mb": 920.0,
         "words": 41, "learning_rate": 0.3, "epoch": 1.5, "seconds/judge": 5.0, "judge/calls": 0,
         "judge/price_total": 4.0, "judge/price_projected": 7.0, "norm": 2.0,
         "heldout/b_capscore": NAN},
    )  # fmt: skip
    assert math.isnan(row.pop("clip"))
    assert math.isnan(row.pop("heldout/b_capscore"))  # the last value, never a mean
    assert row == {
        "loss": 3.0, "kl": 1.0, "rho/hist": [3, 4, 5], "peak_memory_mb": 950.0, "words": 41.0,
        "learning_rate": 0.3, "epoch": 1.5, "seconds/judge": 3.0, "judge/calls": 4.0,
        "judge/price_total": 4.0, "judge/price_projected": 7.0, "norm": math.inf,
    }  # fmt: skip
    assert list(row)[:3] == ["loss", "kl", "rho/hist"]


def test_a_heldout_score_within_the_stretch_is_kept():
    row = average({"loss": 1.0, "heldout/recall": 0.3}, {"loss": 2.0}, {"loss": 3.0})
    assert row == {"loss": 2.0, "heldout/recall": 0.3}


def test_a_single_row_is_unchanged():
    given = {"loss": np.float32(0.1), "words": 41, "rho/hist": np.arange(3), "kl": NAN}
    row = average(given)
    assert list(row) == list(given)
    assert all(row[name] is given[name] for name in given)
    assert to_json(row) == to_json(given)


def test_taking_starts_anew():
    mean = StepAverage()
    mean.add({"loss": 1.0})
    mean.add({"loss": 3.0})
    assert mean.take() == {"loss": 2.0}
    assert mean.take() == {}
    mean.add({"loss": 5.0})
    assert mean.take() == {"loss": 5.0}


def test_lists_of_different_lengths_are_a_mistake_of_ours():
    with pytest.raises(ValueError, match="same shape"):
        average({"rho/hist": [1, 2]}, {"rho/hist": [1]})


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_resume_within_the_stretch_changes_no_bit(at):
    rows = [
        {"loss": 0.1, "kl": NAN, "norm": -math.inf, "rho/hist": [1, 2], "words": np.float32(0.1)},
        {"loss": 0.2, "kl": NAN, "norm": 1.0, "rho/hist": np.array([3, 4]), "words": np.int64(7)},
        {"loss": 0.7, "kl": 1 / 3, "norm": 0.0, "rho/hist": [5, 6], "words": 3},
    ]
    first = StepAverage()
    for row in rows[:at]:
        first.add(row)
    second = StepAverage()
    second.restore(json.loads(to_json(first.state())))  # as a checkpoint writes it
    for row in rows[at:]:
        second.add(row)
    resumed, unbroken = second.take(), average(*rows)
    assert repr(resumed) == repr(unbroken)
    assert first.take().keys() == (rows[0].keys() if at else set())  # state() took nothing


def test_a_single_row_over_a_resume():
    first, second = StepAverage(), StepAverage()
    first.add({"loss": 1 / 3, "kl": NAN, "words": 41, "rho/hist": [1]})
    second.restore(json.loads(to_json(first.state())))
    assert repr(second.take()) == repr(first.take())
