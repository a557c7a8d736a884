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
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.storage.paths import AnyPath, as_path, is_remote

LOCK_FILE = ".lock"
_PARTIAL = ".partial"
SUMMARY = "summary.json"


def run_folder(out: str | AnyPath, name: str) -> AnyPath:
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
    folder = as_path(out) / name
    _check_bucket(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be made ({error.strerror}); "
            "choose a folder that you can write to with --out."
        ) from error
    # A lock and empty logs are what a start that was killed at once leaves behind.
    if any(entry.name != LOCK_FILE and not _is_empty(entry) for entry in folder.iterdir()):
        raise UserError(
            f"The folder {folder} already holds a run, which is never overwritten; "
            f"continue it with --resume {folder} or choose another --name."
        )
    return folder


@contextmanager
def new_run(out: str | AnyPath, name: str) -> Iterator[AnyPath]:
    """`run_folder` for a start: gone again where that fails before the folder holds a config.json.

    Raises:
      UserError: see `run_folder`.
    """
    whole = as_path(out) / name
    if is_remote(whole):  # folders of a bucket are gone with their last object
        yield run_folder(out, name)
        return
    missing = [path for path in (whole, *whole.parents) if not path.exists()]
    folder = run_folder(out, name)
    try:
        yield folder
    finally:
        if folder in missing and not (folder / "config.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            for parent in missing[1:]:  # made for it alone
                with suppress(OSError):
                    parent.rmdir()


def existing_run(folder: str | AnyPath, *, needs: str = "checkpoints") -> AnyPath:
    """The folder of a run to resume or to report on.

    Args:
      needs: the file or folder that makes it one for the caller.

    Raises:
      UserError: there is no such folder, or it is not a run.
    """
    folder = as_path(folder)
    _check_bucket(folder)
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

    The lock is the kernel's (flock), so it ends with its process, kill -9 included; in a bucket it
    is a lease, see `Lease`.

    Raises:
      UserError: another process holds it.
    """

    def __init__(self, folder: str | AnyPath):
        path = as_path(folder) / LOCK_FILE
        self._lease: Any = None
        if is_remote(path):
            from balcap_jax.runs.progress import announce  # noqa: PLC0415 - reads settings
            from balcap_jax.storage.lease import Lease  # noqa: PLC0415 - takes a second

            with disk_errors(path):
                self._lease = Lease(path, told=announce)
            return
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
        if self._lease is not None:
            self._lease.close()
        else:
            self._file.close()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@contextmanager
def written_beside(folder: str | AnyPath) -> Iterator[AnyPath]:
    """A new folder for what becomes `folder` when it is whole; gone at the end, unless renamed.

    While it is written the process holds the kernel's lock on it, which ends with the process: so
    `remove_half_written` knows what is left of killed ones, whatever their numbers.

    Raises:
      OSError: it cannot be made.
    """
    folder = as_path(folder)
    if is_remote(folder):
        with tempfile.TemporaryDirectory(prefix="balcap-") as local:
            beside = Path(local) / folder.name
            beside.mkdir()
            yield beside
        return
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


def remove_half_written(folder: str | AnyPath, name: str | None = None) -> None:
    """Removes from `folder` what processes that were killed while they wrote have left there; what
    a living one writes stays.

    Args:
      name: of what was to become of it; default: anything.
    """
    if is_remote(folder := as_path(folder)):  # what is written beside a bucket's is local
        return
    pattern = "*" if name is None else glob.escape(name)
    for path in folder.glob(f".{pattern}.*{_PARTIAL}"):
        with suppress(OSError):  # held by its writer, or gone
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)


@contextmanager
def disk_errors(path: str | AnyPath) -> Iterator[None]:
    """Turns an operating system's refusal to write `path` into one sentence for the user."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error


def cannot_write(path: str | AnyPath, reason: str) -> UserError:
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
    if isinstance(value, PurePath):
        return str(value)
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON (no NaN), on one line unless `indent` is given."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def write_text_atomic(path: str | AnyPath, text: str) -> None:
    """Writes `path` so that any reader, also after kill -9, finds the old file or the new one.

    Raises:
      UserError: the disk is full or refuses; the old file is untouched.
    """
    path = as_path(path)
    if is_remote(path):  # objects are whole or not there
        with disk_errors(path):
            path.write_text(text, encoding="utf-8")
        return
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


def write_json_atomic(path: str | AnyPath, value: Any) -> None:
    """`write_text_atomic` of indented JSON; NaN is written as null."""
    write_text_atomic(path, to_json(value, indent=2) + "\n")


def write_jsonl_atomic(path: str | AnyPath, rows: Iterable[dict]) -> None:
    """`write_text_atomic` of one JSON object per line."""
    write_text_atomic(path, "".join(to_json(row) + "\n" for row in rows))


def replace_folder(beside: AnyPath, folder: AnyPath, *, last: str) -> None:
    """Makes `beside`, of `written_beside`, the folder that does not exist yet or is empty.

    Args:
      last: the file without which it is none: in a bucket it comes when all else is there.

    Raises:
      OSError: the disk or the bucket refuses.
    """
    if not is_remote(folder):
        os.replace(beside, folder)
        return
    from balcap_jax.storage.local import send_folder  # noqa: PLC0415

    send_folder(beside, folder, last=last)


def _is_empty(path: AnyPath) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _check_bucket(folder: AnyPath) -> None:
    """Raises a UserError where the bucket of a folder does not exist or cannot be asked."""
    if not is_remote(folder):
        return
    try:
        found = folder.has_bucket()  # type: ignore[attr-defined]
    except OSError as error:
        raise UserError(f"{folder} cannot be used: {error.strerror}.") from error
    if not found:
        raise UserError(
            f"There is no bucket gs://{folder.bucket} for {folder}; make it with `gcloud storage "  # type: ignore[attr-defined]
            f"buckets create gs://{folder.bucket}`, or fix the name."  # type: ignore[attr-defined]
        )


@contextmanager
def _opened(path: AnyPath) -> Iterator[Iterable[str]]:
    """The lines of a file with their ends; in a bucket with what was appended to it."""
    if is_remote(path):
        from balcap_jax.storage.appended import joined  # noqa: PLC0415

        yield io.StringIO(joined(path).decode("utf-8", "replace"), newline="\n")
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        yield file


def read_jsonl(path: str | AnyPath) -> list[Any]:
    """The rows of a JSONL file, of any kind; a last line without its newline is dropped.

    Raises:
      UserError: another line is not JSON.
    """
    rows = []
    with disk_errors(path), _opened(as_path(path)) as file:
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
