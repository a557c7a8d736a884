"""From answers to findings: repaired where there is one way to, else refused."""

import json

import pytest

from balcap_jax.rewards.llm.answers import (
    BadAnswer,
    findings,
    grounded,
    new_caption,
    parse_object,
    unit_texts,
    verdict_of,
)
from balcap_jax.rewards.llm.prompts import JOINT, SEPARATE
from balcap_jax.rewards.verdicts import Assertion, Verdict

CAPTION = "A small red car stands left of two bikes. It feels calm."
ANSWER = {
    "assertions": [
        {"quote": "small red car", "verified": True, "pointable": True},
        {"quote": "car ... left of two bikes", "verified": False, "pointable": True},
        {"quote": "It feels calm.", "verified": True, "pointable": False},
    ],
    "covered": [2, 0],
    "clarity": 10, "fluency": 7, "coherency": 0,
}  # fmt: skip
VERDICT = Verdict(
    (
        Assertion("small red car", verified=True, pointable=True),
        Assertion("car ... left of two bikes", verified=False, pointable=True),
        Assertion("It feels calm.", verified=True, pointable=False),
    ),
    (True, False, True),
    1.0,
    0.7,
    0.0,
)
TEXT = json.dumps(ANSWER)


def read(text, units=3):
    return verdict_of([findings(JOINT, text, caption=CAPTION, units=units)])


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"\ufeff  {TEXT}\n",
        f"```json\n{TEXT}\n```",
        f"```\n{TEXT}\n```",
        f"Here is the result:\n{TEXT}\nThat is all.",
        f"Let me see.\n```json\n{TEXT}\n```\nDone.",
        f"<think>Is {{it}} true?</think>\n{TEXT}",
        f"Is {{it}} true?</think>{TEXT}",
        TEXT.replace("[2, 0]", "[2, 0,]").replace('"coherency": 0}', '"coherency": 0, }'),
        TEXT.replace('"fluency": 7', '"fluency": 7.0'),
        json.dumps(ANSWER | {"covered": [0, 2], "remark": "extra"}),
        json.dumps(ANSWER, indent=4),
    ],
)
def test_what_can_be_read_in_one_way_is_read(text):
    assert read(text) == VERDICT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON object"),
        ("I cannot do that.", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        (TEXT[: len(TEXT) // 2], "cut or broken"),
        (TEXT[:-1], "cut or broken"),
        (TEXT + TEXT, "more than one"),
        (f"{TEXT}\nor rather {TEXT}", "more than one"),
        (TEXT.replace('"fluency": 7', '"fluency": 7, "fluency": 9'), "given twice"),
        (TEXT.replace('"fluency": 7', '"fluency": NaN'), "a number that is none"),
        (TEXT.replace('"fluency": 7', '"fluency": 7.5'), "whole number"),
        (TEXT.replace('"fluency": 7', '"fluency": "7"'), "whole number"),
        (TEXT.replace('"fluency": 7', '"fluency": true'), "whole number"),
        (TEXT.replace('"fluency": 7', '"fluency": 11'), "out of range"),
        (TEXT.replace('"fluency": 7', '"fluency": -1'), "out of range"),
        (TEXT.replace('"fluency": 7, ', ""), "no field 'fluency'"),
        (TEXT.replace("[2, 0]", "[3]"), "does not exist"),
        (TEXT.replace("[2, 0]", "[-1]"), "does not exist"),
        (TEXT.replace("[2, 0]", '"all"'), "no list"),
        (TEXT.replace("small red car", "small blue car"), "does not make"),
        (TEXT.replace("small red car", "car red small"), "does not make"),
        (TEXT.replace("small red car", "..."), "does not make"),
        (TEXT.replace('"verified": true', '"verified": "yes"'), "another type"),
        (TEXT.replace('"quote"', '"text"'), "without its fields"),
        (json.dumps(ANSWER | {"assertions": ANSWER["assertions"] * 20}), "more assertions"),
        (json.dumps(ANSWER | {"assertions": None}), "no list"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_cannot_is_refused_with_the_reason(text, reason):
    with pytest.raises(BadAnswer, match=reason):
        read(text)


def test_parts_make_the_same_verdict():
    found = [findings(part, TEXT, caption=CAPTION, units=3) for part in SEPARATE]
    assert verdict_of(found) == VERDICT


def test_grounding_is_by_words_in_order():
    assert grounded("A SMALL, red car!", CAPTION)
    assert grounded("car left bikes", CAPTION)
    assert not grounded("bikes left of car", CAPTION)
    assert not grounded("", CAPTION)
    assert not grounded("ed car", CAPTION)
    assert grounded("红色的车", "左边有一辆红色的车。")  # no spaces between words
    assert not grounded("蓝色的车", "左边有一辆红色的车。")


def test_units():
    reference = "A red car stands at the corner. It is parked."
    units = ["A red car is there.", "The car is at the corner.", "A red car is there."]
    assert unit_texts(json.dumps({"units": units}), reference=reference) == tuple(units[:2])
    for wrong in (["Two dogs sleep under trees."], [], [""], "a", [1], None):
        with pytest.raises(BadAnswer):
            unit_texts(json.dumps({"units": wrong}), reference=reference)
    text = json.dumps({"units": ["红色的车"]}, ensure_ascii=False)
    assert unit_texts(text, reference="左边有一辆红色的车。") == ("红色的车",)


def test_new_captions():
    assert new_caption('{"caption": " A red\\n car. "}') == "A red car."
    for wrong in ("", " ", 3, None):
        with pytest.raises(BadAnswer):
            new_caption(json.dumps({"caption": wrong}))


def test_a_mark_inside_an_object_is_no_mark():
    # A caption that says </think> must not be able to make its own verdict unreadable.
    text = json.dumps({"quote": "</think> ```json\n{ ```"})
    assert parse_object(text) == json.loads(text)
