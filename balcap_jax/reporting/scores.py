"""How the scores of a run are shown: by name, in a table's rows, with how many digits."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from balcap_jax.config.sections import BESIDE_REWARDS, REWARDS

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
    return f"{value:.2f}" if name in (*REWARDS, "rho") else significant(value)


def significant(value: float) -> str:
    """A number of any size with three digits, NaN as a dash."""
    return "-" if math.isnan(value) else format(value, _spec(_decimals(value)))


def _decimals(value: float) -> int | None:
    """Of three digits; None where they need an exponent."""
    if value == 0:
        return 2
    if not 1e-4 <= abs(value) < 1e6:
        return None
    return max(0, 2 - math.floor(math.log10(abs(value))))


def _spec(decimals: int | None) -> str:
    return ".2e" if decimals is None else f".{decimals}f"


def _row(name: str, before: float, after: float) -> SummaryRow:
    if name in _DIGITS:
        spec = f".{_DIGITS[name]}f"
        shown = ["-" if math.isnan(value) else format(value, spec) for value in (before, after)]
    else:
        spec = _change_spec(before, after)
        shown = [significant(value) for value in (before, after)]
    change = "-" if math.isnan(after - before) else format(after - before, "+" + spec)
    changed = change != "-" and float(change) != 0
    better = after > before if changed and name not in _NEITHER else None
    return SummaryRow(label_of(name), *shown, change, better)


def _change_spec(before: float, after: float) -> str:
    """Three digits, but none beyond those of the two values: these would be noise."""
    shown = [_decimals(value) for value in (before, after)]
    if None in shown:
        return ".2e"
    finest, own = max(d for d in shown if d is not None), _decimals(after - before)
    return _spec(finest if own is None else min(finest, own))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
