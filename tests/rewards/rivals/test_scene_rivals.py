"""The exact rules of scenes: differences, rubrics and claims by hand and by their properties."""

import random

import pytest

from balcap_jax.rewards.rivals.claim_diff_modes import checks_reward, comparison_reward, counts_of
from balcap_jax.rewards.rivals.rubrics import rubric_reward
from balcap_jax.rewards.rivals.scene_differences import scene_checks, scene_comparison
from balcap_jax.rewards.rivals.scene_facts import told
from balcap_jax.rewards.rivals.scene_rubrics import met, scene_rubric, starting_caption
from balcap_jax.scenes.captions import FaultRates, faulty_caption, reference_caption
from balcap_jax.scenes.world import Scene, Thing, make_scene

SCENE = Scene(
    "grass",
    (
        Thing("circle", "red", "large", row=0, col=0),
        Thing("square", "green", row=2, col=2),
    ),
)
REFERENCE = "A large red circle is at the top left. A green square is in the bottom right corner."


def test_facts_of_a_place_are_true_one_by_one():
    found = told("A red circle is in the top right corner.", SCENE).true
    assert found == {
        ("thing", 0): True,
        ("colour", 0, "red"): True,
        ("row", 0, 0): True,
        ("column", 0, 2): False,
    }


def test_differences_by_hand():
    # Against the reference: "blue" for red (A wrong), "large" left out, the square with its colour,
    # row and column left out (A wrong 4 times), a star invented; "at the top" for the left column.
    caption = "A blue circle is at the top. There is a star at the top."
    found = scene_comparison(caption, REFERENCE, SCENE)
    told_of = {(d.aspect, d.judgment, d.error_a.kind) for d in found.differences}
    assert told_of == {
        ("colour", "B", "colour_hallucination"),
        ("size", "B", "size_omission"),
        ("column", "B", "column_omission"),
        ("thing", "B", "thing_omission"),
        ("row", "B", "row_omission"),
        ("thing", "B", "thing_hallucination"),
        ("row", "B", "row_hallucination"),
        ("colour", "B", "colour_omission"),
    }
    assert found.winner == "B"
    # square: thing, colour, row, column; circle: size, column, colour; star: thing, row
    counts = counts_of(found)
    assert (counts.a, counts.b, counts.d) == (9, 0, 9)
    assert comparison_reward(found, "normalized_diff") == 0.0
    assert comparison_reward(found, "a_only") == pytest.approx(0.1)


def test_what_the_reference_lacks_counts_for_the_caption():
    caption = f"{REFERENCE} The background is a grassy field."
    found = scene_comparison(caption, REFERENCE, SCENE)
    (difference,) = found.differences
    assert difference.judgment == found.winner == "A"
    assert difference.error_a is None
    assert difference.error_b.kind == "background_omission"
    assert comparison_reward(found, "normalized_diff") == 1.0


def test_repeating_and_gibberish_are_errors_and_commentary_is_no_difference():
    again = scene_comparison(f"{REFERENCE} {REFERENCE}", REFERENCE, SCENE)
    assert {d.error_a.kind for d in again.differences} == {"repetition_error"}
    words = scene_comparison(f"{REFERENCE} Blorp the frobnitz.", REFERENCE, SCENE)
    assert {d.error_a.kind for d in words.differences} == {"unclear_wording_error"}
    remark = "The composition creates a sense of balance."
    assert scene_comparison(f"{REFERENCE} {remark}", REFERENCE, SCENE).differences == ()


def test_checks_by_hand():
    caption = "A blue circle is at the top. There is a star. The background is a grassy field."
    found = scene_checks(caption, REFERENCE, SCENE)
    counted = sorted((check.kind, check.verification) for check in found)
    assert counted == [
        ("contradiction", "false"),  # blue
        ("extra_info", "false"),  # the star
        ("extra_info", "verified"),  # the background
        *[("missing_fact", "missing")] * 6,  # large, left, and the square with all it has
    ]
    assert checks_reward(found) == pytest.approx(1 - 8 / 9)


def test_references_differ_in_nothing_from_themselves_and_faults_cost():
    rng = random.Random(3)
    below = 0
    for i in range(40):
        scene = make_scene(5, "train", i)
        reference = reference_caption(scene)
        same = scene_comparison(reference, reference, scene)
        assert all(
            d.error_a and d.error_a.kind == "repetition_error" for d in same.differences[::2]
        )
        assert comparison_reward(same, "normalized_diff") == 0.5
        assert scene_checks(reference, reference, scene) == ()
        wrong = faulty_caption(scene, rng, FaultRates())
        found = scene_comparison(wrong, reference, scene)
        below += comparison_reward(found, "normalized_diff") < 0.5
        kinds = {d.error_b.kind.split("_")[-1] for d in found.differences if d.error_b}
        assert "hallucination" not in kinds  # references are true
    assert below >= 30


def test_rubrics_of_a_scene_by_hand():
    every = scene_rubric(SCENE, REFERENCE)
    weights = {criterion.fact: criterion.weight for criterion in every}
    assert weights == {
        ("thing", 0): 3, ("size", 0, "large"): 2, ("colour", 0, "red"): 2,
        ("row", 0, 0): 1, ("column", 0, 0): 1,
        ("thing", 1): 3, ("colour", 1, "green"): 2, ("row", 1, 2): 1, ("column", 1, 2): 1,
    }  # fmt: skip
    assert all(criterion.says for criterion in every)
    assert met(every, REFERENCE, SCENE) == (True,) * 9
    caption = "A red circle is at the top."
    criteria = [criterion.criterion for criterion in every]
    # circle 3, red 2, top 1 of 16
    assert rubric_reward(criteria, met(every, caption, SCENE)) == pytest.approx(6 / 16)


def test_rubrics_against_a_starting_caption_ask_for_what_it_fails():
    start = "A large blue circle is at the top left. A star is at the top."
    failed = scene_rubric(SCENE, REFERENCE, start)
    asked = {(criterion.fact[:2], criterion.says) for criterion in failed}
    assert (("colour", 0), True) in asked  # red
    assert (("colour", 0), False) in asked  # not blue
    assert (("thing", ("star", "")), False) in asked
    assert (("thing", 1), True) in asked
    assert (("thing", 0), True) not in asked
    assert not any(met(failed, start, SCENE))
    assert all(met(failed, REFERENCE, SCENE))
    assert scene_rubric(SCENE, REFERENCE, REFERENCE) == ()


def test_starting_captions_fail_something_and_are_a_function_of_the_scene():
    sizes = []
    for i in range(40):
        scene = make_scene(9, "train", i)
        start = starting_caption(scene)
        assert start == starting_caption(scene)
        rubric = scene_rubric(scene, reference_caption(scene), start)
        assert not any(met(rubric, start, scene))
        assert all(met(rubric, reference_caption(scene), scene))
        sizes.append(len(rubric))
    assert sum(size > 0 for size in sizes) >= 36
