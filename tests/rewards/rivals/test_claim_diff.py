"""The rewards of ClaimDiff-RL against hand-computed values, and their answers as judges write them.

The values follow the published formulas; the arithmetic stands beside them.
"""

import math
import random
from contextlib import suppress

import numpy as np
import pytest

from balcap_jax.rewards.llm.answer_text import BadAnswer
from balcap_jax.rewards.rivals.claim_diff_modes import (
    SEVERITY_WEIGHTS,
    a_only,
    ambiguity_factor,
    checks_reward,
    comparison_reward,
    counts_of,
    hall_vs_miss,
    judgment_based,
    normalized_a_only,
    normalized_diff,
    raw_diff,
    severity_of,
)
from balcap_jax.rewards.rivals.claim_diff_questions import holistic_score
from balcap_jax.rewards.rivals.differences import (
    NO_DIFFERENCES,
    Check,
    ClaimError,
    Comparison,
    Difference,
    checks,
    comparison,
)

BLOCK = """[DIFFERENCE {number}]
ASPECT: {aspect}
CAPTION_A_CLAIM: a red car
CAPTION_B_CLAIM: a blue car
JUDGMENT: {judgment}

CAPTION_A_ERROR:
ERROR_TYPE: {a}
ERROR_DETAIL: it is blue
SEVERITY_LEVEL: {level_a}

CAPTION_B_ERROR:
ERROR_TYPE: {b}
ERROR_DETAIL: No error.
SEVERITY_LEVEL: {level_b}
"""


def block(number, judgment="B", a="color_hallucination", b="NONE", level_a="3", level_b="NA"):
    return BLOCK.format(
        number=number, aspect="colour", judgment=judgment, a=a, b=b, level_a=level_a,
        level_b=level_b,
    )  # fmt: skip


def answer(*blocks, winner="B"):
    return "\n".join([*blocks, "[OVERALL_WINNER]", winner])


# Four differences: A is wrong in 2 (severities 3 and 1), B in 1 (2); A wins 1, B wins 2.
ANSWER = answer(
    block(1),
    block(2, a="style_misinterpretation", level_a="1"),
    block(3, judgment="A", a="NONE", level_a="NA", b="count_omission", level_b="2"),
    block(4, judgment="both_supported", a="NONE", level_a="NA"),
)


def test_an_answer_is_read():
    found = comparison(ANSWER)
    assert found.winner == "B"
    assert found.differences[0] == Difference(
        "colour", "a red car", "a blue car", "B",
        ClaimError("color_hallucination", "it is blue", 3), None,
    )  # fmt: skip
    assert [d.judgment for d in found.differences] == ["B", "B", "A", "both_supported"]
    counts = counts_of(found)
    assert (counts.a, counts.b, counts.d, counts.wins_a, counts.wins_b) == (2, 1, 4, 1, 2)


@pytest.mark.parametrize(
    "text",
    [
        ANSWER.replace("[DIFFERENCE 2]", "**[DIFFERENCE 2]**").replace("ASPECT:", "**ASPECT:**"),
        f"<think>[DIFFERENCE 1] is it red?</think>\n{ANSWER}",
        f"```text\n{ANSWER}\n```",
        f"<answer>\n{ANSWER}\n</answer>",
        ANSWER.replace("ASPECT: colour", "ASPECT: colour\n  of the car"),
        ANSWER.replace("[OVERALL_WINNER]\nB", "[OVERALL_WINNER] b"),
        ANSWER.replace("both_supported", "both supported"),
        ANSWER.replace("\n\n", "\n"),
    ],
)
def test_marks_and_thoughts_around_it_change_nothing(text):
    assert counts_of(comparison(text)) == counts_of(comparison(ANSWER))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no differences"),
        ("The captions agree.\n[OVERALL_WINNER]\nTie", "no differences"),
        (f"{NO_DIFFERENCES}\n{ANSWER}", "differences and none"),
        (ANSWER.replace("[OVERALL_WINNER]\nB", ""), "winner"),
        (ANSWER.replace("[OVERALL_WINNER]\nB", "[OVERALL_WINNER]\n"), "winner"),
        (ANSWER.replace("[OVERALL_WINNER]\nB", "[OVERALL_WINNER]\n<A|B|Tie>"), "winner"),
        (f"{ANSWER}\n[OVERALL_WINNER]\nA", "winner"),
        (f"{ANSWER}\n{block(5)}", "numbered"),
        (ANSWER.replace("[DIFFERENCE 3]", "[DIFFERENCE 2]"), "numbered"),
        (ANSWER.replace("[DIFFERENCE 4]", "[DIFFERENCE 5]"), "numbered"),
        (ANSWER.replace("JUDGMENT: A\n", "JUDGMENT: neither\n"), "judgment"),
        (ANSWER.replace("JUDGMENT: A\n", ""), "JUDGMENT"),
        (ANSWER.replace("JUDGMENT: A\n", "JUDGMENT: A\nJUDGMENT: B\n"), "two lines"),
        (ANSWER.replace("ERROR_TYPE: count_omission\n", ""), "ERROR_TYPE"),
        (ANSWER.replace("ERROR_TYPE: count_omission\n", "ERROR_TYPE:\n"), "without a type"),
        (ANSWER.replace("CAPTION_B_ERROR:", "", 1), "errors of A and then of B"),
        (ANSWER.replace("SEVERITY_LEVEL: 2", "SEVERITY_LEVEL: 4"), "severity"),
        (ANSWER.replace("SEVERITY_LEVEL: 2", "SEVERITY_LEVEL: high"), "severity"),
        (ANSWER[: len(ANSWER) // 2], "."),
        (f"<think>{ANSWER}", "thoughts"),
    ],
)
def test_an_answer_that_would_be_misread_is_refused(text, reason):
    with pytest.raises(BadAnswer, match=reason):
        comparison(text)


def test_no_differences_are_said_in_words():
    assert comparison(f"{NO_DIFFERENCES}\n[OVERALL_WINNER]\nTie") == Comparison((), "Tie")


def test_answers_without_severities_are_read():
    bare = "\n".join(line for line in ANSWER.splitlines() if not line.startswith("SEVERITY"))
    assert counts_of(comparison(bare)) == counts_of(comparison(ANSWER))
    assert comparison(bare).differences[0].error_a.severity is None


# The six modes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # 0.5 - 0.5 (2 - 1) / 4
        (normalized_diff(2, 1, 4), 0.375),
        (normalized_diff(0, 3, 3), 1.0),
        (normalized_diff(3, 0, 3), 0.0),
        (normalized_diff(0, 0, 0), 0.5),
        # q = 1/2: (0.05 + 0.95 / 4) e^(-1/2) (0.7 + 0.3 log 5 / log 11)
        (normalized_a_only(2, 4), 0.2875 * math.exp(-0.5) * (0.7 + 0.3 * math.log(5, 11))),
        # q = 0 and D = 10: 1 * 1 * 1; beyond 10 differences nothing is added
        (normalized_a_only(0, 10), 1.0),
        (normalized_a_only(0, 50), 1.0),
        # q = 1: 0.05 e^(-1/4) (0.7 + 0.3 log 2 / log 11)
        (normalized_a_only(1, 1), 0.05 * math.exp(-0.25) * (0.7 + 0.3 * math.log(2, 11))),
        (normalized_a_only(0, 0), 1.0),
        # 1 - 2/10
        (a_only(2), 0.8),
        (a_only(0), 1.0),
        (a_only(12), 0.0),
        # j = (1 - 2)/4 - 0.1 = -0.35 -> 0.5 - 0.175
        (judgment_based(1, 2, 4, "B"), 0.325),
        (judgment_based(1, 2, 4, "Tie"), 0.375),
        (judgment_based(1, 2, 4, "A"), 0.425),
        (judgment_based(4, 0, 4, "A"), 1.0),
        (judgment_based(0, 4, 4, "B"), 0.0),
        (judgment_based(0, 0, 0, "A"), 0.5),
        # 0.5 - 0.5 * 1/10
        (raw_diff(2, 1), 0.45),
        (raw_diff(0, 30), 1.0),
        (raw_diff(30, 0), 0.0),
        (raw_diff(0, 0), 0.5),
        # 1 - (1 + 2)/4
        (hall_vs_miss(1, 2, 4), 0.25),
        (hall_vs_miss(0, 0, 3), 1.0),
        (hall_vs_miss(3, 1, 3), 0.0),
        (hall_vs_miss(0, 0, 0), 1.0),
    ],
)
def test_modes_by_hand(value, expected):
    assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("normalized_diff", 0.375),
        ("normalized_a_only", 0.2875 * math.exp(-0.5) * (0.7 + 0.3 * math.log(5, 11))),
        ("a_only", 0.8),
        ("judgment_based", 0.325),
        ("raw_diff", 0.45),
    ],
)
def test_an_answer_becomes_a_number(mode, expected):
    assert comparison_reward(comparison(ANSWER), mode) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # Severities 3 and 1 of A: 1.6 + 1 = 2.6; 2 of B: 1.25; the heaviest is 1.6.
        ("normalized_diff", 0.5 - 0.5 * 1.35 / (1.6 * 4)),
        (
            "normalized_a_only",
            (0.05 + 0.95 * (1 - 2.6 / 6.4) ** 2)
            * math.exp(-2.6 / 1.6 / 4)
            * (0.7 + 0.3 * math.log(5, 11)),
        ),
        ("a_only", 1 - 2.6 / 16),
        ("judgment_based", 0.325),
        ("raw_diff", 0.5 - 0.5 * 1.35 / 10),
    ],
)
@pytest.mark.parametrize("severity", ["judge", "type"])
def test_severities_weigh_errors(mode, expected, severity):
    # color_hallucination is 3, style_misinterpretation 1 and count_omission 2 by their types, too.
    found = comparison_reward(comparison(ANSWER), mode, severity=severity)
    assert found == pytest.approx(expected, abs=1e-12)


def test_severities_come_from_the_type_where_the_judge_gives_none():
    assert dict(SEVERITY_WEIGHTS) == {1: 1.0, 2: 1.25, 3: 1.6}
    assert severity_of(ClaimError("count_mismatch", severity=1), "judge") == 1
    assert severity_of(ClaimError("count_mismatch"), "judge") == 3
    assert severity_of(ClaimError("count_mismatch", severity=1), "type") == 3
    assert severity_of(ClaimError("style_error"), "type") == 2  # "error" stands before "style"
    assert severity_of(ClaimError("something_else"), "type") == 2


def test_hedges_cost_beyond_one_in_90_words():
    assert ambiguity_factor("A red car.") == 1.0
    # "possibly", "or" and "a/b": 3 hedges, 7 words: exp(-0.1 (3 - 7/90))
    text = "It is possibly red or pink, a/b."
    assert ambiguity_factor(text) == pytest.approx(math.exp(-0.1 * (3 - 7 / 90)))
    assert ambiguity_factor(f"{text} {'word ' * 263}") == 1.0  # 270 words may have 3
    assert ambiguity_factor("A corridor in Oregon.") == 1.0


def test_checks_are_counted():
    text = "\n".join(
        f"[DIFFERENCE {n}]\nTYPE: {kind}\nCONTENT: x\nCATEGORY: natural\nVERIFICATION: {said}\n"
        f"REASON: y\nIS_HALLUCINATION: false"
        for n, (kind, said) in enumerate(
            [
                ("contradiction", "false"),
                ("extra_info", "verified"),
                ("missing_fact", "missing"),
                ("extra_info", "ambiguous"),
            ],
            start=1,
        )
    )
    found = checks(text)
    assert found[0] == Check("contradiction", "false", "x")
    assert checks_reward(found) == 0.5  # 1 - (1 + 1)/4
    assert checks_reward(checks(NO_DIFFERENCES)) == 1.0
    for broken in (
        text.replace("TYPE: extra_info", "TYPE: extra", 1),
        text.replace("VERIFICATION: false\n", ""),
        text.replace("VERIFICATION: false", "VERIFICATION: no"),
        "nothing",
    ):
        with pytest.raises(BadAnswer):
            checks(broken)


def test_order_of_differences_changes_nothing_and_rewards_stay_in_bounds():
    rng = np.random.default_rng(0)
    kinds = ["color_hallucination", "text_omission", "style_error", None]
    for _ in range(50):
        made = [
            Difference(
                "", "", "", rng.choice(["A", "B", "both_wrong", "both_supported"]),
                *(
                    None if kind is None else ClaimError(kind, "", int(rng.integers(1, 4)))
                    for kind in rng.choice(kinds, 2)
                ),
            )
            for _ in range(rng.integers(0, 15))
        ]  # fmt: skip
        winner = rng.choice(["A", "B", "Tie"])
        for mode in (
            "normalized_diff",
            "normalized_a_only",
            "a_only",
            "judgment_based",
            "raw_diff",
        ):
            for severity in ("off", "type", "judge"):
                one, other = (
                    comparison_reward(Comparison(tuple(listed), winner), mode, severity=severity)
                    for listed in (made, made[::-1])
                )
                assert one == pytest.approx(other, abs=1e-12)
                assert 0 <= one <= 1


def test_captions_exchanged_mirror_the_relative_modes():
    found = comparison(ANSWER)
    flip = {"A": "B", "B": "A"}
    turned = Comparison(
        tuple(
            d._replace(
                judgment=flip.get(d.judgment, d.judgment), error_a=d.error_b, error_b=d.error_a
            )
            for d in found.differences
        ),
        flip.get(found.winner, "Tie"),
    )
    for mode in ("normalized_diff", "judgment_based", "raw_diff"):
        total = comparison_reward(found, mode) + comparison_reward(turned, mode)
        assert total == pytest.approx(1.0)


def test_the_holistic_score():
    assert holistic_score("SCORE: 7\nRATIONALE: fine, 9 of 10 things are there") == 0.7
    assert holistic_score("**SCORE:** 10/10\nRATIONALE: all") == 1.0
    for bad in ("", "SCORE: 11", "SCORE: 7\nSCORE: 8", "SCORE: 7.5", "SCORE: -1", "7"):
        with pytest.raises(BadAnswer):
            holistic_score(bad)


def test_no_text_raises_anything_else():
    rng = random.Random(0)
    lines = ANSWER.splitlines()
    extra = [
        "[DIFFERENCE 9" + "9" * 5000 + "]",
        "SCORE: " + "9" * 5000,
        "</think>",
        "<answer>",
        "]",
    ]
    read = 0
    for _ in range(400):
        made = list(lines)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(made))
            change = rng.choice(("drop", "twice", "swap", "cut", "extra"))
            if change == "drop":
                del made[at]
            elif change == "twice":
                made.insert(at, rng.choice(made))
            elif change == "swap":
                other = rng.randrange(len(made))
                made[at], made[other] = made[other], made[at]
            elif change == "cut":
                made[at] = made[at][: rng.randint(0, len(made[at]))]
            else:
                made.insert(at, rng.choice(extra))
        text = "\n".join(made)
        for parse in (comparison, checks, holistic_score):
            with suppress(BadAnswer):
                found = parse(text)
                read += 1
                if parse is comparison:
                    assert 0 <= comparison_reward(found, "normalized_a_only", severity="judge") <= 1
    assert read > 20
