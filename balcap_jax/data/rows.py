"""A row of data, and the checks that rows of all kinds share, be they in a file or in memory."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from balcap_jax.config.sections import PROMPT, QUESTION_PROMPT
from balcap_jax.data.examples import NO_COLUMNS, Box, Turn
from balcap_jax.data.images import ImageLike
from balcap_jax.data.json_text import is_encodable
from balcap_jax.data.visible_text import visible
from balcap_jax.errors import UserError
from balcap_jax.storage.paths import as_path

if TYPE_CHECKING:
    from balcap_jax.scenes.world import Scene

# Where captions are, the one of the reference first.
CAPTIONS = ("caption", "captions", "reference", "references")
# Words that chat templates and tokenizers give a meaning: a policy must not learn to say them, and
# a question that holds them would end or begin a turn.
_SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:image|video|audio|pad|unk|bos|eos|eot|mask)>|"
    r"<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
_SIDES = ("left", "top", "right", "bottom")


class BadRowError(UserError):
    """A row that cannot be used; the others of its file can.

    Args:
      where: the file with its line, or whatever people find the row by.
      fault: what is wrong and what to do, as it goes on behind `where`.
    """

    def __init__(self, where: str, fault: str):
        # Values are shown as they are, and the message must be printed all the same.
        fault = " ".join(fault.split()).encode("utf-8", "backslashreplace").decode()
        super().__init__(f"{where} {fault}")
        self.where, self.fault = where, fault


# What reward functions get in another form: the image itself, and prompts.
NOT_COLUMNS = ("image", "prompt")


class Row(NamedTuple):
    """What a file says about one image, checked; see `Example`.

    Attributes:
      image: path of the image, the bytes of its file, or the image itself.
    """

    id: str
    image: ImageLike
    prompt: str
    reference: str
    scene: "Scene | None" = None
    references: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    units: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = NO_COLUMNS
    more_images: tuple[ImageLike, ...] = ()
    turns: tuple[Turn, ...] = ()
    questions: tuple[Turn, ...] = ()

    @property
    def all_references(self) -> tuple[str, ...]:
        """`references`, or `reference` where they are empty."""
        return self.references or (self.reference,)

    @property
    def all_images(self) -> tuple[ImageLike, ...]:
        """`image` and `more_images`."""
        return (self.image, *self.more_images)


def longest(captions: Sequence[str]) -> str:
    """The caption of most words, the first of these: the one that tells most of the image."""
    return max(captions, key=lambda caption: len(caption.split()))


def reference_of(values: Mapping[str, Any], captions: Sequence[str]) -> str:
    """The caption that stands for all of a row: its "caption", else the `longest`; "" without one.

    Its words are the unit of the length mask.
    """
    caption = values.get("caption")
    if not missing(caption):
        return caption
    return longest(captions) if captions else ""


def unique(captions: Iterable[str]) -> tuple[str, ...]:
    """Each caption once, as it was first written; an accent may be written in two ways (NFC and
    NFD), which look alike and are one.
    """
    found: dict[str, str] = {}
    for caption in captions:
        found.setdefault(visible(caption), caption)
    return tuple(found.values())


def text(value: Any, *, name: str, where: str) -> str:
    """`value` if it is a text that is not empty and that can be written.

    Raises:
      BadRowError: it is not.
    """
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(
            where,
            f'has "{name}": {shown(value)}, which must be a text that is not empty; fix it or '
            "remove the row.",
        )
    if not is_encodable(value) or "\0" in value:
        what = "a zero byte" if "\0" in value else "half of a character, which UTF-8 does not have"
        raise BadRowError(
            where,
            f'has "{name}": {shown(value)}, which holds {what}; fix it or remove the row.',
        )
    return str(value)


def words(value: Any, *, name: str, where: str) -> str:
    """`value` if it is a `text` in which nothing is a special token of chat templates.

    Raises:
      BadRowError: it is not.
    """
    found = text(value, name=name, where=where)
    special = special_token(found)
    if special is not None:
        raise BadRowError(
            where,
            f'has "{name}": {shown(found)}, which holds {special}, a special token that no text '
            "may have; fix it or remove the row.",
        )
    return found


def special_token(value: str) -> str | None:
    """The first special token of chat templates in `value`; None without one."""
    found = _SPECIAL.search(value)
    return None if found is None else found[0]


def texts(value: Any, *, name: str, where: str) -> tuple[str, ...]:
    """`value` as a tuple if it is a list of `words`.

    Raises:
      BadRowError: it is not.
    """
    value = listed(value)
    if not isinstance(value, list) or not value:
        raise BadRowError(
            where,
            f'has "{name}": {shown(value)}, which must be a list of texts; fix it or remove the '
            "row.",
        )
    return tuple(words(item, name=name, where=where) for item in value)


def captions(values: Mapping[str, Any], *, names: Sequence[str], where: str) -> tuple[str, ...]:
    """All captions under `names`, each once: texts under "caption" and "reference", lists of texts
    under names in the plural; a text in place of a list of one is refused there.

    Raises:
      BadRowError: one of them is no caption.
    """
    found: list[str] = []
    for name in names:
        value = values.get(name)
        if missing(value):
            continue
        if name.endswith("s"):
            found += texts(value, name=name, where=where)
        else:
            found.append(words(value, name=name, where=where))
    return unique(found)


def image_path(images: Any, name: str) -> Any:
    """The path of an image as a row names it: from the folder `images`, or whole, also in a bucket.

    Raises:
      UserError: it is in a store that is not read.
    """
    return as_path(name) if "://" in name else images / name


def identity(value: Any, *, where: str) -> str | None:
    """The id of a row as a text; None where it has none.

    Raises:
      BadRowError: it is neither a text nor a whole number.
    """
    if missing(value):
        return None
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(where, f'has "id": {shown(value)}; give a text or a number.')
    return text(value, name="id", where=where)


def prompt(value: Any, *, where: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """(text, messages) of a prompt that is a text, or messages in chat form; no messages for a
    text.

    Raises:
      BadRowError: it is neither, or no message has a text.
    """
    if isinstance(value, str):
        return words(value, name="prompt", where=where), ()
    value = listed(value)
    if not isinstance(value, list) or not value or not all(map(is_message, value)):
        raise BadRowError(
            where,
            f'has "prompt": {shown(value)}, which must be a text or a list of messages like '
            '{"role": "user", "content": "Describe the image."}; fix it or remove the row.',
        )
    if value[-1]["role"] != "user" or not text_of(value[-1]["content"]).strip():
        raise BadRowError(
            where,
            f'has "prompt": {shown(value)}, whose last message must be of the user and have a '
            "text; fix it or remove the row.",
        )
    for message in value:
        if text_of(message["content"]).strip():
            words(text_of(message["content"]), name="prompt", where=where)
    images = sum(
        part["type"] == "image"
        for message in value
        if not isinstance(message["content"], str)
        for part in message["content"]
    )
    if images > 1:
        raise BadRowError(
            where,
            f'has "prompt": {shown(value)}, which shows {images} images, and a row has one; fix it '
            "or remove the row.",
        )
    return text_of(value[-1]["content"]), tuple(value)


def is_message(value: Any) -> bool:
    """Whether it has a role, and a text or parts as its content."""
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    return isinstance(content, str) or (
        isinstance(content, list | tuple) and all(map(_is_part, content))
    )


def _is_part(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    # `datasets` gives all parts the same keys, so that an image has a text of None.
    return value.get("type") == "image" or (
        value.get("type") == "text" and isinstance(value.get("text"), str)
    )


def text_of(content: Any) -> str:
    """The text of a message's content: a text, or parts of which some are texts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")


def boxes(value: Any, *, where: str) -> tuple[Box, ...]:
    """Boxes from a list of `{"label": "dog", "box": [left, top, right, bottom]}`, of
    `["dog", left, top, right, bottom]`, or of objects with these five names; none for None and [].

    Raises:
      BadRowError: an entry is not like that, or not from 0 to 1 with left < right and top < bottom.
    """
    if missing(value):
        return ()
    value = listed(value)
    if isinstance(value, Mapping):
        value = _entries(value)
    if not isinstance(value, list):
        value = [value]
    return tuple(_box(item, where=where) for item in value)


def _entries(value: Mapping[str, Any]) -> list[Any]:
    """One object, or one of lists, as `datasets` keeps a list of objects."""
    columns = {name: listed(column) for name, column in value.items()}
    if not isinstance(columns.get("label"), list):
        return [value]
    sizes = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(sizes) != 1:
        return [value]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _box(item: Any, *, where: str) -> Box:
    item = listed(item)
    if isinstance(item, Mapping):
        sides = listed(item["box"]) if "box" in item else [item.get(side) for side in _SIDES]
        label = item.get("label")
    elif isinstance(item, list) and item:
        label, *sides = item
    else:
        label, sides = None, None
    ok = isinstance(sides, list) and len(sides) == 4 and all(map(_is_number, sides))
    ok = ok and isinstance(label, str) and bool(label.strip()) and is_encodable(label)
    ok = ok and 0 <= sides[0] < sides[2] <= 1 and 0 <= sides[1] < sides[3] <= 1
    if not ok:
        raise BadRowError(
            where,
            f'has the box {shown(item)}, which must be like {{"label": "dog", "box": [left, top, '
            "right, bottom]} in shares of width and height from 0 to 1; fix or remove it.",
        )
    return Box(str(label), *(float(side) for side in sides))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def units(value: Any, *, where: str) -> tuple[str, ...]:
    """Reference units from a list of texts, or of the {"text", "covered"} of a scored row; none for
    None and [].

    Raises:
      BadRowError: it is no such list.
    """
    value = listed(value)
    if missing(value) or (isinstance(value, list) and not value):
        return ()
    if isinstance(value, list):
        value = [item.get("text") if isinstance(item, Mapping) else item for item in value]
    return texts(value, name="units", where=where)


def questions(value: Any, *, where: str) -> tuple[Turn, ...]:
    """Questions with their answers from a list of `{"question": ..., "answer": ...}`; none for
    None.

    Raises:
      BadRowError: it is no such list, or empty.
    """
    value = listed(value)
    if missing(value):
        return ()
    fields = ("question", "answer")
    if isinstance(value, Mapping):  # of lists, as `datasets` keeps a list of objects
        columns = [listed(value.get(name)) for name in fields]
        alike = all(isinstance(column, list) for column in columns)
        if alike and len(columns[0]) == len(columns[1]):
            value = [dict(zip(fields, pair, strict=True)) for pair in zip(*columns, strict=True)]
    ok = isinstance(value, list) and bool(value)
    if not ok or not all(isinstance(v, Mapping) and v.keys() >= set(fields) for v in value):
        raise BadRowError(
            where,
            f'has "questions": {shown(value)}, which must be a list like [{{"question": "a red '
            'car", "answer": "yes"}]; fix it or remove the row.',
        )
    return tuple(
        Turn(*(words(item[name], name=name, where=where) for name in fields)) for item in value
    )


def caption_row(
    values: Mapping[str, Any], told: tuple[str, ...], *, id_: str, image: ImageLike, where: str
) -> Row:
    """A row of captions `told` of an image, with what else its fields say.

    Args:
      id_: where the row has none.

    Raises:
      BadRowError: a field is not as it must be.
    """
    given = values.get("prompt")
    asked, messages = (PROMPT, ()) if missing(given) else prompt(given, where=where)
    return Row(
        id=identity(values.get("id"), where=where) or id_,
        image=image,
        prompt=asked,
        reference=reference_of(values, told),
        references=told if len(told) > 1 else (),
        boxes=boxes(values.get("boxes"), where=where),
        units=units(values.get("units"), where=where),
        messages=messages,
        columns={name: value for name, value in values.items() if name not in NOT_COLUMNS},
    )


def question_row(values: Mapping[str, Any], *, id_: str, image: ImageLike, where: str) -> Row:
    """A row of `questions` about an image, each behind the same `prompt`.

    Raises:
      BadRowError: they are not like that.
    """
    given = values.get("prompt")
    return Row(
        id=id_,
        image=image,
        prompt=QUESTION_PROMPT if missing(given) else words(given, name="prompt", where=where),
        reference="",
        scene=scene(values.get("scene"), where=where),
        questions=questions(values["questions"], where=where),
    )


def scene(value: Any, *, where: str) -> "Scene | None":
    """The scene that `balcap scenes` wrote; None for None.

    Raises:
      BadRowError: it is no scene.
    """
    if missing(value):
        return None
    from balcap_jax.scenes.world import Scene

    try:
        return Scene.from_json(value)
    except UserError as error:
        raise BadRowError(f"{where}:", str(error)) from error
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise BadRowError(
            f"{where}:", f"scene {shown(value)} is none ({error}); write it with `balcap scenes`."
        ) from error


def missing(value: Any) -> bool:
    """Whether a field has no value: None, or the NaN that tables have in its place."""
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def listed(value: Any) -> Any:
    """Tuples and arrays as lists, everything else as it is."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    """The beginning of `value` as JSON, for messages; what cannot be printed is escaped."""
    try:
        found = json.dumps(value, ensure_ascii=False, default=_short)
    except (ValueError, TypeError, RecursionError):
        found = _short(value)
    return found[:80].encode("utf-8", "backslashreplace").decode()


def _short(value: Any) -> str:
    return f"a {type(value).__name__}"
