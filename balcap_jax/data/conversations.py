"""Conversations of several turns, however a file writes them: what is asked about the image, what
the model shall answer, and what is asked and answered after that.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.examples import Turn
from balcap_jax.data.images import ImageLike
from balcap_jax.data.json_text import is_encodable
from balcap_jax.data.rows import BadRowError, Row

USER, MODEL, SYSTEM = ("human", "user"), ("gpt", "assistant"), ("system",)
TAG = "<image>"


class Conversation(NamedTuple):
    """A conversation about one image or several.

    Attributes:
      messages: in chat form, up to the first answer; the images stand where they are shown.
      answer: the first answer.
      turns: what comes after it.
      images: shown in `messages`, all of them before the first answer.
    """

    messages: tuple[Mapping[str, Any], ...]
    answer: str
    turns: tuple[Turn, ...]
    images: int


class UnusableError(Exception):
    """Why a conversation has nothing to train on, in words that fit behind "rows"."""


class Said(NamedTuple):
    """One message: who, and the parts of what is said, a text or "image" for each."""

    speaker: str
    parts: tuple[Mapping[str, str], ...]


def from_llava(turns: Sequence[Any]) -> Conversation:
    """A conversation of `{"from": "human", "value": "<image>\\nWhat is this?"}` turns.

    Raises:
      UnusableError: it cannot be learned from.
    """
    said = (said_in(turn) for turn in turns)
    return _conversation([Said(speaker, _tagged(words or "")) for speaker, words in said])


def said_in(turn: Any) -> tuple[str, str | None]:
    """(speaker in small letters, words) of a turn of LLaVA's.

    Raises:
      UnusableError: it is not like `{"from": "human", "value": "..."}`.
    """
    if isinstance(turn, dict) and "value" in turn:
        speaker, words = turn.get("from"), turn["value"]
        if isinstance(speaker, str) and isinstance(words, str | None):
            return speaker.lower(), words
    raise UnusableError('whose turns must be like {"from": "human", "value": "..."} and are not')


def from_messages(value: Any, *, where: str) -> Conversation:
    """A conversation of `{"role": "user", "content": ...}` messages, whose content is a text, in
    which `<image>` stands for an image, or parts.

    Raises:
      BadRowError: it is none, or cannot be learned from.
    """
    value = rows.listed(value)
    if not isinstance(value, list) or not all(map(rows.is_message, value)):
        raise BadRowError(
            where,
            f'has "messages": {rows.shown(value)}, which must be a list like [{{"role": "user", '
            '"content": "What is this?"}, {"role": "assistant", "content": "A dog."}]; fix it or '
            "remove the row.",
        )
    try:
        return _conversation([Said(m["role"].lower(), _parts(m["content"])) for m in value])
    except UnusableError as error:
        raise _unusable(error, "messages", where=where) from None


def talk_of(values: Mapping[str, Any], *, where: str) -> Conversation | None:
    """The conversation of a row: its `messages`, LLaVA's `conversations`, or TRL's `prompt` and
    `completion`, each a text or messages. None where it has none of them.

    Raises:
      BadRowError: it is none, or cannot be learned from.
    """
    given = {name: values.get(name) for name in ("messages", "conversations", "completion")}
    if not rows.missing(given["messages"]):
        return from_messages(given["messages"], where=where)
    if not all(rows.missing(values.get(name)) for name in rows.CAPTIONS):
        return None  # the captions are what is learned
    if not rows.missing(given["conversations"]):
        turns = rows.listed(given["conversations"])
        try:
            return from_llava(turns if isinstance(turns, list) else [turns])
        except UnusableError as error:
            raise _unusable(error, "conversations", where=where) from None
    if rows.missing(given["completion"]):
        return None
    prompt = PROMPT if rows.missing(values.get("prompt")) else values["prompt"]
    asked, answered = _messages(prompt, "user"), _messages(given["completion"], "assistant")
    return from_messages([*asked, *answered], where=where)


def _messages(value: Any, role: str) -> list[Any]:
    value = rows.listed(value)
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _unusable(error: UnusableError, name: str, *, where: str) -> BadRowError:
    return BadRowError(where, f'is one of the rows {error} in "{name}"; fix it or remove the row.')


def check_shown(talk: Conversation, images: int, *, where: str) -> None:
    """Refuses a row that has other images than its messages show.

    Raises:
      BadRowError: there is none, or not one for each.
    """
    if not images:
        raise BadRowError(where, 'has no "image" and no "images"; add one or remove the row.')
    # Where the messages show none, the only image stands before the first question.
    if max(talk.images, 1) != images:
        raise BadRowError(
            where,
            f'has {images} images where its "messages" show {talk.images}; give one for each place '
            "or remove the row.",
        )


def row_of(talk: Conversation, *, id_: str, images: Sequence[ImageLike]) -> Row:
    """A conversation as a row; of a single image with a plain question, as other rows have it."""
    plain = len(talk.messages) == 1 and len(images) == 1
    return Row(
        id=id_,
        image=images[0],
        prompt="\n".join(
            part["text"] for part in talk.messages[-1]["content"] if part["type"] == "text"
        ),
        reference=talk.answer,
        messages=() if plain else talk.messages,
        more_images=tuple(images[1:]),
        turns=talk.turns,
    )


def _tagged(words: str) -> tuple[Mapping[str, str], ...]:
    """A text with tags as parts, without the spaces around the tags."""
    pieces = [piece.strip() for piece in words.split(TAG)]
    found: list[Mapping[str, str]] = []
    for place, piece in enumerate(pieces):
        if place:
            found.append({"type": "image"})
        if piece:
            found.append({"type": "text", "text": piece})
    return tuple(found)


def _parts(content: Any) -> tuple[Mapping[str, str], ...]:
    if isinstance(content, str):
        return _tagged(content)
    found: list[Mapping[str, str]] = []
    for part in content:
        if part["type"] == "image":
            found.append({"type": "image"})
        elif part.get("text"):
            found.append({"type": "text", "text": part["text"]})
    return tuple(found)


def _conversation(said: Sequence[Said]) -> Conversation:
    """Several turns of one speaker in a row are one turn; a last question without an answer is left
    out.
    """
    merged: list[Said] = []
    for speaker, parts in said:
        if speaker not in (*USER, *MODEL, *SYSTEM):
            raise UnusableError(
                "with a turn of another speaker than human or user, gpt or assistant, and system"
            )
        role = "user" if speaker in USER else "assistant" if speaker in MODEL else "system"
        if merged and merged[-1].speaker == role:
            merged[-1] = Said(role, (*merged[-1].parts, *parts))
        else:
            merged.append(Said(role, parts))
    system = merged.pop(0) if merged and merged[0].speaker == "system" else None
    if any(turn.speaker == "system" for turn in merged):
        raise UnusableError("with a system turn after the first turn")
    if merged and merged[0].speaker == "assistant":
        raise UnusableError("that begin with an answer")
    if len(merged) % 2:
        merged.pop()
    answers = [_text(turn) for turn in merged[1::2]]
    if not answers or not all(answers):
        raise UnusableError("without an answer")
    if system is not None and not _text(system):
        system = None
    _check_images([system] if system else [], merged)
    for turn in (*([system] if system else []), *merged):
        if rows.special_token(_text(turn)) is not None:
            what = {"assistant": "an answer", "system": "the system turn"}
            raise UnusableError(f"with a special token in {what.get(turn.speaker, 'a question')}")
        if not is_encodable(_text(turn)) or "\0" in _text(turn):
            raise UnusableError("with a character that cannot be written in UTF-8")
    questions = [_text(turn) for turn in merged[2::2]]
    if not all(questions):
        raise UnusableError("with an empty question between two answers")
    first = merged[0]
    if not _text(first):
        first = Said("user", (*first.parts, {"type": "text", "text": PROMPT}))
    return Conversation(
        messages=tuple(
            {"role": turn.speaker, "content": list(turn.parts)}
            for turn in ((system, first) if system else (first,))
        ),
        answer=answers[0],
        turns=tuple(map(Turn, questions, answers[1:])),
        images=_count(first),
    )


def _check_images(system: Sequence[Said], turns: Sequence[Said]) -> None:
    if any(_count(turn) for turn in (*system, *turns[1::2])):
        raise UnusableError("with an image in an answer or the system turn")
    if any(_count(turn) for turn in turns[2:]):
        raise UnusableError("with an image after the first answer")


def _count(turn: Said) -> int:
    return sum(part["type"] == "image" for part in turn.parts)


def _text(turn: Said) -> str:
    """Its words; texts that were turns of their own, or have an image between them, on lines of
    their own.
    """
    return "\n".join(part["text"] for part in turn.parts if part["type"] == "text").strip()
