"""Statements of captions, their one-edit negatives, and the line from logits to chances."""

import random

import numpy as np
import pytest
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.rewards.model.calibration import auc_within, fit
from balcap_jax.rewards.model.negatives import one_edit_negatives
from balcap_jax.rewards.model.scene_questions import EDITS, is_true, pairs, scene_questions
from balcap_jax.rewards.model.score import chances, sigmoid, weights
from balcap_jax.rewards.model.statements import statements
from balcap_jax.scenes.world import Scene, Thing

SCENE = Scene(
    "white",
    (
        Thing("circle", "red", size="large", row=0, col=0),
        Thing("star", "blue", size="small", count=3, row=2, col=2),
    ),
)


def texts(caption: str) -> list[str]:
    return [asked.text for asked in statements(caption)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        # Things by their full names, and what holds between them.
        (
            "A large red circle is above the blue square.",
            ["large red circle", "blue square", "large red circle above blue square"],
        ),
        # The reader passes over places in the picture: the sentence is asked whole as well.
        (
            "A red circle is in the top left corner.",
            ["red circle", "A red circle is in the top left corner"],
        ),
        # The second name says less than the first.
        (
            "A small red car is there. The red car is dirty.",
            ["small red car", "red car is dirty"],
        ),
        # What cannot be split is asked whole; so is a denial.
        ("stop!", ["stop"]),
        ("There is no dog.", ["There is no dog"]),
        ("?!", ["?!"]),
        ("", []),
        ("   ", []),
    ],
)
def test_statements_of_a_caption(caption, expected):
    assert texts(caption) == expected


def test_a_statement_is_made_once_however_often_it_is_told():
    once = texts("A red circle is there.")
    assert texts("A red circle is there. A red circle is there.") == once


def test_remarks_are_less_pointable_than_what_is_seen():
    [seen, *_] = statements("A red car is on the road.")
    remark = statements("This suggests that they may enjoy the relaxing atmosphere.")
    assert seen.pointable == 1.0
    assert max(asked.pointable for asked in remark) < 0.5


# ---- scenes


@pytest.mark.parametrize(
    ("statement", "truth"),
    [
        ("large red circle", True),
        ("small red circle", False),
        ("three blue stars", True),
        ("two blue stars", False),
        ("A red circle is in the top left corner", True),
        ("A red circle is in the bottom left corner", False),
        ("red circle above blue stars", True),
        ("purple hippopotamus", None),  # not understood: neither
        ("The overall scene feels calm and harmonious.", None),
    ],
)
def test_truth_of_a_statement_is_that_of_the_scene(statement, truth):
    assert is_true(statement, SCENE) is truth


def test_pairs_are_true_and_false_and_of_all_four_edits():
    found = [pair for _, pair in zip(range(60), pairs(SCENE, random.Random(0)), strict=False)]
    assert {pair.kind for pair in found} == set(EDITS)
    for pair in found:
        assert is_true(pair.true, SCENE) is True
        assert is_true(pair.false, SCENE) is False
        assert len(set(pair.true.split()) - set(pair.false.split())) <= 4  # one edit, not another


def test_half_of_the_questions_of_a_scene_are_negatives():
    source = SceneSource("train", 3, seed=5)
    for i in range(3):
        scene = source[i].scene
        turns = scene_questions(scene, random.Random(i), 16)
        assert [turn.answer for turn in turns].count("yes") == 8
        assert len(turns) == 16
        assert all(is_true(t.question, scene) is (t.answer == "yes") for t in turns)
        assert turns == scene_questions(scene, random.Random(i), 16)


# ---- photos


def photo(name: str, *references: str) -> Example:
    image = Image.new("RGB", (8, 8))
    return Example(name, image, "", references[0], references=tuple(references))


PHOTOS = [
    photo("1", "Two dogs run on green grass.", "A brown dog is on the left."),
    photo("2", "A cat sits on green grass near a tree.", "A white cat."),
    photo("3", "A man rides a red bicycle.", "A man on a bicycle in front of a house."),
]


def test_negatives_of_photos_change_one_word_that_no_reference_has():
    found = one_edit_negatives(PHOTOS)
    assert found == one_edit_negatives(PHOTOS)
    assert {label.image for label in found} == {0, 1, 2}
    assert [label.true for label in found] == [True, False] * (len(found) // 2)
    for true, false in zip(found[::2], found[1::2], strict=True):
        told = " ".join(PHOTOS[true.image].references).lower()
        new = [w for w in false.text.lower().split() if w not in true.text.lower().split()]
        assert new
        assert " ".join(new) not in told


def test_negatives_of_photos_are_of_all_four_kinds():
    said = {label.text for label in one_edit_negatives(PHOTOS, most=20) if not label.true}
    assert any("green" not in text and "grass" in text for text in said)  # a colour
    assert any(text.split()[0] in ("three", "four", "five", "six") for text in said)  # a number
    assert any(" under " in f" {text} " or " right" in text for text in said)  # a place
    assert any("cat" in text or "tree" in text for text in said if "grass" in text)  # an object


def test_what_has_no_words_has_no_negatives():
    assert one_edit_negatives([photo("1", "Wow.")]) == []
    assert one_edit_negatives([]) == []


# ---- from logits to chances


def test_chance_and_weight_by_hand():
    image, blank = np.array([2.0, 0.0]), np.array([1.0, -1.0])
    expected = 1 / (1 + np.exp(-(image - 0.5 * blank + 0.25)))
    np.testing.assert_allclose(chances(image, blank, alpha=0.5, beta=0.25), expected, rtol=1e-12)
    np.testing.assert_allclose(weights(blank), 1 - 1 / (1 + np.exp(-blank)), rtol=1e-12)
    assert weights(np.array([1e6]))[0] > 0  # what is true of any image still has a sum to divide by
    assert np.isfinite(sigmoid(np.array([-1e9, 1e9]))).all()


def test_the_area_is_of_pairs_of_one_image():
    scores = np.array([3.0, 1.0, 0.5, 0.0, 9.0, np.nan])
    true = np.array([True, False, True, False, False, True])
    # Image a: 3 > 1, 3 > 0, 0.5 < 1, 0.5 > 0; the false one of b has no partner with a score.
    assert auc_within(scores, true, list("aaaabb")) == 0.75
    assert auc_within(np.array([1.0, 1.0]), np.array([True, False]), list("aa")) == 0.5
    assert np.isnan(auc_within(scores[:2], np.array([True, True]), list("aa")))


def test_the_fit_finds_the_line_that_made_the_labels():
    rng = np.random.default_rng(0)
    blank, image = rng.normal(0, 2, 20_000), rng.normal(0, 3, 20_000)
    true = rng.random(20_000) < sigmoid(image - 0.7 * blank + 0.4)
    found = fit(image, blank, true, list(range(10_000)) * 2)
    assert abs(found.alpha - 0.7) < 0.05
    assert abs(found.beta - 0.4) < 0.08
    assert (found.images, found.statements) == (10_000, 20_000)


def test_the_fit_is_finite_where_one_line_tells_all_apart():
    found = fit(np.array([50.0, -50.0]), np.zeros(2), np.array([True, False]), ["a", "a"])
    assert np.isfinite([found.alpha, found.beta]).all()
    assert found.auc == 1.0
