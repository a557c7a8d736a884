"""Multiple-choice questions about an image, in the form of CapRL-QA-75K.

    {"id": "...", "reward_model": {"ground_truth": [
        {"question": "What colour is the dog?", "choices": ["A) Black", "B) White"], "answer": "A"}
    ]}}

Rows stand in a .jsonl or .parquet file of their own, or the columns in the data. A question may
hold its options in its text, one a line as "   - A) Black", as the first rows of CapRL did.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.data.examples import Example
from balcap_jax.data.rows import listed, shown
from balcap_jax.errors import UserError
from balcap_jax.runs import safe_json

LETTERS = "ABCDEFGHI"  # that a judge's answer is read for
MOST_CHOICES = len(LETTERS) - 1  # one more may be added: that the caption does not tell
_LABEL = re.compile(r"\s*-?\s*\(?([A-I])[).:]\s*(.+)", re.DOTALL)
# An option that the released code of CapRL strips from a question before it adds its own.
_CANNOT = re.compile(r"can ?not answer based on the caption", re.IGNORECASE)


class Question(NamedTuple):
    """A question and its options.

    Attributes:
      choices: without letters, in the order of the data.
      correct: the place of the right one.
    """

    text: str
    choices: tuple[str, ...]
    correct: int


def read_questions(values: Mapping[str, Any], *, where: str) -> tuple[Question, ...] | None:
    """The questions of a row; None where it has no such column.

    Args:
      values: the columns of the row.
      where: what people find the row by, for messages.

    Raises:
      UserError: there are 0 questions, or one is none; see `read_question`.
    """
    found = values.get("reward_model")
    found = found.get("ground_truth") if isinstance(found, Mapping) else None
    found = listed(found)
    if found is None:
        return None
    if isinstance(found, str):
        try:
            found = safe_json.loads(found)
        except ValueError:
            found = [found]
    if not isinstance(found, list):
        raise UserError(
            f"{where} has the questions {shown(found)}, which must be a list of objects with "
            '"question", "choices" and "answer"; fix the row.'
        )
    if not found:
        raise UserError(
            f"{where} has 0 questions, and a caption can only be rewarded by some; give the image "
            "questions or leave it out."
        )
    return tuple(read_question(item, where=where) for item in found)


def read_question(value: Any, *, where: str) -> Question:
    """A question from an object with `question`, `choices` and the letter of the `answer`.

    Raises:
      UserError: it has no text, fewer than 2 choices or more than there are letters, or its answer
        is missing or beyond the choices.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("question"), str):
        raise UserError(
            f"{where} has the question {shown(value)}, which must be an object with a text "
            '"question", "choices" and "answer"; fix the row.'
        )
    text, choices = _split(value["question"], listed(value.get("choices")))
    if not text or not 2 <= len(choices) <= MOST_CHOICES:
        raise UserError(
            f"{where} has the question {text[:60]!r} with {len(choices)} choices, which must have "
            f"2 to {MOST_CHOICES}; fix the row."
        )
    answer = value.get("answer")
    letter = answer.strip()[:1].upper() if isinstance(answer, str) else ""
    if not letter:
        raise UserError(
            f"{where} has the question {text[:60]!r} without a right answer; give its letter as "
            '"answer", such as "A".'
        )
    labels = [label for label, _ in choices]
    if letter not in labels:
        raise UserError(
            f"{where} has the question {text[:60]!r} with the answer {answer[:20]!r}, beyond its "
            f"options {', '.join(labels)}; give the letter of one of them."
        )
    return Question(text, tuple(choice for _, choice in choices), labels.index(letter))


def _split(text: str, choices: Any) -> tuple[str, list[tuple[str, str]]]:
    """The text of a question, and its options with their letters."""
    lines = [line for line in text.strip().split("\n") if line.strip()]
    if not isinstance(choices, list) or not choices:
        # The options stand in the text, where they begin with a letter.
        head = [line for line in lines if _LABEL.fullmatch(line) is None]
        choices = [line for line in lines if _LABEL.fullmatch(line) is not None]
    else:
        head = lines
    named: list[tuple[str, str]] = []
    for place, choice in enumerate(map(str, choices)):
        match = _LABEL.fullmatch(choice.strip())
        label = match[1] if match else LETTERS[place % len(LETTERS)]
        told = (match[2] if match else choice).strip()
        if not _CANNOT.fullmatch(told.rstrip(".")):
            named.append((label, told))
    return "\n".join(head).strip(), named


class QuestionFile:
    """The questions in a file, by the ids of their images.

    Args:
      path: a .jsonl or .parquet file.

    Raises:
      UserError: the file cannot be read, or a row is none; see `read_questions`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._by_id: dict[str, tuple[Question, ...]] = {}
        for number, row in enumerate(_rows(path), start=1):
            where = f"{path}, row {number}"
            found = read_questions(row, where=where)
            if found is None or not isinstance(row.get("id"), str | int):
                raise UserError(
                    f'{where} has no "id" or no "reward_model" with a "ground_truth"; write the '
                    "rows as CapRL-QA-75K has them, or as `balcap data questions` does."
                )
            if str(row["id"]) in self._by_id:
                raise UserError(f"{where} has the id {row['id']!r} a second time; remove one row.")
            self._by_id[str(row["id"])] = found

    def get(self, id_: str) -> tuple[Question, ...] | None:
        """The questions of an image; None where the file has none of it."""
        return self._by_id.get(id_)


def _rows(path: Path) -> list[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet  # noqa: PLC0415  a second, and only for these files

        try:  # without the images, which are most of the file
            return parquet.read_table(path, columns=["id", "reward_model"]).to_pylist()
        except (OSError, ValueError, KeyError) as error:  # ArrowInvalid is a ValueError
            raise UserError(
                f"The questions {path} cannot be read as parquet with the columns id and "
                f"reward_model ({str(error).splitlines()[0]}); check --reward.qa.file."
            ) from None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The questions {path} cannot be read ({error}); check --reward.qa.file."
        ) from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = safe_json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is no JSON object; write one a line.")
        found.append(row)
    return found


def to_row(id_: str, questions: tuple[Question, ...]) -> dict[str, Any]:
    """A row of a file of questions."""
    return {
        "id": id_,
        "data_source": "image_caption_rl",
        "reward_model": {
            "ground_truth": [
                {
                    "question": asked.text,
                    "choices": [
                        f"{letter}) {choice}"
                        for letter, choice in zip(LETTERS, asked.choices, strict=False)
                    ],
                    "answer": LETTERS[asked.correct],
                }
                for asked in questions
            ]
        },
    }


def questions_of(example: Example, file: QuestionFile | None) -> tuple[Question, ...] | None:
    """The questions of an example: of the file, else of its column; None without any."""
    found = None if file is None else file.get(example.id)
    if found is not None:
        return found
    return read_questions(example.columns, where=f"the example {example.id!r}")
