"""What a folder of cells holds, by claim, setting and seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from balcap_jax.errors import UserError
from balcap_jax.evidence.claims import Claim
from balcap_jax.evidence.files import CELLS, EVIDENCE, RESULT, read_json

GREEDY = "greedy/"
DECODINGS = ("sampled", "greedy")
WINDOW = 5  # steps whose mean is one point of a curve


class Found(NamedTuple):
    """The cells of one setting of a claim.

    Attributes:
      results: by seed, what result.json says.
      missing: seeds without a result.
    """

    results: dict[int, dict[str, Any]]
    missing: tuple[int, ...]

    def after(self, measure: str, decoding: str) -> dict[int, float]:
        """A number of the trained policy by seed; NaN where a cell does not have it."""
        name = f"{GREEDY}{measure}" if decoding == "greedy" else measure
        return {
            seed: _number(result["scores"]["after"].get(name))
            for seed, result in self.results.items()
        }

    def before(self, measure: str, decoding: str) -> dict[int, float]:
        """The same of the policy that they start from."""
        name = f"{GREEDY}{measure}" if decoding == "greedy" else measure
        return {
            seed: _number(result["scores"]["before"].get(name))
            for seed, result in self.results.items()
        }

    def curve(self, name: str) -> Float[np.ndarray, "s w"]:
        """A series of training, a row per seed, means over `WINDOW` steps; short runs decide how
        many there are. Without cells it is empty.
        """
        rows = [
            [_number(value) for value in result["series"][name]]
            for result in self.results.values()
            if name in result["series"]
        ]
        whole = min((len(row) // WINDOW for row in rows), default=0)
        cut = np.array([row[: whole * WINDOW] for row in rows], np.float64)
        return cut.reshape(len(rows), whole, WINDOW).mean(axis=-1)


def read_folder(
    out: Path, claims: Sequence[Claim], *, seeds: int
) -> tuple[str, dict[str, dict[str, Found]]]:
    """(the code that computed the cells, what there is by claim and setting).

    Raises:
      UserError: it is no folder of `balcap reproduce`.
    """
    record = out / EVIDENCE
    if not record.exists():
        raise UserError(
            f"{out} is no folder of `balcap reproduce`, because it has no {EVIDENCE}; give the "
            "--out of one."
        )
    code = read_json(record)["code"]
    found = {}
    for claim in claims:
        found[claim.name] = {
            name: _found(out, claim, name, seeds=seeds, code=code) for name in claim.settings
        }
    return code, found


def _found(out: Path, claim: Claim, name: str, *, seeds: int, code: str) -> Found:
    most = claim.settings[name].seeds
    results, missing = {}, []
    for seed in range(seeds if most is None else min(seeds, most)):
        path = out / CELLS / claim.cell(name, seed).key(code) / RESULT
        if path.exists():
            results[seed] = read_json(path)
        else:
            missing.append(seed)
    return Found(results, tuple(missing))


def facts_of(found: Mapping[str, Found]) -> dict[str, Any]:
    """Of all cells of a claim, each counted once: how many, their seconds, dates and versions."""
    cells = {
        (result["cell"]["kind"], str(sorted(result["cell"]["settings"].items()))): result
        for of_setting in found.values()
        for result in of_setting.results.values()
    }
    results = list(cells.values())
    return {
        "cells": len(results),
        "seconds": sum(result["seconds"] for result in results),
        "dates": sorted({result["date"] for result in results}),
        "versions": sorted(
            {", ".join(f"{n} {v}" for n, v in result["versions"].items()) for result in results}
        ),
        "devices": sorted({f"{r['device']}, {r['cores']} cores a cell" for r in results}),
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
