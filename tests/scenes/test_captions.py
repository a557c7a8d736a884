"""References are true, varied and of the right length; each fault comes at its rate and has its
effect.
"""

import dataclasses
import random
from functools import cache

import numpy as np
import pytest

from balcap_jax.rewards.captions import linguistic, precision, recall
from balcap_jax.rewards.scene.judge import judge
from balcap_jax.scenes.captions import (
    LONGEST,
    SHORTEST,
    FaultRates,
    faulty_caption,
    reference_caption,
)
from balcap_jax.scenes.language import META_SENTENCES, sentences, words_in
from balcap_jax.scenes.world import make_scene

NO_FAULTS = FaultRates(**{field.name: 0.0 for field in dataclasses.fields(FaultRates)})
FAULTS = [field.name for field in dataclasses.fields(FaultRates)]


@cache
def scenes(count):
    return [make_scene(0, "train", i) for i in range(count)]


def captions(rates, count):
    made = scenes(count)
    return [faulty_caption(scene, random.Random(i), rates) for i, scene in enumerate(made)]


def only(fault, rate=1.0):
    return dataclasses.replace(NO_FAULTS, **{fault: rate})


@cache
def measured(fault):
    """Means over captions that have one fault alone (None: no fault) of what the judge finds."""
    count = 80
    rates = NO_FAULTS if fault is None else only(fault)
    rows = []
    for scene, caption in zip(scenes(count), captions(rates, count), strict=True):
        reference = reference_caption(scene)
        verdict = judge(caption, scene, reference)
        rows.append(
            {
                "precision": precision(verdict),
                "recall": recall(verdict),
                "linguistic": linguistic(verdict),
                "fluency": verdict.fluency,
                "coherency": verdict.coherency,
                "rho": words_in(caption) / words_in(reference),
                "commentary": sum(a.verified and not a.pointable for a in verdict.assertions),
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_references_have_30_to_90_words():
    lengths = [words_in(reference_caption(scene)) for scene in scenes(500)]
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert np.std(lengths) > 5


def test_a_reference_is_a_function_of_its_scene():
    scene = scenes(1)[0]
    text = reference_caption(scene)
    random.seed(0)
    assert reference_caption(dataclasses.replace(scene)) == text


def test_references_are_varied():
    """The order of parts of speech, contents left out, hardly ever comes twice."""
    texts = [reference_caption(scene) for scene in scenes(500)]
    assert len(set(texts)) == 500
    shapes = [[tuple(x.tag for x in s.lexemes) for s in sentences(text)] for text in texts]
    assert len({tuple(shape) for shape in shapes}) > 490
    assert len({sentence for shape in shapes for sentence in shape}) > 150


def test_references_are_perfect_under_the_judge():
    for index in range(550):
        scene = make_scene(5, "heldout", index)
        reference = reference_caption(scene)
        verdict = judge(reference, scene, reference)
        found = precision(verdict), recall(verdict), linguistic(verdict)
        assert found == (1.0, 1.0, 1.0), reference
        # Every thing and the background are told.
        units = len(verdict.covered)
        assert units >= 2 * len(scene.things) + 1


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_comes_at_its_rate(fault):
    count, rate = 800, getattr(FaultRates(), fault)
    found = [fault in caption.faults for caption in captions(only(fault, rate), count)]
    shares = [rate] * count
    if fault == "wrong_attribute":  # drawn for each thing
        shares = [1 - (1 - rate) ** len(scene.things) for scene in scenes(count)]
    deviation = np.sqrt(sum(p * (1 - p) for p in shares))
    assert abs(sum(found) - sum(shares)) < 4 * deviation


def test_faults_come_at_their_rates_together():
    count, rates = 800, FaultRates()
    made = captions(rates, count)
    for fault in ("invented", "omission", "too_short"):
        p = getattr(rates, fault)
        assert abs(sum(fault in c.faults for c in made) - p * count) < 4 * np.sqrt(p * count)
    # A caption of one sentence has no room for the faults of how a story is told.
    long = [caption for caption in made if "too_short" not in caption.faults]
    for fault in ("meta", "repetition", "fragments", "too_long"):
        p = getattr(rates, fault)
        found = sum(fault in caption.faults for caption in long)
        assert abs(found - p * len(long)) < 4 * np.sqrt(p * len(long))


@pytest.mark.parametrize("fault", FAULTS)
def test_rates_of_one_and_zero(fault):
    assert all(caption.faults == {fault} for caption in captions(only(fault), 100))
    others = FaultRates(**{name: 0.5 for name in FAULTS if name != fault} | {fault: 0.0})
    assert not any(fault in caption.faults for caption in captions(others, 100))


def test_a_caption_of_the_corpus_is_a_function_of_scene_and_generator():
    scene = scenes(1)[0]
    first, again = (faulty_caption(scene, random.Random(4), FaultRates()) for _ in range(2))
    assert (first, first.faults) == (again, again.faults)
    assert len({faulty_caption(scene, random.Random(i), FaultRates()) for i in range(20)}) > 15


def test_without_faults_all_is_true_and_well_told():
    clean = measured(None)
    assert clean["precision"].min() == clean["linguistic"].min() == 1.0
    assert clean["recall"].mean() > 0.85


@pytest.mark.parametrize(
    ("fault", "reward", "least"),
    [
        ("invented", "precision", 0.1),
        ("wrong_attribute", "precision", 0.2),
        ("wrong_attribute", "recall", 0.2),
        ("omission", "recall", 0.15),
        ("meta", "precision", 0.05),
        ("repetition", "coherency", 0.3),
        ("repetition", "linguistic", 0.15),
        ("fragments", "fluency", 0.4),
        ("fragments", "linguistic", 0.4),
        ("too_short", "recall", 0.5),
    ],
)
def test_a_fault_costs_what_it_should(fault, reward, least):
    assert measured(None)[reward].mean() - measured(fault)[reward].mean() > least


def test_invention_and_omission_cost_one_side_only():
    assert measured("omission")["precision"].min() == 1.0
    assert abs(measured("invented")["recall"].mean() - measured(None)["recall"].mean()) < 0.05
    np.testing.assert_array_less(measured("invented")["precision"], 1.0)


def test_meta_commentary_is_true_and_points_at_nothing():
    assert measured("meta")["commentary"].min() >= 1
    assert measured(None)["commentary"].max() == 0
    # Well told it is: only precision tells against it.
    assert measured("meta")["linguistic"].mean() > 0.98


def test_too_short_and_too_long_leave_the_range_of_the_mask():
    assert measured("too_short")["rho"].max() < 0.5
    long = measured("too_long")["rho"]
    assert np.mean(long > 2) > 0.8
    assert long.min() > 1.5


def test_meta_sentences_stand_in_captions_as_they_are():
    for caption in captions(only("meta"), 30):
        assert any(sentence in caption for sentence in META_SENTENCES)
