"""Ids that come twice in a JSONL file, found without parsing its rows.

Whatever looks like an id is hashed as the file is read; only rows whose hash has come before are
parsed, to see whether they have one id.
"""

import re
from array import array
from typing import Any

import numpy as np

from balcap_jax.data.json_text import read_json
from balcap_jax.data.row_index import RowTexts

# The beginning of an id, a text or a number; those of objects within a row are found, too. One
# group and no alternatives: a million rows are searched in half a second.
_ID = re.compile(rb'"id"\s*:\s*"?([^",}\]\s]*)')


class LineIds:
    """Hashes of where the ids in the lines that `read` is given begin, 8 bytes each.

    Args:
      stem: rows without an id are called by it and their line, as in "photos-000012".
    """

    def __init__(self, stem: str) -> None:
        self._name = f"{stem}-"
        self._stem = self._name.encode("utf-8", "replace")
        self._hashes = array("q")
        self._lines: set[int] = set()  # that ids of other rows are called by
        self._escapes = False

    def read(self, lines: bytes) -> None:
        """Takes the ids of whole lines."""
        tokens = _ID.findall(lines)
        self._hashes.extend(map(hash, tokens))
        # What is written with escapes may be equal to what is not, and is not compared here.
        ids = b"\n".join(tokens)
        self._escapes |= b"\\" in ids
        if self._stem in ids:
            named = (t[len(self._stem) :] for t in tokens if t.startswith(self._stem))
            self._lines.update(int(rest) for rest in named if rest.isdigit() and len(rest) < 19)

    def twice(self, texts: RowTexts) -> tuple[str, int, int] | None:
        """(id, one line, another one) of the first id that comes twice; None if none does."""
        found = np.sort(np.frombuffer(self._hashes, np.int64)) if self._hashes else np.zeros(0)
        repeated = set(found[1:][found[1:] == found[:-1]].tolist())
        if not (repeated or self._lines or self._escapes):
            return None
        seen: dict[str, int] = {}
        for index, number in enumerate(texts.index.numbers.tolist()):
            line = texts.raw(index)
            tokens = _ID.findall(line)
            suspect = self._escapes or number in self._lines
            suspect = suspect or not repeated.isdisjoint(map(hash, tokens))
            if not suspect and not any(token.startswith(self._stem) for token in tokens):
                continue
            id_ = self._id(line, number)
            if id_ is not None and (first := seen.setdefault(id_, number)) != number:
                return id_, first, number
        return None

    def _id(self, line: bytes, number: int) -> str | None:
        """The id of a row; None for one that cannot be read, which is told elsewhere."""
        try:
            values: Any = read_json(line.decode("utf-8"))
        except ValueError:
            return None
        if not isinstance(values, dict):
            return None
        given = values.get("id")
        if given is None:
            return f"{self._name}{number:06d}"
        return str(given) if isinstance(given, str | int) else None
