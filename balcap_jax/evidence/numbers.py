"""The numbers of all cells, which the intervals of the page are made of, as one table."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from balcap_jax.evidence.measures import MARGINS
from balcap_jax.evidence.results import DECODINGS, Found
from balcap_jax.runs.folder import write_text_atomic

NUMBERS = "cells.csv"
_TIMES = ("before", "after")
_FACTS = ("claim", "setting", "seed", "code", "date", "seconds", "versions", "device")
_SCORES = tuple(
    f"{when}/{decoding}/{measure}"
    for when in _TIMES
    for decoding in DECODINGS
    for measure in MARGINS
)


def write_numbers(path: Path, found: Mapping[str, Mapping[str, Found]], *, code: str) -> None:
    """A row per claim, setting and seed; rows of claims without a cell in `found` stay."""
    rows = [*_rows(found, code)]
    told = {row["claim"] for row in rows}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["claim"] not in told]
    rows.sort(key=lambda row: (row["claim"], row["setting"], int(row["seed"])))
    text = io.StringIO()
    writer = csv.DictWriter(
        text, (*_FACTS, *_SCORES), restval="", extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())


def _rows(found: Mapping[str, Mapping[str, Found]], code: str) -> Iterator[dict[str, Any]]:
    for claim, settings in found.items():
        for setting, cells in settings.items():
            scores = {
                f"{when}/{decoding}/{measure}": getattr(cells, when)(measure, decoding)
                for when in _TIMES
                for decoding in DECODINGS
                for measure in MARGINS
            }
            for seed, result in cells.results.items():
                yield {
                    "claim": claim,
                    "setting": setting,
                    "seed": seed,
                    "code": code,
                    "date": result["date"],
                    "seconds": round(result["seconds"]),
                    "versions": " ".join(f"{n} {v}" for n, v in result["versions"].items()),
                    "device": result["device"],
                    **{name: f"{values[seed]:.6g}" for name, values in scores.items()},
                }
