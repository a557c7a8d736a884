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
from balcap_jax.rewards.lexical.judge import LexicalJudge
from balcap_jax.rewards.model.fluency import (
    FEWEST,
    Fluent,
    FluentJudge,
    fit,
    fluency,
    worst_window,
)

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
FLUENT = fit(SCORER(REFERENCES))


def value(caption):
    return fluency(SCORER([caption])[0], FLUENT)


def test_worst_window_by_hand():
    # windows of -1 -1 -1 -5 and -1 -1 -5 -2: means -2 and -2.25
    assert worst_window([-1, -1, -1, -5, -2]) == -2.25
    assert worst_window([-1, -3]) == -2
    assert math.isnan(worst_window([]))
    assert worst_window([-1, -math.inf]) == -math.inf


def test_fit_by_hand():
    # worst windows 0, -1, ..., -20: a tenth lies below -18, the middle is -10
    found = fit([[-float(n)] * 5 for n in range(21)])
    assert found == pytest.approx((-18.0, 8.0, 21))


def test_score_by_hand():
    given = Fluent(level=-3.0, spread=2.0)
    assert fluency([-3.0] * 4, given) == 1.0
    assert fluency([-5.0] * 4, given) == pytest.approx(math.exp(-1))
    assert fluency([], given) == 0.0
    assert fluency([-math.inf], given) == 0.0
    assert math.isnan(fluency([-1.0, math.nan], given))


def test_of_two_references_the_likelier_gets_no_more():
    worst = [worst_window(each) for each in SCORER(REFERENCES)]
    above = [r for r, w in zip(REFERENCES, worst, strict=True) if w >= FLUENT.level]
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
    assert fluency([-9.0, *bland], FLUENT) == pytest.approx(fluency([-9.0, *bland[:3]], FLUENT))


def test_too_few_references_are_refused():
    with pytest.raises(UserError, match=rf"needs {FEWEST} references .* have 3 .*--judge.fluency"):
        fit([[-1.0], [-2.0], [-3.0], [], [math.nan]])


def test_references_that_are_all_alike_still_tell_apart():
    found = fit([[-2.0] * 4] * FEWEST)
    assert fluency([-2.0] * 4, found) == 1.0
    assert 0 < fluency([-2.1] * 4, found) < 1


def test_a_judge_with_it():
    judge = FluentJudge(LexicalJudge(), SCORER, name="pairs")
    photos = [example(case) for case in CASES]
    pairs = tuple(f"{a} {b}" for a, b in zip(REFERENCES, REFERENCES[1:], strict=False))
    judge.fit([*photos, photos[0]._replace(references=pairs)])
    assert judge.fluent.references >= FEWEST
    again = FluentJudge(LexicalJudge(), SCORER, name="pairs")
    again.restore(json.loads(json.dumps(judge.state())))
    assert again.fluent == judge.fluent
    assert judge.told() == [
        f"fluency by pairs: 1 where no 4 tokens in a row are below {judge.fluent.level:.2f} nats "
        f"per token, 0.37 at {judge.fluent.level - judge.fluent.spread:.2f} "
        f"({judge.fluent.references} references)"
    ]
    photo = example(CASES[0])
    good = CASES[0].references[0]
    names = ("precision", "recall", "linguistic")
    plain = rewards_of(LexicalJudge()([photo], [good]), names)
    np.testing.assert_array_equal(rewards_of(judge([photo], [good]), names), plain)
    wrong = good.replace("jumps", "zebra")
    before, after = (rewards_of(j([photo], [wrong]), names) for j in (LexicalJudge(), judge))
    np.testing.assert_array_equal(after[0, :2], before[0, :2])
    assert after[0, 2] == pytest.approx(before[0, 2] * fluency(SCORER([wrong])[0], judge.fluent))
    assert judge.reference_units(photo) == LexicalJudge().reference_units(photo)


def test_a_model_that_gives_no_number_gives_no_signal():
    judge = FluentJudge(LexicalJudge(), lambda texts: [[math.nan]] * len(texts), name="broken")
    judge.restore(FLUENT._asdict())
    assert judge([example(CASES[0])], ["A dog."]) == [None]
