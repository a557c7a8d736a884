"""What cells are compared by: numbers of held-out captions, and how much of a difference counts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The smallest difference that anyone would care for: an interval within it on both sides is equal.
MARGINS = {
    "b_capscore": 1.0,
    "precision": 1.0,
    "recall": 1.0,
    "linguistic": 1.0,
    "qa_utility": 0.02,
    "words": 2.0,
    "rho": 0.05,
    "commentary": 1.0,
    "invented": 0.25,
    "assertions": 0.5,
    "rho_low": 2.0,
    "rho_high": 2.0,
}
LABELS = {
    "b_capscore": "b-CapScore",
    "qa_utility": "questions answered, share",
    "commentary": "commentary, % of statements",
    "invented": "false statements a caption",
    "assertions": "statements a caption",
    "rho_low": "captions with rho < 0.5, %",
    "rho_high": "captions with rho > 2, %",
}
LOW, HIGH = 0.5, 2.0


def label_of(measure: str) -> str:
    """For tables and axes."""
    return LABELS.get(measure, measure)


def measures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers beside the scores of an evaluation, of its `caption_row`s.

    Returns:
      `assertions` and `invented` (pointable and false), mean numbers per caption; `commentary`, the
      share of assertions that point at nothing, in %; `rho_low` and `rho_high`, shares of captions
      below half and above twice their reference's length, in %. NaN where there is nothing to
      average.
    """
    judged = [row["verdict"]["assertions"] for row in rows if row["verdict"] is not None]
    flat = [assertion for of_caption in judged for assertion in of_caption]
    rhos = np.array([row["rho"] for row in rows])
    invented = sum(a["pointable"] and not a["verified"] for a in flat)
    return {
        "assertions": _share(len(flat), len(judged)),
        "invented": _share(invented, len(judged)),
        "commentary": 100 * _share(sum(not a["pointable"] for a in flat), len(flat)),
        "rho_low": 100 * _share(int((rhos < LOW).sum()), len(rhos)),
        "rho_high": 100 * _share(int((rhos > HIGH).sum()), len(rhos)),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
