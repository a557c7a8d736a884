"""From answers to findings: repaired where there is one way to, else refused."""

import json
import unicodedata

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
from balcap_jax.rewards.llm.questions import JOINT, SEPARATE
from balcap_jax.rewards.verdicts import Assertion, Verdict

CAPTION = "A small red car stands left of two bikes. It feels calm."
ANSWER = {
    "assertions": [
        {"quote": "small red car", "verified": True, "pointable": True},
        {"quote": "car ... left of two bikes", "verified": False, "pointable": True},
        {"quote": "It feels calm.", "verified": True, "pointable": False},
    ],
    "covered": ["u03", "u01"],
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
COVERED = '["u03", "u01"]'


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
        TEXT.replace(COVERED, '["u03", "u01",]').replace('"coherency": 0}', '"coherency": 0, }'),
        TEXT.replace('"fluency": 7', '"fluency": 7.0'),
        json.dumps(ANSWER | {"covered": ["u01", "u03"], "remark": "extra"}),
        json.dumps(ANSWER, indent=4),
        TEXT.replace(COVERED, '["U3", " u1"]'),
        TEXT.replace('"small red car"', '"\\\\u0022small red car\\\\u0022"'),  # an escape, copied
        TEXT.replace('"It feels calm."', '"It feels\ncalm.\t"'),  # raw, which JSON does not allow
        f"The set {{car, bikes}} is {{ both }}: {TEXT} {{ }}",
        f'In the form {{}} of {{"quote": "..."}} it is:\n{TEXT}',
        'A 5" pipe, ] and {so}: ' + TEXT.replace(COVERED, '["u03", "u01",]'),
        f"```\nIs it?\n```\n```json\n{TEXT}\n```",
        f"<thinking>{TEXT}?</thinking>{TEXT}",
        f"[THINK]{{[/THINK]{TEXT}",
        f"◁think▷{TEXT}◁/think▷{TEXT}",
        "<|channel|>analysis<|message|>Hm {.<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{TEXT}",
        f"<answer>{TEXT}</answer>",
        f"<|begin_of_box|>{TEXT}<|end_of_box|>",
        f"[{TEXT}]",
        json.dumps(TEXT),
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
        (TEXT.replace('"fluency": 7', '"fluency": "4/5"'), "whole number"),
        (TEXT.replace('"fluency": 7', '"fluency": Infinity'), "a number that is none"),
        (TEXT.replace('"fluency": 7', f'"fluency": {"9" * 5000}'), "cut or broken"),
        (TEXT.replace('"fluency": 7', '"fluency": 1e999'), "whole number"),
        (TEXT.replace('"', "'"), "cut or broken"),
        (f"<think>{TEXT}", "thoughts without an end"),
        # The caption's own words before an answer that is cut are not the answer.
        (f"The caption says {TEXT}. Now mine: {TEXT[:-1]}", "cut or broken"),
        (f"{TEXT[:-1]} The caption says {TEXT}", "cut or broken"),
        (f'{TEXT[:-1]}, "x": {"[" * 300}{"]" * 300}}}', "nested too deeply"),
        ("{}" * 100_000, "more than one"),
        (TEXT.replace(COVERED, '["u01", "u03", "u03"]'), "given twice"),
        (TEXT.replace(COVERED, '["u01", "u1"]'), "given twice"),
        # From 0, from 1, or flags: there is no telling.
        (TEXT.replace(COVERED, "[2, 0]"), "a number or flag"),
        (TEXT.replace(COVERED, "[1, 3]"), "a number or flag"),
        (TEXT.replace(COVERED, "[1, 0, 1]"), "a number or flag"),
        (TEXT.replace(COVERED, "[true, false, true]"), "a number or flag"),
        (TEXT.replace(COVERED, '[["u01"]]'), "a number or flag"),
        (TEXT.replace(COVERED, '["0", "2"]'), "does not exist"),
        (TEXT.replace(COVERED, '["u00"]'), "does not exist"),
        (TEXT.replace(COVERED, '["u01 u02"]'), "does not exist"),
        (TEXT.replace(COVERED, '["There is a car."]'), "does not exist"),
        (TEXT.replace(COVERED, "null"), "no list"),
        (TEXT.replace("small red car", "a"), "states nothing"),
        (TEXT.replace("small red car", "of"), "states nothing"),
        (TEXT.replace("small red car", "It of."), "no sentence of the caption makes"),
        (TEXT.replace('"verified": true', '"verified": 1'), "another type"),
        (TEXT.replace('"verified": true', '"verified": "true"'), "another type"),
        (TEXT.replace('"verified": true', '"verified": null'), "another type"),
        (json.dumps(ANSWER | {"assertions": []}), "no assertion of a caption with words"),
        (TEXT.replace(COVERED, '["u04"]'), "does not exist"),
        (TEXT.replace(COVERED, '"all"'), "no list"),
        (TEXT.replace("small red car", "small blue car"), "no sentence of the caption makes"),
        (TEXT.replace("small red car", "car red small"), "no sentence of the caption makes"),
        (TEXT.replace("small red car", "..."), "no sentence of the caption makes"),
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


@pytest.mark.parametrize(
    "again", ["small red car", "A small, RED car!", " small  red car", "a ... small red car"]
)
def test_an_assertion_counts_once_however_often_it_is_given(again):
    first = ANSWER["assertions"][0]
    more = json.dumps(
        ANSWER | {"assertions": [first, *[first | {"quote": again}] * 5, *ANSWER["assertions"]]}
    )
    assert read(more) == VERDICT
    # Another finding on the same words is another fact of a sentence that was quoted whole.
    other = json.dumps(ANSWER | {"assertions": [first, first | {"verified": False}, *[first] * 4]})
    assert [a.verified for a in read(other).assertions] == [True, False]


def test_only_a_caption_without_words_has_no_assertions():
    text = json.dumps(ANSWER | {"assertions": []})
    assert findings(JOINT, text, caption="!!!", units=3).assertions == ()
    for caption in ("It is there.", "the the the", "Nice.", "猫"):
        with pytest.raises(BadAnswer, match="no assertion of a caption with words"):
            findings(JOINT, text, caption=caption, units=3)


@pytest.mark.parametrize(
    ("caption", "quote", "good"),
    [
        ("A red car. A blue bike stands.", "red bike", False),  # of neither sentence
        ("A red car. A blue bike stands.", "red ... stands", False),
        ("A red car. A blue bike stands.", "A blue ... stands", True),
        ("A red car. A blue bike stands.", "red car. A blue bike", True),  # copied as it stands
        ("A St. Bernard lies there.", "A St. Bernard", True),
        ("A 3.5 m long fish.", "3.5 m fish", True),
        ("A sign reads “STOP.” Two men wait.", "sign ... men", False),
        ("一辆红色的车。一只蓝色的猫。", "蓝色的猫", True),
    ],
)
def test_an_assertion_is_of_one_sentence(caption, quote, good):
    listed = [{"quote": quote, "verified": True, "pointable": True}]
    text = json.dumps(ANSWER | {"assertions": listed})
    if good:
        assert findings(JOINT, text, caption=caption, units=3).assertions[0].counted
    else:
        with pytest.raises(BadAnswer, match="no sentence of the caption makes"):
            findings(JOINT, text, caption=caption, units=3)


def test_words_without_content_never_count_as_true_of_the_image():
    listed = [{"quote": q, "verified": True, "pointable": True} for q in ("red star", "There.")]
    text = json.dumps(ANSWER | {"assertions": listed})
    found = findings(JOINT, text, caption="There. A red star.", units=3).assertions
    assert [a.counted for a in found] == [True, False]


def test_words_without_content_are_a_remark_where_they_are_a_sentence():
    caption = "There. A red star. The of! is."  # as a policy writes that has learnt nothing
    for quote, good in (("There.", True), ("The of!", True), ("is", True), ("the", False),
                        ("A", False), ("of", False), ("There A", False)):  # fmt: skip
        listed = [{"quote": q, "verified": False, "pointable": False} for q in ("red star", quote)]
        text = json.dumps(ANSWER | {"assertions": listed})
        if good:
            assert len(findings(JOINT, text, caption=caption, units=3).assertions) == 2
        else:
            with pytest.raises(BadAnswer, match="states nothing"):
                findings(JOINT, text, caption=caption, units=3)


def test_one_spelling_of_a_letter():
    caption = "A cafe\u0301 with a nai\u0308ve sign."  # as two characters each
    for quote in ("A café", "naïve sign", "cafe\u0301 naïve"):
        listed = [{"quote": quote, "verified": True, "pointable": True}]
        text = json.dumps(ANSWER | {"assertions": listed})
        found = findings(JOINT, text, caption=caption, units=3)
        composed = findings(JOINT, text, caption="A café with a naïve sign.", units=3)
        assert found == composed
        assert found.assertions[0].text == unicodedata.normalize("NFC", quote)


def test_grounding_is_by_words_in_order():
    assert grounded("A SMALL, red car!", CAPTION)
    assert grounded("car left bikes", CAPTION)
    assert not grounded("bikes left of car", CAPTION)
    assert not grounded("", CAPTION)
    assert not grounded("ed car", CAPTION)
    assert grounded("红色的车", "左边有一辆红色的车。")  # no spaces between words
    assert not grounded("蓝色的车", "左边有一辆红色的车。")


REFERENCE = "A red car stands at the corner. It is parked on grass."


def units_in(listed, reference=REFERENCE):
    return unit_texts(json.dumps({"units": listed}, ensure_ascii=False), reference=reference)


def test_units():
    units = ["A red car is there.", "The car is at the corner.", "A red car is there."]
    assert units_in(units) == tuple(units[:2])
    for wrong in (["Two dogs sleep under trees."], [], [""], "a", [1], None, {"0": "A car."}):
        with pytest.raises(BadAnswer):
            units_in(wrong)
    assert units_in(["红色的车"], "左边有一辆红色的车。") == ("红色的车",)


def test_one_bad_unit_is_left_out_and_the_others_stay():
    # Four words of which one says something, and that is the reference's.
    assert units_in(["There is grass."]) == ("There is grass.",)
    assert units_in(["There are cars.", "Something is parking."]) == ("There are cars.",)
    good = ["There is a car.", "The car is red."]
    for bad in ("There is a dog.", "It is there.", "", "...", 3, None, {"unit": "A car."}, ["car"]):
        assert units_in([good[0], bad, good[1]]) == tuple(good), bad
    assert units_in(["There is a car.", "there is a CAR!", "A car"]) == ("There is a car.",)
    with pytest.raises(BadAnswer, match="units that the reference does not state"):
        units_in([good[0], "A dog sleeps.", "Two cats play."])


def test_units_in_another_spelling_are_stated():
    reference = "Ein Ma\u0308dchen sitzt im Cafe\u0301."
    listed = ["Ein Mädchen sitzt.", "Ein Ma\u0308dchen sitzt.", "Es ist im Café."]
    assert units_in(listed, reference) == ("Ein Mädchen sitzt.", "Es ist im Café.")


def test_new_captions():
    assert new_caption('{"caption": " A red\\n car. "}') == "A red car."
    for wrong in ("", " ", 3, None):
        with pytest.raises(BadAnswer):
            new_caption(json.dumps({"caption": wrong}))


def test_a_mark_inside_an_object_is_no_mark():
    # A caption that says </think> must not be able to make its own verdict unreadable.
    text = json.dumps({"quote": "</think> ```json\n{ ```"})
    assert parse_object(text) == json.loads(text)
