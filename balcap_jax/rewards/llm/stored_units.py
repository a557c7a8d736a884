"""Reference units stored beside the data: one row per image, found by its id.

The file grows by whole rows and is read where it is needed: a million images cost an index of
places, not their units.
"""

import hashlib
import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.questions import VERSION
from balcap_jax.runs import safe_json
from balcap_jax.runs.folder import disk_errors, to_json
from balcap_jax.storage.local import fetched
from balcap_jax.storage.paths import AnyPath, as_path

_log = logging.getLogger(__name__)


def units_file(data: str | AnyPath) -> Any:
    """Where the units of a data file are."""
    return as_path(f"{data}.units.jsonl")


def units_path(data: str | AnyPath) -> Path:
    """`units_file` to read on this machine."""
    return fetched(units_file(data))


class StoredUnits:
    """The units in the file `path`, which need not exist yet.

    Attributes:
      repeated: rows that say again what one above them has said.
      outdated: rows that were made with prompts of another version; they are not used. Rows that
        name no version were written by people, and are.
      models: that made the rows which are used; people name none.

    Raises:
      UserError: the file cannot be read, a whole line is no row of units, or two rows have other
        units of one reference: which are meant?
    """

    def __init__(self, path: Path):
        self.path = path
        self.repeated = self.outdated = 0
        self.models: set[str] = set()
        self._places: dict[str, int] = {}  # of each reference: byte where its row begins
        self._end = 0  # of the last whole row
        if not path.exists():
            return
        with disk_errors(path), path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # torn by kill -9
                row = self._row(line, f"{path} line {number}")
                if row.get("prompts", VERSION) == VERSION:
                    first = self._places.setdefault(_key(row["id"], row["reference"]), self._end)
                    if first != self._end:
                        self._check_same(row, number, first)
                    if isinstance(row.get("model"), str):
                        self.models.add(row["model"])
                else:
                    self.outdated += 1
                self._end += len(line)
        if self.outdated:
            _log.warning(
                "%s: %d rows of units were made with prompts of another version than %s and are "
                "not used, because units of two versions cannot be compared; make them anew with "
                "`balcap data units`",
                path,
                self.outdated,
                VERSION,
            )
        if self.repeated:
            _log.warning(
                "%s: %d rows stand there twice, which changes nothing", path, self.repeated
            )

    def __len__(self) -> int:
        return len(self._places)

    def has(self, id_: str, reference: str) -> bool:
        """Whether there are units of this example's reference as it is now."""
        return self._find(id_, reference) is not None

    def get(self, example: Example) -> tuple[str, ...] | None:
        """The units of the example's reference; None where they are not stored, or were made of
        another reference.
        """
        row = self._find(example.id, example.reference)
        return None if row is None else tuple(row["units"])

    def _find(self, id_: str, reference: str) -> dict | None:
        place = self._places.get(_key(id_, reference_digest(reference)))
        return None if place is None else self._row_at(place)

    def _row_at(self, place: int) -> dict:
        with disk_errors(self.path), self.path.open("rb") as file:
            file.seek(place)
            return self._row(file.readline(), str(self.path))

    def _check_same(self, row: dict, number: int, place: int) -> None:
        """Refuses the row in line `number` whose units are not those of the one at `place`."""
        if row["units"] != self._row_at(place)["units"]:
            with disk_errors(self.path), self.path.open("rb") as file:
                first = file.read(place).count(b"\n") + 1
            raise UserError(
                f"{self.path} lines {first} and {number} have other units of one reference, of the "
                f"id {row['id']!r}, and one would take the place of the other; remove one of them."
            )
        self.repeated += 1

    def add(self, example: Example, units: Sequence[str], *, model: str) -> None:
        """Appends the units of one example, if its reference has none; what stood torn at the end
        of the file is cut off.

        Raises:
          UserError: the disk is full.
        """
        reference = reference_digest(example.reference)
        if (key := _key(example.id, reference)) in self._places:
            return
        row = {
            "id": example.id,
            "units": list(units),
            "reference": reference,
            "model": model,
            "prompts": VERSION,
        }
        line = (to_json(row) + "\n").encode()
        with disk_errors(self.path), self.path.open("ab") as file:
            file.truncate(self._end)
            file.write(line)
        self._places[key] = self._end
        self._end += len(line)

    @staticmethod
    def _row(line: bytes, where: str) -> dict:
        try:
            row = safe_json.loads(line, unique=True)
            if not isinstance(row["id"], str) or not isinstance(row["reference"], str):
                raise TypeError
            units = row["units"]
            if not isinstance(units, list) or not all(
                isinstance(unit, str) and unit.strip() for unit in units
            ):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{where} is no row of reference units; remove the line and run "
                "`balcap data units` again."
            ) from None
        return row


def _key(id_: str, digest: str) -> str:
    """One text for both: a million of them are in memory."""
    return f"{digest} {id_}"


def reference_digest(reference: str) -> str:
    """What tells references apart in what is stored of them."""
    text = unicodedata.normalize("NFC", reference)  # one spelling of a letter
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
