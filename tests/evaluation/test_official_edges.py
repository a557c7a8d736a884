"""Odd inputs of the public functions, by the rules of the official codes (docs/evaluation.md)."""

import json

import numpy as np
import pytest

from balcap_jax.errors import UserError
from balcap_jax.evaluation import caparena, captionqa, dcscore

CANNOT = captionqa.CANNOT_ANSWER


# A letter in an answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "options", "letter"),
    [
        ("c", 4, "C"),
        ("(b)", 4, "B"),
        ("[B]", 4, "B"),
        ("B) a kite", 4, "B"),
        ("**D**", 4, "D"),
        ("_D_", 4, None),  # an underscore is part of a word
        ("Option b", 4, "B"),
        ("a red kite", 4, "A"),  # the text of an option: its article is a letter
        ("red kite", 4, None),
        ("The answer is a lamp", 4, "A"),
        ("Yes", 2, None),
        ("No", 2, None),
        ("I don't know", 4, None),
        ("I don't know", 10, "I"),
        ("don't", 4, None),  # T stands alone, and is beyond
        ("don't", 26, "T"),
        ("A and B", 4, "A"),
        ("A1", 4, None),
        ("2", 4, "B"),
        ("Option 3.", 4, "C"),
        ("3.5", 4, "C"),
        ("10", 12, "J"),
        ("10", 4, None),
        ("100", 30, None),
        ("07", 30, None),
        ("E, or 2", 4, "B"),  # the letter is beyond, so the number is looked at
        ("1", 0, "A"),  # as if there were one option
        ("B", 0, None),
        ("Z", 26, "Z"),
        ("27", 30, None),  # there are 26 letters
        ("Answer: b", 4, "B"),
        ("answer: B", 4, "B"),
        ("Answer:B", 4, "B"),  # without its blank no mark
        ("Answer: A Answer: B", 4, "A"),
        ("Answer: C\nD", 4, "D"),
        ("A\n\nB", 4, "B"),
        ("A</think>", 4, None),
        ("<think>A", 4, "A"),
        ("<think>A\nB</think>Answer: C", 4, "C"),
        ("Ａ", 4, None),  # a letter of another width
        ("É", 26, None),
        (" \t B \t", 4, "B"),
    ],
)  # fmt: skip
def test_letters(response, options, letter):
    assert captionqa.letter_of(response, options=options) == letter


# A question ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "answer", "given", "options", "scores"),
    [
        # `scores` by the letters A, B, ...
        (["red", "blue"], "red", {}, ["red", "blue", CANNOT], [1, 0, 0.55]),
        (list("abcde"), "c", {}, [*"abcde", CANNOT], [0, 0, 1, 0, 0, 0.25]),
        (["Yes", "No"], "No", {}, ["Yes", "No"], [0, 1]),
        (["YES", "NO"], "YES", {}, ["YES", "NO"], [1, 0]),
        (["Yes", "No"], "No", {"yes_no": False}, ["Yes", "No", CANNOT], [0, 1, 0.55]),
        (["red", "blue"], "red", {"yes_no": True}, ["red", "blue"], [1, 0]),
        (["Yes", "Maybe"], "Yes", {}, ["Yes", "Maybe", CANNOT], [1, 0, 0.55]),
        (["none", "yes"], "yes", {}, ["none", "yes"], [0, 1]),
        (["another", "Yesterday"], "another", {}, ["another", "Yesterday"], [1, 0]),
        (["snow", "eyes"], "eyes", {}, ["snow", "eyes"], [0, 1]),
        (["yes or no", "mud"], "mud", {}, ["yes or no", "mud"], [0, 1]),
        (["red", "blue"], " red\n", {}, ["red", "blue", CANNOT], [1, 0, 0.55]),
        ([" red", "blue "], "blue", {}, [" red", "blue ", CANNOT], [0, 1, 0.55]),
        (["red", "red", "blue"], "red", {}, ["red", "red", "blue", CANNOT], [1, 0, 0, 23 / 60]),
        ([4, 5, 6], "5", {}, ["4", "5", "6", CANNOT], [0, 1, 0, 23 / 60]),
        ([True, False], "True", {}, ["True", "False", CANNOT], [1, 0, 0.55]),
        (("a", "b"), "b", {"permutation": (2, 1, 0)}, [CANNOT, "b", "a"], [0.55, 1, 0]),
        (["Yes", "No"], "Yes", {"permutation": [1, 0]}, ["No", "Yes"], [0, 1]),
        (
            ["a", "b", "c"], "a", {"permutation": [1, 3, 0, 2]},
            ["b", CANNOT, "a", "c"], [0, 23 / 60, 1, 0],
        ),
        ([CANNOT, "x"], CANNOT, {}, [CANNOT, "x", CANNOT], [1, 0, 0.55]),
        (["", "x"], " ", {}, ["", "x", CANNOT], [1, 0, 0.55]),
    ],
)  # fmt: skip
def test_questions(choices, answer, given, options, scores):
    asked = captionqa.question(choices, answer, **given)
    assert list(asked.options) == options
    found = [captionqa.score(asked, letter) for letter in captionqa.LETTERS[: len(options)]]
    assert found == pytest.approx(scores, abs=1e-12)
    # No letter, or one beyond the options.
    assert captionqa.score(asked, None) == captionqa.score(asked, "Z") == 0


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["red", "blue"], "Red"),
        (["red", "blue"], ""),
        (["red", "blue"], None),
        (["red", "blue"], "A"),  # its letter is not its text
        (["red", "blue"], CANNOT),
        (["red"], "red"),
        ([1, 2], 2),
    ],
)
def test_questions_that_are_skipped(choices, answer):
    assert captionqa.question(choices, answer) is None


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [1, 2, 3], [0, 1, 2, 3], []])
def test_orders_that_are_none(order):
    with pytest.raises(ValueError, match="no permutation of 3 options"):
        captionqa.question(["red", "blue"], "red", permutation=order)


# Facts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relevance", "verification", "match", "oracle", "precision", "recall"),
    [
        ([1, 1], [1, 1], [None, "None"], 3, 1, 2 / 5),  # both extra: (0 + 2) / (3 + 2)
        ([1, 1], [0, 0], [0, 1], 3, 0, 0),
        ([1, 1], [0, 0], [None, None], 3, 0, 0),
        ([1], [1], [0], 1, 1, 1),
        ([1, 1, 1], [1, 1, 1], [5, 5, 5], 2, 1, 1 / 2),  # one oracle fact, told three times
        ([1, 1], [1, 0], [5, 5], 2, 1 / 2, 1 / 4),  # the false one counts in c(5)
        ([1, 1], [1, 1], [0, "none"], 4, 1, 2 / 4),  # "none" is a name
        ([1, 1], [1, 1], [0, ""], 4, 1, 2 / 4),
        ([1, 1], [1, 1], [True, 1], 4, 1, 1 / 4),  # one key to Python
        ([1, 1], [1, 1], [1.0, 1], 4, 1, 1 / 4),
        ([1, 1], [1, 1], ["1", 1], 4, 1, 2 / 4),
        ([1, 1, 1], [1, 1, 1], [0, 5, -7], 2, 1, 3 / 2),  # ids are not looked for
        ([True, 1.0], [True, 1.0], [0, 1], 4, 1, 2 / 4),
        ([1, 1, 1], ["1", 2, -1], [0, 1, 2], 4, 0, 0),
        ([1, 1, 1], [None, "yes", []], [0, 1, 2], 4, 0, 0),
        ([1, 1, 1], [False, 0.0, 1], [0, 1, 2], 4, 1 / 3, 1 / 4),
        ((1, 1), (1, 0), (0, None), 2, 1 / 2, 1 / 2),
        (np.array([1, 1]), np.array([1, 1]), np.array([0, 1]), 2, 1, 1),
        ([1] * 50, [1] * 50, [None] * 50, 50, 1, 1 / 2),
        ([1], [1], [None], 0, 1, 1),
    ],
)  # fmt: skip
def test_scores(relevance, verification, match, oracle, precision, recall):
    found = dcscore.scores(relevance, verification, match, oracle_facts=oracle)
    assert (found.precision, found.recall) == pytest.approx((precision, recall), abs=1e-12)
    f1 = 2 * precision * recall / (precision + recall + 1e-8)
    assert found.f1 == found.f1_relevant == pytest.approx(f1, abs=1e-12)  # all are relevant


def test_facts_that_are_not_relevant_still_take_their_share_of_a_match():
    # Relevant are the first and the last: P = 1/2. c(0) = 3, all of them: R = (1/3) / 2.
    found = dcscore.scores([1, 0, "1", 1], [1, 1, 1, 0], [0, 0, 0, None], oracle_facts=2)
    relevant = 2 * (1 / 2) * (1 / 6) / (1 / 2 + 1 / 6)
    assert found.f1_relevant == pytest.approx(relevant, abs=1e-7)
    assert (found.precision, found.recall) == pytest.approx((3 / 4, 1 / 2))


@pytest.mark.parametrize("relevance", [["1"], [None], [0], [2], [True][:0]])
def test_facts_of_which_none_is_relevant(relevance):
    count = len(relevance)
    with pytest.raises(dcscore.InvalidImageError):
        dcscore.scores(relevance, [1] * count, [0] * count, oracle_facts=2)


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        dcscore.scores([1, 1], [1], [0, 1], oracle_facts=2)


# Leaderboards -------------------------------------------------------------------------------------


@pytest.fixture
def agreement(tmp_path):
    """The agreement of a table's text with a ranking."""

    def found(table, ranking):
        board, people = tmp_path / "board", tmp_path / "people"
        board.write_text(table, encoding="utf-8")
        people.write_text(ranking if isinstance(ranking, str) else json.dumps(ranking))
        return caparena.agreement(board, people)

    return found


def table(*scores, head="model,score_avg"):
    return "\n".join([head, *(f"{name},{score}" for name, score in zip("abcdef", scores))]) + "\n"  # noqa: B905


@pytest.mark.parametrize(
    ("text", "ranking", "spearman", "kendall", "models"),
    [
        (table(3, 2, 1), ["a", "b", "c"], 1, 1, 3),
        (table(3, 2, 1), ["c", "b", "a"], -1, -1, 3),
        (table(-1, -2.5, -99), ["a", "b", "c"], 1, 1, 3),
        (table(3, 2), ["a", "b"], 1, 1, 2),
        # Of d^2 = 1, 1, 0: 1 - 6 * 2 / (3 * 8) = 1/2; two pairs of three agree.
        (table(2, 3, 1), ["a", "b", "c"], 1 / 2, 1 / 3, 3),
        # A tie: ranks 1, 2.5, 2.5 of 1, 2, 3, so 1.5 / sqrt(2 * 1.5); tau-b 2 / sqrt(3 * 2).
        (table(3, 2, 2), ["a", "b", "c"], np.sqrt(3) / 2, 2 / np.sqrt(6), 3),
        (table(3, 2, 1), ["a", "human", "b", "c"], 1, 1, 3),  # the gap changes no rank
        (table(3, 2, 1), ["human", "a", "b", "c"], 1, 1, 3),
        (table(3, 2, 1, 0), ["a", "c"], 1, 1, 2),  # models that people did not rank
        (table(3, 2), ["a", "x", "y", "b"], 1, 1, 2),  # and that the board lacks
        ("model\tscore_avg\na b\t1\nc, d\t2\n", ["c, d", "a b"], 1, 1, 2),
        ('score_avg,other,model\n1,z,"x, y"\n2,z,w\n', ["w", "x, y"], 1, 1, 2),
        ("\ufeffmodel,score_avg\na,2\nb,1\n", ["a", "b"], 1, 1, 2),
        ("model,score_avg\r\na, 2\r\nb,1e0\r\n", ["a", "b"], 1, 1, 2),
        (table(3, 2, 1), "\ufeff" + '["a", "b", "c"]', 1, 1, 3),
        (table(2, 2, 1), ["c", "a", "b"], -np.sqrt(3) / 2, -2 / np.sqrt(6), 3),
    ],
)
def test_agreements(agreement, text, ranking, spearman, kendall, models):
    found = agreement(text, ranking)
    assert found.models == models
    assert (found.spearman, found.kendall) == pytest.approx((spearman, kendall), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "ranking", "said"),
    [
        (table(3), ["a", "b"], "share 1 models"),
        (table(3, 2), [], "share 0 models"),
        (table(3, 2), ["A", "B"], "share 0 models"),
        (table(2, 2, 2), ["a", "b", "c"], "gives one score to all models"),
        (table(3, "nan"), ["a", "b"], "no finite score_avg of b"),
        (table("inf", 3), ["a", "b"], "no finite score_avg of a"),
        (table(3, ""), ["a", "b"], "with a number in each row"),
        (table(3, None), ["a", "b"], "with a number in each row"),
        (table(3, 2) + "c\n", ["a", "b"], "with a number in each row"),
        (table(3, 2) + "a,1\n", ["a", "b"], "has the model a twice"),
        (table(3, 2), ["a", "b", "a"], "has the model a twice"),
        (table(3, 2, head="model,score"), ["a", "b"], "is no leaderboard"),
        ("", ["a", "b"], "share 0 models"),
        (table(3, 2), "null", "is no ranking"),
        (table(3, 2), "[null]", "is no ranking"),
        (table(3, 2), '{"a": 1}', "is no ranking"),
        (table(3, 2), '["a", "b"', "is no ranking"),
    ],
)
def test_agreements_that_are_none(agreement, text, ranking, said):
    with pytest.raises(UserError) as error:
        agreement(text, ranking)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
