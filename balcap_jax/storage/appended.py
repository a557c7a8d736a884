"""A file of lines that grows in a bucket, where nothing can be appended to.

`metrics.jsonl` is an object with the lines up to some moment; what came later is in objects
`metrics.jsonl.parts/<number of lines before it>`, one per interval. Who reads joins them. A part
that begins before the end of the whole is already in it, and one behind a gap is of a run that has
gone back since: both are passed over, so that a process may be killed between any two writes.
"""

import re
import time

from balcap_jax.storage.bucket import BucketPath, read_all

_NAME = re.compile(r"\d{12}")


class Appended:
    """The lines of `path`; made empty where it does not exist.

    Args:
      every: seconds between objects.

    Raises:
      OSError: here and in all methods, the bucket refuses.
    """

    def __init__(self, path: BucketPath, *, every: float = 30.0):
        self.path, self._every = path, every
        self._waiting: list[str] = []
        if not path.exists():
            path.write_bytes(b"")
        self._lines = joined(path).count(b"\n")  # in the bucket
        self._sent = time.monotonic()

    def append(self, text: str) -> None:
        """Adds whole lines, which are sent when it is time."""
        self._waiting.append(text)
        if time.monotonic() - self._sent >= self._every:
            self.flush()

    def flush(self) -> None:
        """Sends what waits."""
        self._sent = time.monotonic()
        if not self._waiting:
            return
        text = "".join(self._waiting)
        (_folder(self.path) / f"{self._lines:012d}").write_text(text)
        self._waiting = []  # not before: a failed part is sent with the next
        self._lines += text.count("\n")

    def replace(self, text: str) -> None:
        """Makes these the lines, and drops what waits."""
        self.path.write_text(text)
        _folder(self.path).rmtree()
        self._waiting, self._lines = [], text.count("\n")

    def close(self) -> None:
        """Joins all in one object."""
        self.flush()
        if _parts(self.path):
            self.replace(joined(self.path).decode("utf-8", "replace"))


def joined(path: BucketPath) -> bytes:
    """All lines of `path`.

    Raises:
      OSError: there is no such file, or the bucket refuses.
    """
    whole = path.read_bytes()
    lines, found = whole.count(b"\n"), [whole]
    parts = [part for part in _parts(path) if int(part.name) >= lines]
    for part, text in zip(parts, read_all(parts), strict=True):
        if int(part.name) != lines:
            break
        found.append(text)
        lines += text.count(b"\n")
    return b"".join(found)


def _folder(path: BucketPath) -> BucketPath:
    return path.with_name(f"{path.name}.parts")


def _parts(path: BucketPath) -> list[BucketPath]:
    return sorted(part for part in _folder(path).iterdir() if _NAME.fullmatch(part.name))
