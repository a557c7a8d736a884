"""Conversations about images as LLaVA and ShareGPT4V publish them: one JSON array of

    {"id": "1", "image": "coco/train2017/000000000009.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nDescribe the image."},
        {"from": "gpt", "value": "A plate of ..."}]}

or the same rows one per line. The first question, without its image tag, is the prompt and the
first answer the reference.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.conversations import (
    MODEL,
    SYSTEM,
    TAG,
    USER,
    Conversation,
    UnusableError,
    from_llava,
    row_of,
    said_in,
)
from balcap_jax.data.json_text import DuplicateKeyError, is_encodable, read_json
from balcap_jax.data.row_index import RowTexts, head, index_lines, json_items, row_index
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.errors import UserError
from balcap_jax.runs.safe_json import MAX_DEPTH, check_depth

_TWICE = "with a field twice"
_DEEP = f"that are nested deeper than {MAX_DEPTH} levels"
_log = logging.getLogger(__name__)


class LlavaRows(Sequence[Row]):
    """The rows with one image and an answer; the others are counted in `skipped`.

    The file is parsed once at the start; then only the places of its rows are in memory, and each
    is parsed again when it is asked for.

    Attributes:
      skipped: how many rows are of no use here, by reason.
    """

    def __init__(self, path: Path, *, images: Path | None = None, conversations: bool = False):
        """
        Args:
          conversations: all turns are read, and rows may show several images; for supervised
            training.

        Raises:
          UserError: the file cannot be read, is neither an array of rows nor one row per line, or
            none can be used.
        """
        self.path, self._conversations = path, conversations
        self.images = path.parent if images is None else images
        self.skipped: Counter[str] = Counter()
        first: dict[str, int] = {}
        starts, stops, numbers = array("q"), array("q"), array("q")
        for number, place in _places(path, conversations=conversations):
            if place.reason is not None:
                self.skipped[place.reason] += 1
                first.setdefault(place.reason, number)
                continue
            starts.append(place.start)
            stops.append(place.stop)
            numbers.append(number)
        if not numbers:
            told = ", ".join(
                f"{count} rows {reason}, first row {first[reason]}"
                for reason, count in self.skipped.items()
            )
            raise UserError(
                f"{path} has no row that can be used ({told or 'it is empty'}); give rows with an "
                "image and an answer, as LLaVA and ShareGPT4V have them, or one JSON object with "
                "image and caption per line as .jsonl."
            )
        for reason, count in self.skipped.items():
            _log.warning(
                "%s: skipped %d rows %s; the first is row %d", path, count, reason, first[reason]
            )
        self._texts = RowTexts(path, row_index(starts, stops, numbers))

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Row `index`.

        Raises:
          UserError: the file has changed since the start.
        """
        number = int(self._texts.index.numbers[index])
        try:
            values = read_json(self._texts[index])
            if self._conversations:
                return self._whole(values, number)
            turns = _used(values)
        except (ValueError, UnusableError) as error:
            raise UserError(
                f"{self.path} has changed since the start of the run (row {number} is not where it "
                "was); restore it and resume the run."
            ) from error
        return Row(
            # Published files have ids twice, and ids that are missing.
            id=f"{turns.id or self.path.stem}#{number}",
            image=rows.image_path(self.images, turns.image),
            prompt=turns.question.replace(TAG, "").strip() or PROMPT,
            reference=turns.answer.strip(),
        )

    def _whole(self, values: Any, number: int) -> Row:
        id_, images, talk = _talk(values)
        return row_of(
            talk,
            id_=f"{id_ or self.path.stem}#{number}",
            images=[rows.image_path(self.images, image) for image in images],
        )


class _Place(NamedTuple):
    """The bytes of a row, and why it is not used."""

    start: int
    stop: int
    reason: str | None


class _Turns(NamedTuple):
    """What is used of a row."""

    id: str | None
    image: str
    question: str
    answer: str


def _places(path: Path, *, conversations: bool) -> Iterator[tuple[int, _Place]]:
    """(number, place) of each row of an array, from 1, or of each line that holds one."""
    if not head(path).startswith(b"{"):
        for number, item in enumerate(json_items(path), start=1):
            if item.key is not None:
                raise _no_rows(path)
            if item.twice is not None:
                reason = _TWICE
            elif _is_deep(item.value):
                reason = _DEEP
            else:
                reason = _why_unused(item.value, conversations=conversations)
            yield number, _Place(item.start, item.stop, reason)
        return
    texts = RowTexts(path, index_lines(path))
    for index, number in enumerate(texts.index.numbers.tolist()):
        try:
            values = read_json(texts.raw(index).decode("utf-8"))
        except DuplicateKeyError:
            reason = _TWICE
        except ValueError:
            reason = "that are not JSON"
        else:
            if index == 0 and isinstance(values, dict) and "conversations" not in values:
                raise _no_rows(path)
            reason = _why_unused(values, conversations=conversations)
        start, stop = int(texts.index.starts[index]), int(texts.index.stops[index])
        yield number, _Place(start, stop, reason)


def _is_deep(value: Any) -> bool:
    """Whether `read_json` would not read it again."""
    try:
        check_depth(value)
    except ValueError:
        return True
    return False


def _no_rows(path: Path) -> UserError:
    return UserError(
        f"{path} is a JSON object without conversations, where LLaVA and ShareGPT4V files are an "
        "array of rows, or one row per line; give one of these, or --data.format coco for captions "
        "of COCO."
    )


def _why_unused(values: Any, *, conversations: bool) -> str | None:
    try:
        _talk(values) if conversations else _used(values)
    except UnusableError as error:
        return str(error)
    return None


def _used(values: Any) -> _Turns:
    """What is used of a row, checked in full.

    Raises:
      UnusableError: it has nothing to train on, or is not as rows are.
    """
    id_, images = _head(values)
    if len(images) > 1:
        raise UnusableError("with a list of images")
    question, answer = _turns(values["conversations"])
    _check_paths(images)
    if not is_encodable(question + answer):
        raise UnusableError("with half of a character, which UTF-8 does not have")
    if not answer.strip():
        raise UnusableError("without an answer")
    if TAG not in question:
        raise UnusableError(f"without {TAG} before or after the words of the first question")
    if question.count(TAG) > 1:
        raise UnusableError("with several image tags")
    for name, words in (("question", question.replace(TAG, "")), ("answer", answer)):
        if rows.special_token(words) is not None:
            raise UnusableError(f"with a special token in the {name}")
    return _Turns(id_, images[0], question, answer)


class _Talk(NamedTuple):
    """A conversation with its id and the paths of its images."""

    id: str | None
    images: tuple[str, ...]
    talk: Conversation


def _talk(values: Any) -> _Talk:
    """The whole conversation of a row.

    Raises:
      UnusableError: it has nothing to train on, or is not as rows are.
    """
    id_, images = _head(values)
    _check_paths(images)
    talk = from_llava(values["conversations"])
    if not talk.images:
        raise UnusableError(f"without {TAG} before or after the words of the first question")
    if talk.images != len(images):
        raise UnusableError("with another number of image tags than images")
    return _Talk(id_, images, talk)


def _head(values: Any) -> tuple[str | None, tuple[Any, ...]]:
    """(id, images as the file has them) of an object that has a conversation."""
    if not isinstance(values, dict) or not isinstance(values.get("conversations"), list):
        raise UnusableError('that are no object with "conversations"')
    try:
        id_ = rows.identity(values.get("id"), where="")
    except BadRowError:
        raise UnusableError("with an id that is neither a text nor a number") from None
    image = values.get("image")
    if image is None or image in ([], ""):
        raise UnusableError("without an image")
    return id_, tuple(image) if isinstance(image, list) else (image,)


def _check_paths(images: Sequence[Any]) -> None:
    if not all(map(_is_text, images)):
        raise UnusableError("with an image that is no path")


def _is_text(value: Any) -> bool:
    try:
        rows.text(value, name="", where="")
    except BadRowError:
        return False
    return True


def _turns(conversations: list[Any]) -> tuple[str, str]:
    """The first question and the answer to it; an empty text for what is missing. Several turns of
    one speaker in a row are one turn.

    Raises:
      UnusableError: a turn is not like {"from": "human", "value": "..."}.
    """
    asked: list[str] = []
    answered: list[str] = []
    for turn in conversations:
        speaker, words = said_in(turn)
        if speaker not in (*USER, *MODEL, *SYSTEM):
            raise UnusableError("with a turn of another speaker than human, gpt and system")
        if speaker in USER and answered:
            break
        if speaker in USER and words:
            asked.append(words)
        elif speaker in MODEL and asked and words:
            answered.append(words)
    return "\n".join(asked), "\n".join(answered)
