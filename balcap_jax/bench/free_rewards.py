"""Rewards without cost, for benchmarks: both trainers call the same functions."""

from collections.abc import Sequence
from typing import Any


def letters(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward that differs within a group: a sum over the caption's letters, from 0 to 1."""
    return [sum(map(ord, text)) % 97 / 97 for text in _texts(completions)]


def brevity(completions: Sequence[Any], **columns: Any) -> list[float]:
    """The fewer words, the higher: from 0 to 1."""
    return [1 / (1 + len(text.split())) for text in _texts(completions)]


def _texts(completions: Sequence[Any]) -> list[str]:
    """Captions as they are, or as the messages that TRL makes of conversations."""
    return [c if isinstance(c, str) else c[0]["content"] for c in completions]
