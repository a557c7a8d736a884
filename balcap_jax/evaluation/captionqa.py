"""CaptionQA (arXiv:2511.21025): questions about an image that a text model answers by a caption."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from balcap_jax.evaluation.statistics import Measure

DOMAINS = ("natural", "document", "ecommerce", "embodiedai")  # in the order of the split "all"
CANNOT_ANSWER = "Cannot answer from the caption"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SEED = 0  # of the permutations
_CANNOT_ANSWER_BONUS = 0.05  # over guessing
_BEGINNINGS = tuple(
    f"{word} "
    for word in "is are was were do does did have has had can could will would should shall may "
    "might must".split()
)


class Question(NamedTuple):
    """A question as it is put to the judge.

    Attributes:
      options: in the order in which they are shown, the one that nobody can answer among them.
      correct: the place of the answer among the options.
      cannot_answer: the place of that option; None for a yes/no question.
      choices: how many the question has of its own.
    """

    options: tuple[str, ...]
    correct: int
    cannot_answer: int | None
    choices: int


def is_yes_no(question: str, choices: Sequence[Any]) -> bool:
    """Whether some choice contains "yes" and some contains "no" ("snow", "another" do), or the
    question begins with a form of be, do, have or a modal.
    """
    texts = [str(choice).strip().lower() for choice in choices]
    both = any("yes" in text for text in texts) and any("no" in text for text in texts)
    return both or question.strip().lower().startswith(_BEGINNINGS)


def question(
    choices: Sequence[Any],
    answer: Any,
    *,
    yes_no: bool | None = None,
    permutation: Sequence[int] | None = None,
) -> Question | None:
    """The question with its options in the order of `permutation`; None in place of a question that
    the official code skips: of fewer than 2 choices, or whose answer is none of them.

    Args:
      choices: in the order of the data.
      answer: the text of the right one.
      yes_no: see `is_yes_no`; None: by the choices alone.
      permutation: place in the data of each option that is shown; the option that nobody can answer
        is the last one there. None: as they are.
    """
    texts = [str(choice) for choice in choices]
    stripped = [text.strip() for text in texts]
    if len(texts) < 2 or not isinstance(answer, str) or answer.strip() not in stripped:
        return None
    yes_no = is_yes_no("", texts) if yes_no is None else yes_no
    texts += [] if yes_no else [CANNOT_ANSWER]
    order = list(range(len(texts))) if permutation is None else list(permutation)
    if sorted(order) != list(range(len(texts))):
        raise ValueError(f"{order} is no permutation of {len(texts)} options")
    return Question(
        options=tuple(texts[place] for place in order),
        correct=order.index(stripped.index(answer.strip())),
        cannot_answer=None if yes_no else order.index(len(texts) - 1),
        choices=len(choices),
    )


def letter_of(response: str, *, options: int) -> str | None:
    """The letter that a judge's answer means, as the official code reads it; None for none.

    What stands after a first "</think>", then after a first "Answer: ", then, where there is a
    newline, after the first one. Of that, in capitals, the first letter that stands alone; where
    it is beyond the options, the first number from 1 to `options` that is the first number.
    """
    for mark in ("</think>", "Answer: ", "\n"):
        _, found, after = response.partition(mark)
        response = after if found else response
    options = max(1, options)
    letter = re.search(r"\b([A-Z])\b", response.upper())
    if letter is not None and LETTERS.index(letter[1]) < options:
        return letter[1]
    number = re.search(r"\b([1-9][0-9]?)\b", response)
    if number is not None and int(number[1]) <= min(options, len(LETTERS)):
        return LETTERS[int(number[1]) - 1]
    return None


def score(question: Question, letter: str | None) -> float:
    """1 for the right option, 1 / n + 0.05 for the one that nobody can answer, n the question's own
    choices, else 0.
    """
    if letter is None:
        return 0.0
    place = LETTERS.index(letter)
    if place == question.correct:
        return 1.0
    if place == question.cannot_answer:
        return 1 / question.choices + _CANNOT_ANSWER_BONUS
    return 0.0


class Entry(NamedTuple):
    """An image of the data, or several that belong together, with its questions.

    Attributes:
      questions: each with `question`, `choices`, `answer`, and maybe `category`.
      images: files, or their bytes.
    """

    id: str
    domain: str
    questions: tuple[Mapping[str, Any], ...]
    images: tuple[Any, ...] = ()


def permutations(entries: Iterable[Entry]) -> dict[tuple[str, int], list[int]]:
    """The order of the options of each question, by (id, place of the question in its entry).

    One generator runs on over all questions of the complete data and is moved by those alone that
    are not skipped, so a part of the data has the orders that it has in the whole.
    """
    generator = random.Random(SEED)
    found = {}
    for entry in entries:
        for place, asked in enumerate(entry.questions):
            made = question_of(asked)
            if made is None:
                continue
            order = list(range(len(made.options)))
            generator.shuffle(order)
            found[entry.id, place] = order
    return found


def question_of(
    asked: Mapping[str, Any], *, permutation: Sequence[int] | None = None
) -> Question | None:
    """`question` of a row of the data."""
    choices = asked.get("choices") or []
    yes_no = is_yes_no(str(asked.get("question", "")), choices)
    return question(choices, asked.get("answer"), yes_no=yes_no, permutation=permutation)


def category_of(asked: Mapping[str, Any]) -> str:
    """The first category of a question; "" for none."""
    found = asked.get("category") or ""
    return str((found or [""])[0]) if isinstance(found, list | tuple) else str(found)


def macro(domains: Iterable[float]) -> float:
    """The leaderboard's overall: the mean over the domains."""
    return float(np.mean(list(domains)))


def measures(items: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    """The scores over questions, in 0..100, resampled by image.

    `official` rounds each score to 4 decimals, as qa.py does; `strict` does not. A question without
    an answer of the judge counts in neither; one whose answer names no option is 0 in both. Micro
    is over questions, `macro` the mean over domains, where there are several; `accuracy` and
    `cannot_answer` are shares in per cent.

    Args:
      items: `domain` and `questions`, each with `score`, `letter`, `correct`, `cannot_answer` and
        `failed`, why the judge gave no answer, or None.
    """
    domains = sorted({item["domain"] for item in items}, key=_domain_place)

    def ratio(value, *, by_domain: bool = False) -> Measure:
        groups = domains if by_domain else [None]
        totals = np.zeros((len(items), len(groups)))
        weights = np.zeros_like(totals)
        for i, item in enumerate(items):
            answered = [q for q in item["questions"] if q["failed"] is None]
            place = groups.index(item["domain"]) if by_domain else 0
            totals[i, place] = sum(map(value, answered))
            weights[i, place] = len(answered)
        return Measure(totals, weights)

    found = {
        "official": ratio(lambda q: round(q["score"], 4)),
        "strict": ratio(lambda q: q["score"]),
        "accuracy": ratio(lambda q: float(q["correct"])),
        "cannot_answer": ratio(lambda q: float(q["cannot_answer"])),
    }
    if len(domains) > 1:
        found["official_macro"] = ratio(lambda q: round(q["score"], 4), by_domain=True)
        found["strict_macro"] = ratio(lambda q: q["score"], by_domain=True)
    return found


def groups(items: Sequence[Mapping[str, Any]], name: str) -> dict[str, tuple[float, int]]:
    """(mean score in 0..100, questions) by "domain" or "category", of the answered questions."""
    found: dict[str, list[float]] = {}
    for item in items:
        for asked in item["questions"]:
            if asked["failed"] is None:
                group = item["domain"] if name == "domain" else asked["category"]
                found.setdefault(group, []).append(asked["score"])
    return {group: (100 * float(np.mean(of)), len(of)) for group, of in sorted(found.items())}


def _domain_place(domain: str) -> tuple[int, str]:
    return (DOMAINS.index(domain) if domain in DOMAINS else len(DOMAINS), domain)


def filled(items: Sequence[Mapping[str, Any]], *, best: bool) -> list[dict[str, Any]]:
    """The items, with the least or the most that questions without an answer could have got."""
    got = {"score": float(best), "correct": best, "cannot_answer": False, "failed": None}
    return [
        {
            **item,
            "questions": [
                asked if asked["failed"] is None else {**asked, **got}
                for asked in item["questions"]
            ],
        }
        for item in items
    ]
