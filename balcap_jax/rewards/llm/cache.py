"""Answers that were paid for, kept in SQLite and found again by what was asked.

The key is a hash of all that the answer depends on, so entries never go stale and runs share them.
Every answer is committed when it comes: kill -9 loses none. While another program locks the file,
answers wait in memory and nobody waits for the file.
"""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
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
_log = logging.getLogger(__name__)
# Several runs write to one file, each for less than a millisecond. The file is opened once; later
# all calls under way wait while this does.
_OPENING_SECONDS = 5.0
_BUSY_SECONDS = 0.25
_CLOSING_SECONDS = 2.0
_SAMPLE = 1000  # answers; keys are hashes, so the first ones are a sample of all


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

    Attributes:
      locked: whether another program had locked the file at the last use.

    Raises:
      UserError: from every method, when the file cannot be used.
    """

    def __init__(self, path: Path):
        self.path = path
        self._waiting: dict[str, tuple] = {}  # rows by key, until they are in the file
        self.locked = False
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path, timeout=_OPENING_SECONDS, isolation_level=None, check_same_thread=False
            )
            # Bytes: what others put there need be no text.
            self._database.text_factory = bytes
            # Write-ahead: readers never wait for a writer, and a commit is one append. A crash of
            # the machine, unlike one of the process, may lose the last of them.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_TABLE)
            self._wait_at_most(_BUSY_SECONDS)

    def get(self, key: str) -> str | None:
        """The answer under `key`; None for none, "" for something that is no text.

        While the file is locked for readers, too, there is none; see `locked`.
        """
        if key in self._waiting:
            return self._waiting[key][4]
        found: list[tuple] = []
        if not self._try(
            lambda: found.extend(
                self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,))
            )
        ):
            return None
        if not found:
            return None
        answer = found[0][0]
        try:
            return answer.decode() if isinstance(answer, bytes) else ""
        except UnicodeDecodeError:
            return ""

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
        replace: bool = False,
    ) -> None:
        """Keeps a usable answer; the first one under a key stays.

        Args:
          replace: what is there cannot be used, so this answer takes its place.
        """
        row = (key, part, model, version, answer, prompt_tokens, completion_tokens, replace)
        self._waiting[key] = row
        self._try(self._write)

    def _write(self) -> None:
        for key, row in list(self._waiting.items()):
            self._database.execute(
                f"INSERT OR {'REPLACE' if row[-1] else 'IGNORE'} INTO answers "
                "(key, part, model, version, answer, prompt_tokens, completion_tokens) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row[:-1],
            )
            del self._waiting[key]

    def versions(self) -> frozenset[str]:
        """The versions of the prompts of the answers, or of a thousand of them."""
        found: set[str] = set()
        self._try(
            lambda: found.update(
                row[0].decode(errors="replace") if isinstance(row[0], bytes) else str(row[0])
                for row in self._database.execute(f"SELECT version FROM answers LIMIT {_SAMPLE}")
            )
        )
        return frozenset(found)

    def __len__(self) -> int:
        with self._errors():
            return self._database.execute("SELECT count(*) FROM answers").fetchone()[0]

    def close(self) -> None:
        """Closes the file; twice is fine."""
        if self._waiting:
            self._wait_at_most(_CLOSING_SECONDS)
            self._try(self._write)
        if self._waiting:
            _log.warning(
                "judge.cache=%s was locked to the end: %d answers are not in it and will be asked "
                "for again",
                self.path,
                len(self._waiting),
            )
            self._waiting.clear()
        self._database.close()

    def _try(self, work: Callable[[], None]) -> bool:
        """Whether `work` was done, or found the file locked; who finds it so waits once."""
        with self._errors():
            try:
                work()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (
                    sqlite3.SQLITE_BUSY,
                    sqlite3.SQLITE_LOCKED,
                ):
                    raise
                if not self.locked:
                    self.locked = True
                    self._wait_at_most(0)
                    _log.warning(
                        "judge.cache=%s is locked by another program; answers are kept in memory "
                        "until it is free, those in it are asked for again",
                        self.path,
                    )
                return False
            if self.locked:
                self.locked = False
                self._wait_at_most(_BUSY_SECONDS)
        return True

    def _wait_at_most(self, seconds: float) -> None:
        self._database.execute(f"PRAGMA busy_timeout={round(seconds * 1000)}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"judge.cache={self.path} cannot be used ({error}); free space, fix its "
                "permissions, or name another file with --judge.cache."
            ) from None
