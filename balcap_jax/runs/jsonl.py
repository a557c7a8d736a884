"""A file of JSON rows that grows while a run goes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balcap_jax.runs.folder import disk_errors, read_jsonl, to_json, write_jsonl_atomic


class JsonlLog:
    """A JSONL file that grows by whole rows, each with its `step`, and survives kill -9."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(read_jsonl(self.path))  # drops the torn last row
        self._open()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes all rows at once and flushes.

        Raises:
          UserError: the disk is full.
        """
        with disk_errors(self.path):
            self._file.write("".join(to_json(row) + "\n" for row in rows))
            self._file.flush()

    def truncate_to(self, step: int) -> None:
        """Removes the rows past `step`, as one atomic replacement of the file."""
        self._file.close()
        rows = read_jsonl(self.path)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            self._rewrite(kept)
        self._open()

    def close(self) -> None:
        """Closes the file; every row is on disk already."""
        self._file.close()

    def _rewrite(self, rows: Sequence[dict]) -> None:
        write_jsonl_atomic(self.path, rows)

    def _open(self) -> None:
        with disk_errors(self.path):
            self._file = self.path.open("a", encoding="utf-8")
