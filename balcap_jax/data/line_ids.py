"""Ids that come twice in a JSONL file, found without parsing its rows.

Whatever looks like an id is hashed as the file is read; only rows whose hash has come before are
parsed, to see whether they have one id.
"""

import json
import re
from array import array
from typing import Any

import numpy as np

from balcap_jax.data.json_text import read_json
from balcap_jax.data.row_index import RowTexts

# An id as a text or a number; those of objects within a row are found, too.
_ID = re.compile(rb'"id"\s*:\s*(?:"((?:[^"\\]|\\.)*)"|([^",}\]\s]+))')


class LineIds:
    """Hashes of the ids in the lines that `read` is given, 8 bytes each.

    Args:
      stem: rows without an id are called by it and their line, as in "photos-000012".
    """

    def __init__(self, stem: str) -> None:
        self._stem = f"{stem}-"
        self._hashes = array("q")
        self._lines: set[int] = set()  # that ids of other rows are called by

    def read(self, lines: bytes) -> None:
        """Takes the ids of whole lines."""
        tokens = _tokens(lines)
        self._hashes.extend(map(hash, tokens))
        stem = self._stem.encode("utf-8", "replace")
        if stem in lines:
            named = (token[len(stem) :] for token in tokens if token.startswith(stem))
            self._lines.update(int(rest) for rest in named if rest.isdigit() and len(rest) < 19)

    def twice(self, texts: RowTexts) -> tuple[str, int, int] | None:
        """(id, one line, another one) of the first id that comes twice; None if none does."""
        sorted_ = np.sort(np.frombuffer(self._hashes, np.int64)) if self._hashes else np.zeros(0)
        repeated = set(sorted_[1:][sorted_[1:] == sorted_[:-1]].tolist())
        if not repeated and not self._lines:
            return None
        seen: dict[str, int] = {}
        stem = self._stem.encode("utf-8", "replace")
        for index, number in enumerate(texts.index.numbers.tolist()):
            line = texts.raw(index)
            tokens = _tokens(line)
            suspect = number in self._lines or not repeated.isdisjoint(map(hash, tokens))
            if not suspect and not any(token.startswith(stem) for token in tokens):
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
            return f"{self._stem}{number:06d}"
        return str(given) if isinstance(given, str | int) else None


def _tokens(lines: bytes) -> list[bytes]:
    return [
        _unescaped(text) if b"\\" in text else text or number for text, number in _ID.findall(lines)
    ]


def _unescaped(text: bytes) -> bytes:
    try:
        return json.loads(b'"' + text + b'"').encode("utf-8", "surrogatepass")
    except ValueError:
        return text
