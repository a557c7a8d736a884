"""What `balcap data check` tells of rows and their images, by name."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from balcap_jax.data.images import ImageLike
from balcap_jax.data.rows import Row


class Seen(NamedTuple):
    """What was seen of an image.

    Attributes:
      image: as the row has it.
      key: equal for the same image file or the same bytes.
      size: width and height in pixels as stored; None of an image that cannot be read.
    """

    image: ImageLike
    key: str
    size: tuple[int, int] | None
    format: str


class Checked(NamedTuple):
    """A row with its images, of which only conversations have several."""

    row: Row
    images: tuple[Seen, ...]


def answers_of(row: Row) -> tuple[str, ...]:
    """What a supervised run learns of a row: each caption, or the answers to its questions or of
    its turns.
    """
    if row.questions:
        return tuple(question.answer for question in row.questions)
    if row.turns:
        return (row.reference, *(turn.answer for turn in row.turns))
    return row.all_references


def caption_facts(checked: Sequence[Checked], *, kind: str) -> dict[str, str]:
    """Of rows that are trained on rewards, each of one image."""
    by_image: defaultdict[str, set[str]] = defaultdict(set)
    for item in checked:
        by_image[item.images[0].key].update(item.row.all_references)
    counts = Counter(len(texts - {""}) for texts in by_image.values())
    words = sorted(len(text.split()) for item in checked for text in item.row.all_references)
    return {
        "kind": kind,
        "rows": str(len(checked)),
        "images": str(len(by_image)),
        "captions per image": _spread(sorted(counts.elements())),
        "words per caption": _spread(words),
        "prompts": _prompts(checked),
        "rows with boxes": str(sum(bool(item.row.boxes) for item in checked)),
        "rows with units": str(sum(bool(item.row.units) for item in checked)),
        "rows with a scene": str(sum(item.row.scene is not None for item in checked)),
        **_image_facts(checked),
    }


def conversation_facts(checked: Sequence[Checked], *, kind: str) -> dict[str, str]:
    """Of rows that are trained on given answers: captions and conversations."""
    answers = [answers_of(item.row) for item in checked]
    turns = [len(item.row.questions) or 1 + len(item.row.turns) for item in checked]
    systems = sum(
        any(message["role"] == "system" for message in item.row.messages) for item in checked
    )
    return {
        "kind": kind,
        "rows": str(len(checked)),
        "images": str(len({image.key for item in checked for image in item.images})),
        "images per row": _spread(sorted(len(item.images) for item in checked)),
        "turns per row": _spread(sorted(turns)),
        "answers": str(sum(map(len, answers))),
        "words per answer": _spread(sorted(len(a.split()) for row in answers for a in row)),
        "first questions": _prompts(checked),
        "rows with a system turn": str(systems),
        **_image_facts(checked),
    }


def _prompts(checked: Sequence[Checked]) -> str:
    prompts = Counter(item.row.prompt for item in checked)
    return f"{len(prompts)}, most often {_quoted(prompts.most_common(1))}"


def _image_facts(checked: Sequence[Checked]) -> dict[str, str]:
    images = [image for item in checked for image in item.images]
    areas = sorted((seen.size[0] * seen.size[1], seen.size) for seen in images if seen.size)
    formats = Counter(seen.format for seen in images if seen.format)
    return {
        "sizes": " ... ".join(
            f"{width} x {height}" for _, (width, height) in _ends_and_middle(areas)
        ),
        "formats": ", ".join(f"{name} {count}" for name, count in formats.most_common()),
    }


def _spread(values: Sequence[int]) -> str:
    found = _ends_and_middle(values)
    return " ... ".join(map(str, dict.fromkeys(found))) if found else "none"


def _ends_and_middle(values: Sequence) -> list:
    """The least, the median and the most of sorted values."""
    return [values[0], values[len(values) // 2], values[-1]] if values else []


def _quoted(common: Sequence[tuple[str, int]]) -> str:
    return f'"{common[0][0][:60]}" ({common[0][1]})' if common else "none"
