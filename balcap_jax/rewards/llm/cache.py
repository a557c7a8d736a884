"""Answers that were paid for, kept in SQLite and found again by what was asked.

The key is a hash of all that the answer depends on, so entries never go stale and runs share them.
Every answer is committed when it comes: kill -9 loses none.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from balcap_jax.errors import UserError

_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,
  part TEXT NOT NULL,
  model TEXT NOT NULL,
  version TEXT NOT NULL,
  answer TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  made TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITHOUT ROWID
"""
_BUSY_SECONDS = 60  # several runs write to one file, each for less than a millisecond


def digest_of(image: Image.Image) -> str:
    """A hash of the pixels, whatever file or encoder they come from."""
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()


def key_of(**asked: Any) -> str:
    """The key of an answer: a hash of everything it depends on, given by name."""
    text = json.dumps(asked, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """The answers in the file `path`; used by one thread, shared by any number of processes.

    Raises:
      UserError: from every method, when the file cannot be used.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            # Write-ahead: readers never wait for a writer, and a commit is one append. A crash of
            # the machine, unlike one of the process, may lose the last of them.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_TABLE)

    def get(self, key: str) -> str | None:
        """The answer under `key`."""
        with self._errors():
            row = self._database.execute(
                "SELECT answer FROM answers WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else row[0]

    def put(
        self,
        key: str,
        answer: str,
        *,
        part: str,
        model: str,
        version: str,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> None:
        """Keeps a usable answer; the first one under a key stays."""
        row = (key, part, model, version, answer, prompt_tokens, completion_tokens)
        with self._errors():
            self._database.execute(
                "INSERT OR IGNORE INTO answers "
                "(key, part, model, version, answer, prompt_tokens, completion_tokens) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def __len__(self) -> int:
        with self._errors():
            return self._database.execute("SELECT count(*) FROM answers").fetchone()[0]

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"judge.cache={self.path} cannot be used ({error}); free space, fix its "
                "permissions, or name another file with --judge.cache."
            ) from None
