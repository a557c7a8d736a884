"""Reference units stored beside the data: one row per image, found by its id.

The file grows by whole rows and is read where it is needed: a million images cost an index of
places, not their units.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.runs import safe_json
from balcap_jax.runs.folder import disk_errors, to_json


def units_path(data: str | Path) -> Path:
    """Where the units of a data file are."""
    return Path(f"{data}.units.jsonl")


class StoredUnits:
    """The units in the file `path`, which need not exist yet.

    Raises:
      UserError: the file cannot be read, or a whole line is no row of units.
    """

    def __init__(self, path: Path):
        self.path = path
        self._places: dict[str, int] = {}  # id -> byte where its last row begins
        self._end = 0  # of the last whole row
        if not path.exists():
            return
        with disk_errors(path), path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # torn by kill -9
                self._places[self._row(line, f"{path} line {number}")["id"]] = self._end
                self._end += len(line)

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
        if (place := self._places.get(id_)) is None:
            return None
        with disk_errors(self.path), self.path.open("rb") as file:
            file.seek(place)
            row = self._row(file.readline(), str(self.path))
        return row if row["reference"] == _digest(reference) else None

    def add(self, example: Example, units: Sequence[str], *, model: str, version: str) -> None:
        """Appends the units of one example; what stood torn at the end of the file is cut off.

        Raises:
          UserError: the disk is full.
        """
        row = {
            "id": example.id,
            "units": list(units),
            "reference": _digest(example.reference),
            "model": model,
            "prompts": version,
        }
        line = (to_json(row) + "\n").encode()
        with disk_errors(self.path), self.path.open("ab") as file:
            file.truncate(self._end)
            file.write(line)
        self._places[example.id] = self._end
        self._end += len(line)

    @staticmethod
    def _row(line: bytes, where: str) -> dict:
        try:
            row = safe_json.loads(line)
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


def _digest(reference: str) -> str:
    text = unicodedata.normalize("NFC", reference)  # one spelling of a letter
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
