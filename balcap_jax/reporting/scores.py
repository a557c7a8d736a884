"""How the scores of a run are shown: by name, in a table's rows, with how many digits."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from balcap_jax.config.sections import REWARDS

# What an evaluation's summary holds beside its rewards; no reward may have these names.
BESIDE_REWARDS = ("b_capscore", "words", "rho", "captions", "no_signal")

_LABELS = {"b_capscore": "b-CapScore"}
_DIGITS = {**dict.fromkeys((*REWARDS, "b_capscore"), 1), "words": 1, "rho": 2}
_NEITHER = ("words", "rho")  # neither more nor less is better


class SummaryRow(NamedTuple):
    """A score before and after training, as text; `better` is None where neither is better."""

    label: str
    before: str
    after: str
    change: str
    better: bool | None


def label_of(name: str) -> str:
    """The name of a score for people."""
    return _LABELS.get(name, name)


def summary_rows(summary: Mapping[str, Any]) -> list[SummaryRow]:
    """The rewards in their order, b-CapScore where there is one, words and rho.

    Args:
      summary: with `before` and `after` of `evaluation_summary`; null and NaN are shown as a dash.
    """
    sides = [summary[when] for when in ("before", "after")]
    held = list(dict.fromkeys(name for side in sides for name in side))
    rewards = [name for name in held if name not in BESIDE_REWARDS]
    names = [*rewards, *(name for name in ("b_capscore", "words", "rho") if name in held)]
    return [_row(name, *(_number(side.get(name)) for side in sides)) for name in names]


def caption_score(name: str, value: Any) -> str:
    """A reward of one caption: two digits of what lies in [0, 1], three of what is not bounded."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "no signal"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return format(value, ".2f" if name in (*REWARDS, "rho") else significant(value))


def significant(*values: float) -> str:
    """The format specification with which the largest of `values` shows three digits; they stand
    below each other with the same number of decimals.
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0:
        return ".2f"
    if not 1e-4 <= largest < 1e6:
        return ".2e"
    return f".{max(0, 2 - math.floor(math.log10(largest)))}f"


def _row(name: str, before: float, after: float) -> SummaryRow:
    spec = f".{_DIGITS[name]}f" if name in _DIGITS else significant(before, after)
    change = "-" if math.isnan(after - before) else format(after - before, "+" + spec)
    changed = change != "-" and float(change) != 0
    better = after > before if changed and name not in _NEITHER else None
    shown = ("-" if math.isnan(value) else format(value, spec) for value in (before, after))
    return SummaryRow(label_of(name), *shown, change, better)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
