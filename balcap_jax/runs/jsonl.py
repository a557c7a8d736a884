"""A file of JSON rows that grows while a run goes."""

from collections.abc import Mapping, Sequence
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.runs.folder import disk_errors, read_jsonl, to_json, write_jsonl_atomic
from balcap_jax.storage.paths import AnyPath, as_path, is_remote


class JsonlLog:
    """A JSONL file that grows by whole rows, each with its `step`, and survives kill -9.

    Raises:
      UserError: the file cannot be written, or holds rows of something else.
    """

    def __init__(self, path: str | AnyPath):
        self.path = as_path(path)
        self._remote = is_remote(self.path)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._remote and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            write_jsonl_atomic(self.path, self._read())  # drops the torn last row
        self._steps: list[int] | None = None  # of the rows, once they have been asked for
        self._open()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes all rows at once and flushes; to a bucket they go together every 30 s.

        Raises:
          UserError: the disk is full.
        """
        text = "".join(to_json(row) + "\n" for row in rows)
        with disk_errors(self.path):
            if self._remote:
                self._file.append(text)
            else:
                self._file.write(text)
                self._file.flush()
        if self._steps is not None:
            self._steps += [row["step"] for row in rows]

    def flush(self) -> None:
        """Every row is where a checkpoint may count on it.

        Raises:
          UserError: the bucket refuses; a local file has them already.
        """
        if self._remote:
            with disk_errors(self.path):
                self._file.flush()

    def rows_to(self, step: int) -> int:
        """How many rows the file holds of steps up to `step`."""
        if self._steps is None:
            self._steps = [row["step"] for row in self._read()]
        return sum(of_row <= step for of_row in self._steps)

    def truncate_to(self, step: int) -> None:
        """Removes the rows past `step`, as one atomic replacement of the file."""
        self.close()
        rows = self._read()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            write_jsonl_atomic(self.path, kept)
        self._steps = [row["step"] for row in kept]
        self._open()

    def close(self) -> None:
        """Closes the file; on a local disk every row is there already."""
        with disk_errors(self.path):
            self._file.close()

    def _read(self) -> list[dict]:
        rows = read_jsonl(self.path)
        for number, row in enumerate(rows, start=1):
            # bool is an int to Python.
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise UserError(
                    f"{self.path}, row {number} is no row of a run, which has a whole number as "
                    'its "step"; remove that line or restore the file.'
                )
        return rows

    def _open(self) -> None:
        with disk_errors(self.path):
            if self._remote:
                from balcap_jax.storage.appended import Appended  # noqa: PLC0415 - takes a second

                self._file: Any = Appended(self.path)
            else:
                self._file = self.path.open("a", encoding="utf-8")
