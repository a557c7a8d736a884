"""Files of rubrics: one JSON object per line, found by the id of its image.

    {"id": "photos/1.jpg", "criteria": [{"text": "Says that the car is red.", "severity": 3}]}

A criterion has a `severity`, RubiCap's 3 (critical), 2 (important) or 1 (minor), which is its
weight, or a `weight` of its own, any number of at least 0. `reference`, the digest of the image's
reference, guards against data that have another image under an id. What else a row holds is for
people: the starting caption, the captions of the teachers, who wrote it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.stored_units import reference_digest
from balcap_jax.rewards.rivals.rubrics import Criterion, Rubric
from balcap_jax.runs import safe_json
from balcap_jax.runs.folder import disk_errors
from balcap_jax.storage.local import fetched
from balcap_jax.storage.paths import AnyPath, as_path

SEVERITIES = (1, 2, 3)
_ROW = '{"id": ..., "criteria": [{"text": ..., "severity": 3}]}'


def rubrics_file(data: str | AnyPath) -> Any:
    """Where the rubrics of a data file are."""
    return as_path(f"{data}.rubrics.jsonl")


def rubrics_path(data: str | AnyPath) -> Path:
    """`rubrics_file` to read on this machine."""
    return fetched(rubrics_file(data))


class RubricFile:
    """The rubrics of a file.

    Raises:
      UserError: the file cannot be read, holds no rubric or two of one image, or a row breaks the
        form.
    """

    def __init__(self, path: Path):
        self.path = path
        self._rubrics: dict[str, Rubric] = {}
        lines: dict[str, int] = {}
        with disk_errors(path), path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path} line {number}"
                rubric = rubric_of(_row(line, where), where=where)
                if (first := lines.setdefault(rubric.id, number)) != number:
                    raise UserError(
                        f"{path} has two rubrics of the image {rubric.id!r}, in the lines {first} "
                        f"and {number}; remove one of them."
                    )
                self._rubrics[rubric.id] = rubric
        if not self._rubrics:
            raise UserError(f"{path} holds no rubric; write them with `balcap data rubrics`.")

    def get(self, example: Example) -> Rubric:
        """The rubric of an image.

        Raises:
          UserError: there is none, or it was written of another image that had this id.
        """
        rubric = self._rubrics.get(example.id)
        if rubric is None:
            raise UserError(
                f"{self.path} has no rubric of the image {example.id!r}; write those of the data "
                "with `balcap data rubrics`, or leave the image out."
            )
        if rubric.reference and rubric.reference != reference_digest(example.reference):
            raise UserError(
                f"{self.path} has a rubric of the id {example.id!r} that was written of an image "
                "with another reference than the data have now; write it again with `balcap data "
                'rubrics`, or take "reference" out of its row if the image is the same.'
            )
        return rubric


def rubric_of(row: Mapping[str, Any], *, where: str) -> Rubric:
    """The rubric in a row.

    Args:
      where: the file with its line, for messages.

    Raises:
      UserError: the row breaks the form, or its weights are all 0.
    """
    id_, listed = row.get("id"), row.get("criteria")
    if not isinstance(id_, str) or not id_ or not isinstance(listed, list):
        raise UserError(f"{where} is no rubric; write it like {_ROW}.")
    criteria = tuple(_criterion(item, where=where) for item in listed)
    if criteria and not any(criterion.weight for criterion in criteria):
        raise UserError(
            f"{where} has a rubric of {id_!r} whose weights are all 0, and no caption could earn "
            "anything; give one criterion a weight, or an empty list of criteria."
        )
    if len({criterion.text for criterion in criteria}) < len(criteria):
        raise UserError(
            f"{where} has a rubric of {id_!r} with one criterion twice; remove one of the two."
        )
    reference = row.get("reference", "")
    if not isinstance(reference, str):
        raise UserError(f'{where} has a "reference" that is no text; take it out of the row.')
    return Rubric(id_, criteria, reference)


def _row(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = safe_json.loads(line, unique=True)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{where} is no rubric; write it like {_ROW}.")
    return row


def _criterion(item: Any, *, where: str) -> Criterion:
    text = item.get("text") if isinstance(item, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} has a criterion without a text; write the row like {_ROW}.")
    if ("severity" in item) == ("weight" in item):
        raise UserError(
            f"{where} has the criterion {text!r:.60}, which must have a severity or a weight, one "
            'of them; write "severity": 3.'
        )
    if "severity" in item:
        level = item["severity"]
        if type(level) is not int or level not in SEVERITIES:
            raise UserError(
                f"{where} has a criterion with severity={level!r:.20}, which must be 1, 2 or 3; "
                "change it, or give it a weight of your own."
            )
        return Criterion(text, float(level))
    weight = item["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not _usable(weight):
        raise UserError(
            f"{where} has a criterion with weight={weight!r:.20}, which must be a number of at "
            "least 0; change it."
        )
    return Criterion(text, float(weight))


def _usable(weight: float) -> bool:
    try:
        return math.isfinite(float(weight)) and weight >= 0
    except OverflowError:  # a whole number of 400 digits
        return False
