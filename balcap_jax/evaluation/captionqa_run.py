"""CaptionQA of captions: a text model answers questions by the caption alone."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.evaluation import captionqa
from balcap_jax.evaluation.asking import Asker, Failure
from balcap_jax.evaluation.captionqa import (
    LETTERS,
    Entry,
    Question,
    category_of,
    letter_of,
    question_of,
)
from balcap_jax.rewards.llm.answer_text import BadAnswer
from balcap_jax.rewards.llm.request_form import Sampling
from balcap_jax.runs.folder import write_json_atomic

_SAMPLING = Sampling(temperature=0.0, max_tokens=4)


class _Planned(NamedTuple):
    """One question about one caption."""

    entry: Entry
    place: int
    question: Question


def judge_questions(
    asker: Asker,
    captions: Mapping[str, str],
    entries: Sequence[Entry],
    *,
    permutations: Mapping[tuple[str, int], Sequence[int]],
) -> list[dict[str, Any]]:
    """An item of each entry that has a caption, with all its questions.

    Args:
      permutations: of the complete data.
    """
    planned = [
        _Planned(entry, place, made)
        for entry in entries
        if entry.id in captions
        for place, asked in enumerate(entry.questions)
        if (made := question_of(asked, permutation=permutations.get((entry.id, place))))
    ]
    jobs = [partial(_ask, asker, captions[one.entry.id], one) for one in planned]
    found: dict[str, list[dict[str, Any]]] = {}
    for one, answer in zip(planned, asker.all(jobs), strict=True):
        found.setdefault(one.entry.id, []).append(_answered(one, answer))
    return [
        {
            "id": entry.id,
            "caption": captions[entry.id],
            "domain": entry.domain,
            "questions": found[entry.id],
        }
        for entry in entries
        if entry.id in found
    ]


async def _ask(asker: Asker, caption: str, one: _Planned) -> str:
    options = "\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, one.question.options, strict=False)
    )
    prompts = asker.prompts
    user = prompts.text(
        "user",
        caption=caption,
        question=str(one.entry.questions[one.place]["question"]),
        options=options,
    )
    return await asker.ask(
        "question", (prompts.text("system"), user), _checked, sampling=_SAMPLING
    )  # fmt: skip


def _checked(response: str) -> str:
    """Any text is an answer, also one that was cut at 4 tokens; nothing is none."""
    if not response.strip():
        raise BadAnswer("a reply without a text")
    return response


def _answered(one: _Planned, answer: "str | Failure") -> dict[str, Any]:
    asked = one.entry.questions[one.place]
    base = {
        "place": one.place,
        "question": str(asked.get("question", "")),
        "choices": list(map(str, asked["choices"])),
        "answer": asked["answer"],
        "options": list(one.question.options),
        "category": category_of(asked),
        "failed": None,
    }
    if isinstance(answer, Failure):
        nothing = {"response": "", "letter": None, "chosen": None}
        none = {"score": None, "correct": False, "cannot_answer": False}
        return {**base, **nothing, **none, "failed": answer.reason}
    letter = letter_of(answer.strip(), options=len(one.question.options))
    place = None if letter is None else LETTERS.index(letter)
    return {
        **base,
        "response": answer,
        "letter": letter,
        "chosen": None if place is None else one.question.options[place],
        "score": captionqa.score(one.question, letter),
        "correct": place == one.question.correct,
        "cannot_answer": place is not None and place == one.question.cannot_answer,
    }


def counts(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Questions, and those without a letter or an answer."""
    asked = [question for item in items for question in item["questions"]]
    return {
        "questions": len(asked),
        "unparsed": sum(q["letter"] is None and q["failed"] is None for q in asked),
        "failed": sum(q["failed"] is not None for q in asked),
    }


def write_official(
    folder: Path,
    items: Sequence[Mapping[str, Any]],
    permutations: Mapping[tuple[str, int], Sequence[int]],
) -> None:
    """captions.json and results.json, as qa.py reads and writes them, and permutations.json.

    A question without an answer is left out there: qa.py would count it as a zero.
    """
    write_json_atomic(folder / "captions.json", {item["id"]: item["caption"] for item in items})
    stored: dict[str, dict[str, list[int]]] = {}
    for (name, place), order in permutations.items():
        stored.setdefault(name, {})[str(place)] = list(order)
    write_json_atomic(folder / "permutations.json", stored)
    write_json_atomic(
        folder / "results.json",
        {
            item["id"]: [
                {
                    "question": asked["question"],
                    "choices": asked["choices"],
                    "ground_truth": asked["answer"],
                    "model_answer": asked["chosen"],
                    "model_response": asked["response"],
                    "is_correct": asked["correct"],
                    "is_cannot_answer": asked["cannot_answer"],
                    "score": round(asked["score"], 4),
                    "category": asked["category"],
                }
                for asked in item["questions"]
                if asked["failed"] is None
            ]
            for item in items
        },
    )
