"""Scores of the benchmarks by hand, by the figures that they publish, and by their properties."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

from balcap_jax.errors import UserError
from balcap_jax.evaluation import caparena, captionqa, dcscore

GOLDEN = Path(__file__).parents[1] / "golden"


# DCScore ------------------------------------------------------------------------------------------


def test_a_trial_by_hand():
    # Facts a..e. Verified: a, b, d, e. Oracle 7 is matched by a, b and c: 1/3 each. d is extra.
    # Oracle 2 by e. P = 4/5. R = (1 + 1/3 + 1/3 + 1) / (4 + 1) = 8/15.
    # Relevant are a, c, d: P = 2/3; R = (1 + 1/3) / (4 + 1), where c(7) is still 3.
    found = dcscore.scores(
        [1, 0, 1, 1, 0], [1, 1, 0, 1, 1], [7, 7, 7, "None", 2], oracle_facts=4
    )  # fmt: skip
    assert found.precision == pytest.approx(4 / 5, abs=1e-12)
    assert found.recall == pytest.approx(8 / 15, abs=1e-12)
    assert found.f1 == pytest.approx(2 * 0.8 * (8 / 15) / (0.8 + 8 / 15), abs=1e-7)
    precision, recall = 2 / 3, (4 / 3) / 5
    assert found.f1_relevant == pytest.approx(
        2 * precision * recall / (precision + recall), abs=1e-7
    )
    assert dcscore.dcscore(found) == (found.f1 + found.f1_relevant) / 2


def test_what_the_official_code_takes_for_true_and_for_no_match():
    facts = {"relevance": [1, 1, 1, 1], "oracle_facts": 2}
    base = dcscore.scores(verification=[1, 0, 0, 1], matched_oracle_id=[None, 1, 1, 0], **facts)
    # The text "1" is not 1; True is; None and "None" are the same; an id is not looked for.
    same = dcscore.scores(
        verification=[True, "1", None, 1.0], matched_oracle_id=["None", 99, 99, -5], **facts
    )
    assert same == base
    # 3 and "3" are two facts, so each counts whole.
    apart = dcscore.scores([1, 1], [1, 1], [3, "3"], oracle_facts=4)
    assert apart.recall == 2 / 4
    assert dcscore.scores([1, 1], [1, 1], [3, 3], oracle_facts=4).recall == 1 / 4


def random_case(rng):
    count = rng.randint(1, 12)
    facts = [
        (int(i == 0 or rng.random() < 0.7), rng.randint(0, 1), rng.choice([None, "None", 0, 1, 2]))
        for i in range(count)
    ]
    return facts, rng.randint(3, 9)


def of(facts, oracle):
    return dcscore.scores(*map(list, zip(*facts, strict=True)), oracle_facts=oracle)


@pytest.mark.parametrize("seed", range(20))
def test_properties_of_a_trial(seed):
    rng = random.Random(seed)
    facts, oracle = random_case(rng)
    found = of(facts, oracle)
    assert all(0 <= value <= 1 for value in found)
    mixed = rng.sample(facts, len(facts))
    assert of(mixed, oracle) == pytest.approx(found, abs=1e-12)
    # An unverified fact without a match lowers precision alone.
    more = of([*facts, (1, 0, "None")], oracle)
    assert more.recall == found.recall
    assert more.precision < found.precision or found.precision == 0
    # One more that is matched takes weight from those of the same oracle fact.
    matched = of([*facts, (1, 0, 1)], oracle)
    assert matched.recall <= found.recall
    # Another name for an oracle fact changes nothing.
    renamed = [(r, v, {0: 7, 1: 8, 2: 9}.get(m, m)) for r, v, m in facts]
    assert of(renamed, oracle) == found


def test_images_without_a_fact_are_invalid():
    with pytest.raises(dcscore.InvalidImageError, match="no fact"):
        dcscore.scores([], [], [], oracle_facts=3)
    with pytest.raises(dcscore.InvalidImageError, match="no relevant fact"):
        dcscore.scores([0, 2], [1, 1], [0, 1], oracle_facts=3)


def test_trials_are_averaged_after_their_f1():
    relevance = {"a": 1, "b": 1}
    verifications = [[("a", 1), ("b", 0)], [("b", 1), ("a", 1)], [("a", 0), ("b", 0)]]
    matches = [{"a": 0, "b": None}, {"a": None, "b": 0}, {"a": 0, "b": 0}]
    trials = [
        dcscore.scores([1, 1], [v["a"], v["b"]], [m["a"], m["b"]], oracle_facts=3)
        for v in map(dict, verifications)
        for m in matches
    ]
    found = dcscore.mean_scores(relevance, verifications, matches, oracle_facts=3)
    assert found == pytest.approx(tuple(np.mean(trials, axis=0)), abs=1e-12)
    means = np.mean(trials, axis=0)
    f1_of_means = 2 * means[2] * means[3] / (means[2] + means[3] + 1e-8)
    assert abs(found.f1 - f1_of_means) > 0.002


def test_official_drops_what_is_invalid_and_strict_what_failed():
    items = [
        {"score": 0.5, "strict_score": 0.5, "failed": None},
        {"score": None, "strict_score": 0.0, "failed": None},  # no fact
        {"score": None, "strict_score": None, "failed": "timeout"},
        {"score": 0.3, "strict_score": 0.3, "failed": None},
    ]
    found = dcscore.measures(items)
    assert found["official"].value == pytest.approx(40.0)  # (0.5 + 0.3) / 2
    assert found["strict"].value == pytest.approx(80 / 3)  # (0.5 + 0 + 0.3) / 3


# CaptionQA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "choices", "expected"),
    [
        ("What is shown?", ["Yes", "No"], True),
        ("What lies there?", ["yes, snow", "another"], True),  # "no" stands in both
        ("What lies there?", ["Yesterday's paper", "Mud"], False),
        ("Must it rain?", ["a", "b"], True),
        ("Isolated trees?", ["a", "b"], False),
        ("  ARE they wet?", ["a", "b"], True),
        ("Doing what?", ["a", "b"], False),
    ],
)
def test_yes_no_questions(question, choices, expected):
    assert captionqa.is_yes_no(question, choices) is expected


@pytest.mark.parametrize(
    ("response", "options", "letter"),
    [
        ("B", 4, "B"),
        ("b.", 4, "B"),
        ("(d)", 4, "D"),
        ("E", 4, None),
        ("Answer: C", 4, "C"),
        ("<think>A, or B?</think> D", 4, "D"),
        ("</think>A</think>B", 4, "A"),  # the first one: "A</think>B"
        ("B\n", 4, None),
        ("Sure\nB", 4, "B"),
        ("Sure\nreally\nC", 4, "C"),
        ("I think C", 4, None),  # I stands alone first
        ("I think 3", 4, "C"),
        ("I think 3", 10, "I"),
        ("5", 4, None),
        ("0", 4, None),
        ("12 or 2", 4, None),  # the first number alone is looked at
        ("", 4, None),
        ("Answer: \nB", 4, "B"),
        ("ABC", 4, None),
    ],
)
def test_letters(response, options, letter):
    assert captionqa.letter_of(response, options=options) == letter


def test_a_question_by_hand():
    asked = captionqa.question(["red", "blue", " green "], "green", permutation=[3, 2, 0, 1])
    assert asked.options == (captionqa.CANNOT_ANSWER, " green ", "red", "blue")
    scores = [captionqa.score(asked, letter) for letter in (None, *"ABCD")]
    assert scores == pytest.approx([0, 1 / 3 + 0.05, 1, 0, 0], abs=1e-12)
    yes_no = captionqa.question(["Yes", "No"], "No")
    assert yes_no.options == ("Yes", "No")
    assert [captionqa.score(yes_no, letter) for letter in "AB"] == [0, 1]
    assert captionqa.question(["a", "b"], "b", yes_no=True).options == ("a", "b")


def test_questions_that_are_skipped():
    assert captionqa.question(["red", "blue"], "green") is None
    assert captionqa.question(["red"], "red") is None
    assert captionqa.question([], "red") is None
    assert captionqa.question(["red", "blue"], None) is None
    with pytest.raises(ValueError, match="no permutation of 3 options"):
        captionqa.question(["red", "blue"], "red", permutation=[0, 1])


def entries():
    return [
        captionqa.Entry(
            f"{domain[:3]}_{i}",
            domain,
            tuple(
                {
                    "question": f"What is {i}?",
                    "choices": [f"c{k}" for k in range(2 + (i + j) % 3)],
                    "answer": "c0" if j else "absent",
                }
                for j in range(3)
            ),
        )
        for domain in captionqa.DOMAINS
        for i in range(3)
    ]


def test_permutations_are_of_the_complete_data():
    found = captionqa.permutations(entries())
    assert len(found) == 4 * 3 * 2  # the first of each has no answer and moves nothing
    # By hand: the generator of seed 0 over lists of 3 + (i + j) % 3 options.
    generator = random.Random(0)
    for entry in entries():
        i = int(entry.id[-1])
        for j in (1, 2):
            order = list(range(3 + (i + j) % 3))
            generator.shuffle(order)
            assert found[entry.id, j] == order


def test_the_leaderboards_overall_is_the_mean_of_its_domains():
    # Figures of captionqa.github.io, rounded to two decimals there.
    rows = list(csv.DictReader((GOLDEN / "captionqa_leaderboard.csv").open()))
    assert len(rows) == 24
    for row in rows:
        overall = captionqa.macro(float(row[domain]) for domain in captionqa.DOMAINS)
        assert overall == pytest.approx(float(row["overall"]), abs=0.00501)


def answered(score, **changes):
    given = {
        "score": score, "letter": "A", "correct": score == 1, "cannot_answer": 0 < score < 1,
        "failed": None, "category": "colour",
    }  # fmt: skip
    return given | changes


def test_means_of_questions():
    third = 1 / 3 + 0.05
    items = [
        {"domain": "natural", "questions": [answered(1.0), answered(third), answered(0.0)]},
        {"domain": "document", "questions": [answered(0.0, failed="timeout"), answered(1.0)]},
        {"domain": "document", "questions": [answered(0.0, letter=None)]},
    ]
    found = captionqa.measures(items)
    assert found["strict"].value == pytest.approx(100 * (1 + third + 0 + 1 + 0) / 5)
    assert found["official"].value == pytest.approx(100 * (1 + 0.3833 + 0 + 1 + 0) / 5)
    assert found["accuracy"].value == pytest.approx(40.0)
    assert found["cannot_answer"].value == pytest.approx(20.0)
    assert found["strict_macro"].value == pytest.approx(100 * ((1 + third) / 3 + 1 / 2) / 2)
    groups = captionqa.groups(items, "domain")
    assert groups["document"] == (50.0, 2)
    assert captionqa.groups(items, "category")["colour"][1] == 5


# CapArena -----------------------------------------------------------------------------------------

# Score_Avg of CapArena-Auto's leaderboard, and the ranking by people (arXiv:2503.12329).
SCORES = {
    "Gemini-1.5-pro-002": 56.17, "GPT-4o-0806": 44.00, "Gemini-2.0-flash-exp": 30.83,
    "Claude-3.5-Sonnet-0620": 21.50, "InternVL2-26B": 13.00, "GPT-4o-mini-0718": 9.33,
    "CogVLM2-llama3-chat-19B": -8.50, "Qwen2-VL-72B-Instruct": -9.00, "LLama-3.2-90B": -25.67,
    "MiniCPM-V2.6-8B": -38.00, "Qwen2-VL-2B-Instruct": -48.67, "Qwen2-VL-7B-Instruct": -49.00,
    "LLaVA-1.6-34B": -67.50, "LLaVA-1.5-7B": -94.00, "Ovis-2-34b": 27.00,
}  # fmt: skip
PEOPLE = [
    "GPT-4o-0806", "human", "Gemini-2.0-flash-exp", "InternVL2-26B", "Gemini-1.5-pro-002",
    "Claude-3.5-Sonnet-0620", "GPT-4o-mini-0718", "LLama-3.2-90B", "Qwen2-VL-72B-Instruct",
    "CogVLM2-llama3-chat-19B", "MiniCPM-V2.6-8B", "Qwen2-VL-7B-Instruct", "Qwen2-VL-2B-Instruct",
    "LLaVA-1.6-34B", "LLaVA-1.5-7B",
]  # fmt: skip


@pytest.fixture
def ranked(tmp_path):
    rows = "".join(f"{model}\t{score}\n" for model, score in SCORES.items())
    (tmp_path / "board.tsv").write_text("model\tscore_avg\n" + rows)
    (tmp_path / "people.json").write_text(json.dumps(PEOPLE))
    return tmp_path


def test_agreement_with_people(ranked):
    found = caparena.agreement(ranked / "board.tsv", ranked / "people.json")
    assert found.models == 14
    assert found.spearman == pytest.approx(0.942857, abs=1e-6)
    assert found.kendall == pytest.approx(0.824176, abs=1e-6)


def test_files_of_an_agreement_that_are_none(ranked):
    board, people, bad = (ranked / name for name in ("board.tsv", "people.json", "bad"))
    with pytest.raises(UserError, match="bad cannot be read .No such file"):
        caparena.agreement(bad, people)
    bad.write_text("model\tscore\na\t1\n")
    with pytest.raises(UserError, match="no leaderboard; give a table with the columns model and"):
        caparena.agreement(bad, people)
    bad.write_text('{"a": 1}')
    with pytest.raises(UserError, match="is no ranking; give a JSON list"):
        caparena.agreement(board, bad)
    bad.write_text('["GPT-4o-0806", "other"]')
    with pytest.raises(UserError, match="share 1 models"):
        caparena.agreement(board, bad)


@pytest.mark.parametrize(
    ("response", "better"),
    [
        ("Reason: sharper.\nJudgment: Caption 1 is better.", 1),
        ("Reason: sharper\nand longer.\nJudgment: Caption 2 is better\nIndeed.", 2),
        ("Reason: alike.\nJudgment: Tie.", 0),
        ("Reason: alike.\nJudgment: <Tie>", None),
        ("Reason: alike.\nJudgment: **Caption 1 is better**", None),
        ("Reason: alike.\nJudgment: caption 1 is better", None),
    ],
)
def test_verdicts(response, better):
    assert caparena.verdict_of(response).better == better


@pytest.mark.parametrize(
    "response", ["", "Judgment: Tie", "Reason: alike.", "Reason:\nJudgment: Tie", "Tie"]
)
def test_answers_without_reason_or_judgment(response):
    assert caparena.verdict_of(response) is None


def test_the_score_is_a_mean_over_three_baselines():
    values = {"GPT-4o-0806": [1, 1, 0, -1, None], "MiniCPM-V2.6-8B": [-1, -1]}
    items = [
        {"baseline": name, "value": value} for name, of in values.items() for value in of
    ]  # fmt: skip
    found = caparena.measures(items)
    assert found["official"].value == pytest.approx((1 / 2 - 2 / 2) / 3)
    assert found["strict"].value == pytest.approx((100 * 1 / 4 - 100) / 2)
    against = caparena.against(items)["GPT-4o-0806"]
    assert against == {"wins": 2, "losses": 1, "ties": 1, "none": 1, "score": 0.5}


def test_orders_are_a_seeded_coin_of_each_image():
    names = [f"test_{i:05d}.jpg" for i in range(600)]
    found = caparena.orders(names)
    assert 250 < sum(found.values()) < 350
    assert found == caparena.orders(list(reversed(names)))
    assert caparena.orders(names[7:9]) == {name: found[name] for name in names[7:9]}
    assert caparena.orders(names, seed=1) != found


def test_flips_and_words():
    both = lambda one, other: {"battles": [{"value": one}, {"value": other}]}  # noqa: E731
    assert caparena.flips([both(1, 1), both(1, -1), both(0, 1), both(None, 1)]) == (2, 3)
    assert caparena.flip_share([both(1, 1), both(1, -1), both(0, 1), both(None, 1)]) == 2 / 3
    assert caparena.flip_share([both(None, 1), {"battles": [{"value": 1}]}]) is None
    assert caparena.arena_words("") == 1
    assert caparena.arena_words("a  b\nc") == 3  # "a", "", "b\nc"
