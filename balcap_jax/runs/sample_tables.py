"""Sampled captions as the table that loggers with pictures show."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

# Pixels of the longer side: enough to judge a caption by, and a run's files stay small.
SIDE = 512


def table_of(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], list[tuple[Any, ...]], tuple[str, ...]]:
    """Names of the columns, the values of each row, and the distinct ids in their order.

    Args:
      rows: made by `caption_row`; all with the same rewards.
    """
    rewards = tuple(dict.fromkeys(name for row in rows for name in row["rewards"]))
    columns = ("id", "caption", *rewards, "words", "rho", "reference")
    values = [
        (
            row["id"], row["caption"], *(row["rewards"].get(name) for name in rewards),
            row["words"], row["rho"], row["reference"],
        )
        for row in rows
    ]  # fmt: skip
    return columns, values, tuple(dict.fromkeys(row["id"] for row in rows))


def thumbnail(image: Image) -> Image:
    """A copy in RGB, at most `SIDE` pixels wide and high; a small one keeps its size."""
    small = image.convert("RGB")  # a copy, always
    small.thumbnail((SIDE, SIDE))
    return small
