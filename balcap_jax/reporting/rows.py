"""A judged caption as the files of a run and of `balcap score` hold it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from balcap_jax.rewards.verdicts import Assertion, Verdict


def caption_row(
    *,
    id: str,  # noqa: A002
    caption: str,
    reference: str,
    references: Sequence[str] = (),
    rewards: Mapping[str, float | np.floating],
    verdict: Verdict | None,
    units: Sequence[str],
    rho: float | np.floating,
    image: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One judged caption as samples.jsonl and evaluation/*.jsonl hold it.

    Args:
      reference: whose length is the unit of rho.
      references: all of a photo that has several; the units may come from any of them.
      rewards: per name, NaN (written as null) where there is no signal.
      verdict: None where the judge failed.
      units: the reference units, in the order of `verdict.covered`.
      image: path of its picture, relative to the run's folder.
      extra: what reward functions noted of it, by name.
    """
    return {
        "id": id,
        "caption": caption,
        "reference": reference,
        **({"references": list(references)} if references else {}),
        "rewards": {name: float(value) for name, value in rewards.items()},
        "verdict": None if verdict is None else _verdict_row(verdict, units),
        "words": len(caption.split()),
        "rho": float(rho),
        "image": image,
        **({"extra": dict(extra)} if extra else {}),
    }


def assertion_row(assertion: Assertion) -> dict[str, Any]:
    """An assertion as files hold it; its chance and weight only where precision is made of them."""
    row = {
        "text": assertion.text,
        "verified": assertion.verified,
        "pointable": assertion.pointable,
    }
    if assertion.chance is not None:
        row |= {"chance": assertion.chance, "weight": assertion.weight}
    return row


def _verdict_row(verdict: Verdict, units: Sequence[str]) -> dict[str, Any]:
    assert len(units) == len(verdict.covered), (len(units), len(verdict.covered))
    return {
        "assertions": [assertion_row(a) for a in verdict.assertions],
        "units": list(units),
        "covered": list(verdict.covered),
        **({"unit_weights": list(verdict.unit_weights)} if verdict.unit_weights else {}),
        "clarity": verdict.clarity,
        "fluency": verdict.fluency,
        "coherency": verdict.coherency,
    }
