"""Files that a command appends whole rows to, held by one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from balcap_jax.errors import UserError
from balcap_jax.runs.folder import disk_errors


@contextmanager
def appended(path: Path, *, what: str) -> Iterator[BinaryIO]:
    """`path`, to read and to append to, made if it is not there; the lock is the kernel's and ends
    with its process.

    Args:
      what: how the command calls the file, such as "OUTPUT".

    Raises:
      UserError: it cannot be written, is no regular file, or another process holds it.
    """
    if path.exists() and not path.is_file():
        raise UserError(
            f"{path} is no regular file, and rows are appended to it; give another {what}."
        )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        lock(file, path, what=what)
        yield file


def lock(file: BinaryIO, path: Path, *, what: str) -> None:
    """Takes the lock of an open file.

    Raises:
      UserError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path} is being written by another process, and only one may; wait for it or give "
            f"another {what}."
        ) from None
