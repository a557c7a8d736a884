"""Means over images and how far they vary with the choice of images."""

import numpy as np
import pytest

from balcap_jax.evaluation import bcapscore, dcscore
from balcap_jax.evaluation.statistics import interval, paired_interval


def test_b_capscore_is_of_means():
    items = [
        {"precision": 1.0, "recall": 0.5, "linguistic": None},
        {"precision": 0.5, "recall": 0.0, "linguistic": 0.5},
    ]
    found = bcapscore.measures(items)
    assert found["strict"].value == pytest.approx(100 * 3 / (1 / 0.75 + 1 / 0.25 + 1 / 0.5))
    assert found["linguistic"].value == pytest.approx(50.0)


def of_scores(values):
    items = [{"score": float(v), "strict_score": float(v), "failed": None} for v in values]
    return dcscore.measures(items)["strict"]


def test_intervals_hold_the_mean_and_know_the_number_of_images():
    values = np.random.default_rng(0).random(400)
    whole, part = of_scores(values), of_scores(values[:40])
    wide, narrow = interval(part), interval(whole)
    assert narrow.low < whole.value < narrow.high
    # The standard error is 100 * std / sqrt(n); 95 % are 1.96 of it on both sides.
    expected = 2 * 1.96 * 100 * values.std() / np.sqrt(400)
    assert narrow.high - narrow.low == pytest.approx(expected, rel=0.05)
    assert 2.2 < (wide.high - wide.low) / (narrow.high - narrow.low) < 4.5
    assert interval(whole) == narrow
    assert np.isnan(interval(of_scores([0.5])).low)


def test_paired_intervals_see_through_what_images_share():
    rng = np.random.default_rng(1)
    images = rng.random(60)
    same, worse = of_scores(images), of_scores(images - 0.03 - 0.02 * rng.random(60))
    low, high = paired_interval(same, worse)
    assert high < 0
    assert paired_interval(same, same) == (0.0, 0.0)
    # Apart, they overlap.
    assert interval(same).low < interval(worse).high


def test_paired_intervals_hold_the_true_difference_as_often_as_they_say():
    # 200 pairs of models that differ by 0.1 in truth; images differ much more, and both share that.
    rng, held = np.random.default_rng(2), 0
    for _ in range(200):
        images = rng.normal(0, 1, 60)
        one, other = (of_scores(images + shift + rng.normal(0, 0.2, 60)) for shift in (0, 0.1))
        low, high = paired_interval(one, other, resamples=400)
        held += low <= 10.0 <= high
    # 95 % of 200 are 190, give or take 3; percentiles of 60 images are a little narrow.
    assert 180 <= held <= 198
