"""A run's folder on disk: made once, locked while written, every file whole or absent.

Layout of `runs/<name>/`; each file is written by the room named beside it:

    checkpoints/             checkpoint.Checkpoints
    metrics.jsonl            logs.MetricsLog, one row per step
    samples.jsonl            logs.SampleLog, sampled captions with verdicts
    tensorboard/, wandb/     loggers, the same rows once more
    profile/                 trace.Trace, where steps are traced
    evaluation/*.jsonl       one row per held-out image, before and after
    summary.json             the before / after table
"""

import fcntl
import glob
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from balcap_jax.errors import UserError

LOCK_FILE = ".lock"
_PARTIAL = ".partial"
SUMMARY = "summary.json"


def run_folder(out: str | Path, name: str) -> Path:
    """Makes the folder of a new run, `out/name`.

    Raises:
      UserError: the name is not one folder name, the folder already holds something, or it cannot
        be made.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise UserError(
            f"The run name {name!r} must be a single folder name without '/'; "
            "choose another with --name and put the rest of the path into --out."
        )
    folder = Path(out) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be made ({error.strerror}); "
            "choose a folder that you can write to with --out."
        ) from error
    # A lock alone is what a start that failed at once leaves behind.
    if any(entry.name != LOCK_FILE for entry in folder.iterdir()):
        raise UserError(
            f"The folder {folder} already holds a run, which is never overwritten; "
            f"continue it with --resume {folder} or choose another --name."
        )
    return folder


@contextmanager
def new_run(out: str | Path, name: str) -> Iterator[Path]:
    """`run_folder` for a start: gone again where that fails before the folder holds a config.json.

    Raises:
      UserError: see `run_folder`.
    """
    missing = [
        path for path in (Path(out) / name, *(Path(out) / name).parents) if not path.exists()
    ]
    folder = run_folder(out, name)
    try:
        yield folder
    finally:
        if folder in missing and not (folder / "config.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            for parent in missing[1:]:  # made for it alone
                with suppress(OSError):
                    parent.rmdir()


def existing_run(folder: str | Path, *, needs: str = "checkpoints") -> Path:
    """The folder of a run to resume or to report on.

    Args:
      needs: the file or folder that makes it one for the caller.

    Raises:
      UserError: there is no such folder, or it is not a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a run, such as runs/<name>.")
    if not (folder / needs).exists():
        raise UserError(
            f"{folder} is not a run that can be used here, it has no {needs}; "
            "give the folder that `balcap train` printed, such as runs/<name>."
        )
    return folder


class RunLock:
    """Held by the one process that may write to a run.

    The lock is the kernel's (flock), so it ends with its process, kill -9 included.

    Raises:
      UserError: another process holds it.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / LOCK_FILE
        with disk_errors(path):
            self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise UserError(
                f"The run {folder} is being written by process {owner}, and only one process may; "
                "wait for it or stop it, or choose another --name."
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def close(self) -> None:
        """Gives the lock back; closing twice is fine."""
        self._file.close()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@contextmanager
def written_beside(folder: str | Path) -> Iterator[Path]:
    """A new folder for what becomes `folder` when it is whole; gone at the end, unless renamed.

    While it is written the process holds the kernel's lock on it, which ends with the process: so
    `remove_half_written` knows what is left of killed ones, whatever their numbers.

    Raises:
      OSError: it cannot be made.
    """
    folder = Path(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}{_PARTIAL}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        held = os.open(beside, os.O_RDONLY)
        try:
            with suppress(OSError):  # file systems without locks: nobody removes it there
                fcntl.flock(held, fcntl.LOCK_EX)
            yield beside
        finally:
            os.close(held)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_half_written(folder: str | Path, name: str | None = None) -> None:
    """Removes from `folder` what processes that were killed while they wrote have left there; what
    a living one writes stays.

    Args:
      name: of what was to become of it; default: anything.
    """
    pattern = "*" if name is None else glob.escape(name)
    for path in Path(folder).glob(f".{pattern}.*{_PARTIAL}"):
        with suppress(OSError):  # held by its writer, or gone
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turns an operating system's refusal to write `path` into one sentence for the user."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error


def cannot_write(path: str | Path, reason: str) -> UserError:
    """The error for a full disk, a missing permission and their like."""
    return UserError(
        f"Cannot write {path}: {reason}; what was saved before is intact, so free space or fix "
        "the permissions there, then give the same command again, that of a run with --resume."
    )


def plain(value: Any) -> Any:
    """`value` as JSON knows it: arrays become lists, NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and JAX arrays and scalars
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON (no NaN), on one line unless `indent` is given."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes `path` so that any reader, also after kill -9, finds the old file or the new one.

    Raises:
      UserError: the disk is full or refuses; the old file is untouched.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.new")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def write_json_atomic(path: str | Path, value: Any) -> None:
    """`write_text_atomic` of indented JSON; NaN is written as null."""
    write_text_atomic(path, to_json(value, indent=2) + "\n")


def write_jsonl_atomic(path: str | Path, rows: Iterable[dict]) -> None:
    """`write_text_atomic` of one JSON object per line."""
    write_text_atomic(path, "".join(to_json(row) + "\n" for row in rows))


def read_jsonl(path: str | Path) -> list[Any]:
    """The rows of a JSONL file, of any kind; a last line without its newline is dropped.

    Raises:
      UserError: another line is not JSON.
    """
    rows = []
    with (
        disk_errors(path),
        Path(path).open(encoding="utf-8", errors="replace", newline="\n") as file,
    ):
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:  # also a number of too many digits
                reason = getattr(error, "msg", "too deep or too long")
                raise UserError(
                    f"{path}, line {number} is not JSON ({reason}); "
                    "remove that line or restore the file."
                ) from error
    return rows
