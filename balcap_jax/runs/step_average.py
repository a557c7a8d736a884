"""One row of metrics for several steps."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_LAST = (
    "learning_rate", "epoch", "judge/price_total", "judge/price_projected", "judge/price_per_1000",
)  # fmt: skip
_MOST = ("peak_memory_mb", "device_memory_mb")


class StepAverage:
    """Collects the rows since the last one that was logged.

    Of each field, over the rows that have it: numbers are averaged without NaN; lists, which are
    counts per bin, are summed; what counts for the whole run so far (`learning_rate`, `epoch`,
    prices) and `heldout/...` keep their last value; peaks of memory their greatest.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """The row of one step: numbers, or lists of equal length under the same name."""
        self._rows.append(dict(row))

    def amend(self, fields: Mapping[str, Any]) -> None:
        """More fields of the row that was added last."""
        self._rows[-1] |= fields

    def last(self) -> dict[str, Any]:
        """The row that was added last."""
        return dict(self._rows[-1])

    def take(self) -> dict[str, Any]:
        """The row of all steps since the last call, fields in the order of their first appearance;
        a single row comes back as it is, and of no row nothing.
        """
        rows, self._rows = self._rows, []
        if len(rows) == 1:
            return rows[0]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: _of(name, [row[name] for row in rows if name in row]) for name in names}

    def state(self) -> list[dict[str, Any]]:
        """What JSON holds of it, for a checkpoint within such a stretch of steps."""
        return [{name: _to_json(value) for name, value in row.items()} for row in self._rows]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Goes on as if the rows of `state` had been added here."""
        self._rows = [{name: _from_json(value) for name, value in row.items()} for row in state]


def _of(name: str, values: list[Any]) -> Any:
    if name.startswith("heldout/") or name in _LAST:
        return values[-1]
    if _is_list(values[0]):
        return np.stack([np.asarray(value) for value in values]).sum(axis=0).tolist()
    known = [float(value) for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    return max(known) if name in _MOST else sum(known) / len(known)


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__")


def _to_json(value: Any) -> Any:
    """JSON has no NaN and no infinity, and checkpoints write both as null: so they are strings."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if _is_list(value):
        return [_to_json(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return float(value) if isinstance(value, str) else value
