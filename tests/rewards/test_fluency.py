"""Fluency by a language model's log-probabilities: saturates, shows one wrong word, and cannot be
raised by saying a thing again. The model here is a table of pairs of words.
"""

import json
import math
from collections import Counter

import numpy as np
import pytest
from captions import CASES, example

from balcap_jax.errors import UserError
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.lexical.fluency import (
    FEWEST,
    Calibration,
    FluentJudge,
    as_record,
    calibrate,
    fluency,
    from_record,
    worst_window,
)
from balcap_jax.rewards.lexical.judge import LexicalJudge

REFERENCES = [reference for case in CASES for reference in case.references] * 2


def words(text):
    return ["<s>", *text.lower().replace(".", " .").split()]


def pairs_model(texts):
    """A scorer that has learned which word follows which."""
    pairs = Counter(p for text in texts for p in zip(words(text), words(text)[1:], strict=False))
    first = Counter(word for text in texts for word in words(text)[:-1])

    def score(captions):
        return [
            [math.log((pairs[p] + 0.01) / (first[p[0]] + 1))
             for p in zip(words(caption), words(caption)[1:], strict=False)]
            for caption in captions
        ]  # fmt: skip

    return score


SCORER = pairs_model(REFERENCES)
CALIBRATION = calibrate(SCORER(REFERENCES))


def value(caption):
    return fluency(SCORER([caption])[0], CALIBRATION)


def test_worst_window_by_hand():
    # windows of -1 -1 -1 -5 and -1 -1 -5 -2: means -2 and -2.25
    assert worst_window([-1, -1, -1, -5, -2]) == -2.25
    assert worst_window([-1, -3]) == -2
    assert math.isnan(worst_window([]))
    assert worst_window([-1, -math.inf]) == -math.inf


def test_calibration_by_hand():
    # worst windows 0, -1, ..., -20: a tenth lies below -18, the middle is -10
    found = calibrate([[-float(n)] * 5 for n in range(21)])
    assert found == pytest.approx((-18.0, 8.0))


def test_score_by_hand():
    given = Calibration(level=-3.0, spread=2.0)
    assert fluency([-3.0] * 4, given) == 1.0
    assert fluency([-5.0] * 4, given) == pytest.approx(math.exp(-1))
    assert fluency([], given) == 0.0
    assert fluency([-math.inf], given) == 0.0
    assert math.isnan(fluency([-1.0, math.nan], given))


def test_of_two_references_the_likelier_gets_no_more():
    worst = [worst_window(each) for each in SCORER(REFERENCES)]
    above = [r for r, w in zip(REFERENCES, worst, strict=True) if w >= CALIBRATION.level]
    assert len(above) >= 0.8 * len(REFERENCES)
    assert len({round(w, 6) for w in worst}) > 3  # they do differ in likelihood
    assert {value(reference) for reference in above} == {1.0}


def test_one_wrong_word_shows_wherever_it_stands():
    good = "A brown dog jumps to catch a red frisbee in a park."
    assert value(good) == 1.0
    for at in range(len(good.split())):
        wrong = good.split()
        wrong[at] = "zebra"
        assert value(" ".join(wrong)) < 0.8, at
    # A long caption does not hide it.
    assert value(" ".join([*REFERENCES[:3], good.replace("jumps", "zebra")])) < 0.8


def test_repetition_gains_nothing():
    wrong = "A brown dog zebra to catch a red frisbee."
    assert value(f"{wrong} {wrong} {wrong}") <= value(wrong) < 1
    bland = [-0.01] * 400
    assert fluency([-9.0, *bland], CALIBRATION) == pytest.approx(
        fluency([-9.0, *bland[:3]], CALIBRATION)
    )


def test_too_few_references_are_refused():
    with pytest.raises(UserError, match=rf"needs {FEWEST} references .* have 3 .*--judge.fluency"):
        calibrate([[-1.0], [-2.0], [-3.0], [], [math.nan]])


def test_references_that_are_all_alike_still_tell_apart():
    found = calibrate([[-2.0] * 4] * FEWEST)
    assert fluency([-2.0] * 4, found) == 1.0
    assert 0 < fluency([-2.1] * 4, found) < 1


def test_a_run_keeps_its_calibration():
    assert from_record(json.loads(json.dumps(as_record(CALIBRATION)))) == CALIBRATION


@pytest.mark.parametrize(
    "record", [{}, {"level": "x", "spread": 1.0}, {"level": -1.0, "spread": 0.0},
               {"level": math.nan, "spread": 1.0}],
)  # fmt: skip
def test_what_is_no_calibration_is_refused(record):
    with pytest.raises(UserError, match="start a new run"):
        from_record(record)


def test_a_judge_with_it():
    judge = FluentJudge(LexicalJudge(), SCORER, CALIBRATION)
    photo = example(CASES[0])
    good = CASES[0].references[0]
    names = ("precision", "recall", "linguistic")
    plain = rewards_of(LexicalJudge()([photo], [good]), names)
    np.testing.assert_array_equal(rewards_of(judge([photo], [good]), names), plain)
    wrong = good.replace("jumps", "zebra")
    before, after = (rewards_of(j([photo], [wrong]), names) for j in (LexicalJudge(), judge))
    np.testing.assert_array_equal(after[0, :2], before[0, :2])
    assert after[0, 2] == pytest.approx(before[0, 2] * value(wrong))
    assert judge.reference_units(photo) == LexicalJudge().reference_units(photo)


def test_a_model_that_gives_no_number_gives_no_signal():
    judge = FluentJudge(LexicalJudge(), lambda texts: [[math.nan]] * len(texts), CALIBRATION)
    assert judge([example(CASES[0])], ["A dog."]) == [None]
