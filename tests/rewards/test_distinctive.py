"""Precision and recall beyond what a caption gets by other photos."""

import numpy as np
import pytest

from balcap_jax.errors import UserError
from balcap_jax.rewards import distinctive_precision, distinctive_recall, functions
from balcap_jax.rewards.distinctive import MOST_OTHERS, steps_to_others
from balcap_jax.rewards.function_names import load_function

DOG = ["A brown dog runs on a beach.", "A dog is running in the sand."]
GIRL = ["A girl in a red dress rides a bicycle.", "A child on a bike in a street."]
BOAT = ["A white boat on a lake.", "A small boat near the shore of a lake."]
PHOTOS = [DOG, GIRL, BOAT]
BOTH = (distinctive_precision, distinctive_recall)
PLAIN = {
    distinctive_precision: functions.lexical_precision,
    distinctive_recall: functions.lexical_recall,
}


@pytest.mark.parametrize("function", BOTH)
def test_it_is_the_own_score_less_the_mean_of_the_others(function):
    captions = [DOG[0], GIRL[1], "A white boat and a dog."]

    def plain(caption: str, references: list[str]) -> float:
        return PLAIN[function](completions=[caption], references=[references])[0]

    found = function(completions=captions, references=PHOTOS)
    wanted = [
        plain(captions[0], DOG) - (plain(captions[0], GIRL) + plain(captions[0], BOAT)) / 2,
        plain(captions[1], GIRL) - (plain(captions[1], DOG) + plain(captions[1], BOAT)) / 2,
        plain(captions[2], BOAT) - (plain(captions[2], DOG) + plain(captions[2], GIRL)) / 2,
    ]
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found[0] > 0.3


@pytest.mark.parametrize("function", BOTH)
def test_a_caption_that_sees_no_photo_gets_nothing_on_average(function):
    """Over all photos of a call what it gains in one it loses in the others."""
    for caption in ("A person is standing outside.", DOG[0], "Blue black small wearing boy dog."):
        found = function(completions=[caption] * 3, references=PHOTOS)
        assert np.mean(found) == pytest.approx(0, abs=1e-6)
    honest = function(completions=[photo[0] for photo in PHOTOS], references=PHOTOS)
    assert min(honest) > 0.2


@pytest.mark.parametrize("function", BOTH)
def test_captions_of_one_photo_are_judged_by_the_same_others_in_any_order(function):
    captions = ["A dog runs.", "A girl on a bike.", "A dog on a beach.", "A boat."]
    rows = [DOG, GIRL, DOG, BOAT]
    found = function(completions=captions, references=rows)
    assert function(completions=captions[::-1], references=rows[::-1])[::-1] == pytest.approx(found)
    alone = function(completions=captions[:2] + captions[3:], references=[DOG, GIRL, BOAT])
    assert alone == pytest.approx([found[0], found[1], found[3]])


@pytest.mark.parametrize("function", BOTH)
def test_without_another_photo_or_references_there_is_no_signal(function):
    assert function(completions=["A dog.", "A cat."], references=[DOG, DOG]) == [None, None]
    found = function(completions=["A dog.", "A dog.", "A dog."], references=[DOG, [], GIRL])
    assert found[1] is None
    assert all(isinstance(value, float) for value in (found[0], found[2]))
    silent = [[{"role": "assistant", "content": None}], "A girl."]
    assert function(completions=silent, references=[DOG, GIRL])[0] is None
    with pytest.raises(UserError, match='column "references" is'):
        function(completions=["A dog."], references="A dog.")


def test_of_many_photos_some_count_that_are_spread_over_all():
    rows = [[f"A {thing} on a table."] for thing in _THINGS]
    steps = steps_to_others(len(rows))
    assert len(rows) > MOST_OTHERS + 1
    assert len(steps) == MOST_OTHERS
    found = distinctive_precision(completions=["A cup."] * len(rows), references=rows)
    for own in (0, len(rows) - 1):  # the last one goes on with the first
        near = [rows[(own + step) % len(rows)] for step in (0, *steps)]
        few = distinctive_precision(completions=["A cup."] * len(near), references=near)
        assert found[own] == pytest.approx(few[0])


def test_others_by_hand():
    assert [*steps_to_others(1)] == []
    assert [*steps_to_others(4)] == [1, 2, 3]
    assert [*steps_to_others(100, most=4)] == [1, 34, 67]
    assert [*steps_to_others(100, most=3)] == [1, 50, 99]


_THINGS = (
    "cup dog cat boat bike hat ball book lamp chair bottle fork knife spoon plate phone clock vase "
    "banana apple"
).split()


def test_runs_name_them_by_their_module():
    for name in ("distinctive_precision", "distinctive_recall"):
        assert load_function(f"balcap_jax.rewards:{name}").name == name
