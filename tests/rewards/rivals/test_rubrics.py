"""Rubrics: their reward, their files, and the answers of writer and judge."""

import json
import math
import random

import pytest
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.answer_text import BadAnswer
from balcap_jax.rewards.llm.stored_units import reference_digest
from balcap_jax.rewards.rivals.marks import listed, marks
from balcap_jax.rewards.rivals.rubric_files import RubricFile
from balcap_jax.rewards.rivals.rubric_questions import agreed_criteria
from balcap_jax.rewards.rivals.rubrics import Criterion, Rubric, rubric_reward

CRITERIA = (Criterion("Names a bus.", 3), Criterion("Says it is red.", 2), Criterion("Rain.", 1))


def test_the_reward_by_hand():
    assert rubric_reward(CRITERIA, (True, False, True)) == pytest.approx(4 / 6)
    assert rubric_reward(CRITERIA, (False, False, False)) == 0.0
    assert rubric_reward(CRITERIA, (True, True, True)) == 1.0
    assert rubric_reward((Criterion("x", 0), Criterion("y", 2)), (True, False)) == 0.0
    assert math.isnan(rubric_reward((), ()))


def test_scaled_weights_and_another_order_change_nothing():
    rng = random.Random(0)
    for _ in range(50):
        criteria = [Criterion(str(i), rng.choice((1, 2, 3))) for i in range(rng.randint(1, 12))]
        met = [rng.random() < 0.5 for _ in criteria]
        value = rubric_reward(criteria, met)
        scaled = [c._replace(weight=c.weight * 0.37) for c in criteria]
        assert rubric_reward(scaled, met) == pytest.approx(value, abs=1e-12)
        order = rng.sample(range(len(met)), len(met))
        assert rubric_reward([criteria[i] for i in order], [met[i] for i in order]) == value


def test_marks_are_read_in_any_order():
    text = '{"marks": [{"id": "m02", "met": 1}, {"id": "m1", "met": false}]}'
    assert marks(text, 2) == (False, True)
    assert listed(["a", "b\x00"], name="criterion") == [
        {"id": "m01", "criterion": "a"},
        {"id": "m02", "criterion": "b"},
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([("m01", 1)], "without a mark"),
        ([("m01", 1), ("m02", 0), ("m03", 1)], "does not exist"),
        ([("m01", 1), ("m01", 1)], "twice"),
        ([("m01", 1), ("m02", 2)], "neither 0 nor 1"),
        ([("m01", 1), ("m02", "1")], "neither 0 nor 1"),
        ([("m01", 1), (2, 0)], "without the id"),
        ([("m01", 1), ("two", 0)], "does not exist"),
    ],
)
def test_answers_that_do_not_fit_the_criteria_are_refused(given, reason):
    text = json.dumps({"marks": [{"id": id_, "met": met} for id_, met in given]})
    with pytest.raises(BadAnswer, match=reason):
        marks(text, 2)


def test_criteria_need_half_of_the_teachers():
    text = json.dumps({
        "criteria": [
            {"text": "Says the bus is red.", "severity": 3, "teachers": ["t1", "T2"]},
            {"text": "Names a dog.", "severity": 2, "teachers": ["t3"]},
            {"text": "Says the bus is red.", "severity": 1, "teachers": ["t1", "t2", "t3"]},
        ]
    })  # fmt: skip
    assert agreed_criteria(text, teachers=3) == (Criterion("Says the bus is red.", 3),)
    assert len(agreed_criteria(text, teachers=4)) == 1  # 2 of 4 are half, 1 of 4 is not
    assert agreed_criteria('{"criteria": []}', teachers=3) == ()
    with pytest.raises(BadAnswer, match="teacher"):
        agreed_criteria(text, teachers=2)  # there is no third
    with pytest.raises(BadAnswer, match="severity"):
        agreed_criteria(text.replace('"severity": 2', '"severity": 5'), teachers=3)


# Files --------------------------------------------------------------------------------------------

GOOD = {"id": "a", "criteria": [{"text": "Names a bus.", "severity": 3}]}


def of(id_):
    return Example(id_, Image.new("RGB", (8, 8)), "Describe the image.", "A bus.")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_read(tmp_path):
    mixed = {"id": "b", "criteria": [{"text": "x", "weight": 0.5}, {"text": "y", "weight": 0}]}
    empty = {"id": "c", "criteria": [], "start": "A bus.", "writer": "m"}
    rubrics = RubricFile(write(tmp_path / "rubrics.jsonl", GOOD, mixed, empty))
    assert rubrics.get(of("a")) == Rubric("a", (Criterion("Names a bus.", 3.0),))
    assert rubrics.get(of("b")).criteria == (Criterion("x", 0.5), Criterion("y", 0.0))
    assert rubrics.get(of("c")).criteria == ()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "criteria": [{"text": "x", "weight": 0}]}, "weights are all 0"),
        ({"id": "a", "criteria": [{"text": "x", "severity": 4}]}, "must be 1, 2 or 3"),
        ({"id": "a", "criteria": [{"text": "x", "severity": 0}]}, "must be 1, 2 or 3"),
        ({"id": "a", "criteria": [{"text": "x", "severity": True}]}, "must be 1, 2 or 3"),
        ({"id": "a", "criteria": [{"text": "x", "severity": 2.5}]}, "must be 1, 2 or 3"),
        ({"id": "a", "criteria": [{"text": "x", "weight": -1}]}, "at least 0"),
        ({"id": "a", "criteria": [{"text": "x", "weight": float("nan")}]}, "at least 0"),
        ({"id": "a", "criteria": [{"text": "x", "weight": 10**400}]}, "at least 0"),
        ({"id": "a", "criteria": [{"text": "x", "weight": "3"}]}, "at least 0"),
        ({"id": "a", "criteria": [{"text": "x"}]}, "a severity or a weight"),
        ({"id": "a", "criteria": [{"text": "x", "weight": 1, "severity": 1}]}, "one of them"),
        ({"id": "a", "criteria": [{"severity": 1}]}, "without a text"),
        ({"id": "a", "criteria": [3]}, "without a text"),
        ({"id": "a", "criteria": GOOD["criteria"] * 2}, "twice"),
        ({"id": 7, "criteria": []}, "is no rubric"),
        ({"id": "a"}, "is no rubric"),
        ([], "is no rubric"),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path, row, said):
    path = write(tmp_path / "rubrics.jsonl", {"id": "z", "criteria": []}, row)
    with pytest.raises(UserError, match=said) as error:
        RubricFile(path)
    assert f"{path} line 2" in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files_are_one_sentence(tmp_path):
    path = tmp_path / "rubrics.jsonl"
    for rows, said in (((), "holds no rubric"), ((GOOD, GOOD), "in the lines 1 and 2")):
        with pytest.raises(UserError, match=said):
            RubricFile(write(path, *rows))
    path.write_text('{"id": "a", "id": "b", "criteria": []}\n')
    with pytest.raises(UserError, match="is no rubric"):
        RubricFile(path)
    with pytest.raises(UserError, match="none.jsonl"):
        RubricFile(tmp_path / "none.jsonl")


def test_rubrics_are_those_of_the_images(tmp_path):
    rubrics = RubricFile(write(tmp_path / "rubrics.jsonl", GOOD))
    with pytest.raises(UserError, match="no rubric of the image 'b'"):
        rubrics.get(of("b"))
    other = {**GOOD, "reference": reference_digest("A car.")}
    with pytest.raises(UserError, match="the id 'a' that was written of an image with another"):
        RubricFile(write(tmp_path / "rubrics.jsonl", other)).get(of("a"))
    same = {**GOOD, "reference": reference_digest("A bus.")}
    assert RubricFile(write(tmp_path / "rubrics.jsonl", same)).get(of("a")).criteria
