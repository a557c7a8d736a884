"""Files of a bucket for libraries that know only the local disk, and the other way round."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.storage.paths import AnyPath, as_path, is_remote

CACHE = "BALCAP_CACHE_DIR"  # --cache-dir
_AT_ONCE = 8  # files that are sent or fetched


def cache_folder() -> AnyPath:
    """Where copies of what buckets hold are kept: --cache-dir, or in the user's folder for caches.

    Raises:
      UserError: it cannot be made.
    """
    given = os.environ.get(CACHE)
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(given) if given else Path(caches) / "balcap_jax" / "buckets"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} for copies from buckets cannot be made ({error.strerror}); give "
            "another with --cache-dir."
        ) from error
    return folder


def fetched(path: str | os.PathLike) -> AnyPath:
    """A file or folder as the local disk has it: of a bucket a copy, made once for each version of
    it on this machine. What does not exist stays as it is, for the caller to find.

    Raises:
      UserError: it cannot be fetched.
    """
    found: Any = as_path(path)
    if not is_remote(found):
        return found
    try:
        is_file = found.is_file()
        if is_file:
            files = {found.name: found.info()}
            wanted = {found.name: found}
        else:
            files = found.files_below()
            wanted = {name: found / name for name in files if not name.endswith("/")}
        if not files:
            return found
        digest = hashlib.sha256(str(found).encode())
        for name in sorted(files):
            told = files[name]
            digest.update(f"\0{name} {told.get('size')} {told.get('generation')}".encode())
        whole = cache_folder() / digest.hexdigest()[:20]
        folder = whole if is_file else whole / found.name
        place = folder / found.name if is_file else folder
        if not whole.exists():
            with _one_at_a_time(whole):
                if not whole.exists():
                    _fetch(wanted, whole, folder)
        return place
    except OSError as error:
        raise UserError(
            f"{found} cannot be fetched to {cache_folder()} ({error.strerror or error}); fix the "
            "permissions or free space, or give another folder with --cache-dir."
        ) from error


def _fetch(wanted: dict[str, Any], whole: AnyPath, folder: AnyPath) -> None:
    """Fetches objects by their local names; `whole` appears when all are there."""
    beside = whole.with_name(f".{whole.name}.{uuid.uuid4().hex[:8]}")
    inside = beside / folder.relative_to(whole)
    try:
        for name in wanted:
            _check_inside(name)
            (inside / name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda name: wanted[name].download(inside / name), wanted))
        beside.rename(whole)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def _one_at_a_time(whole: AnyPath) -> Iterator[None]:
    """The processes of this machine fetch a thing once; the lock ends with its process."""
    with whole.with_name(f".{whole.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_inside(name: str) -> None:
    if ".." in name.split("/") or name.startswith("/"):
        raise UserError(
            f"The bucket holds an object {name!r}, whose name leads out of its folder; rename it."
        )


@contextmanager
def written_locally(path: AnyPath) -> Iterator[AnyPath]:
    """A file of the local disk to write; of a bucket it is sent there at the end, unless the block
    raises.

    Raises:
      OSError: the bucket refuses.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        yield local
        path.upload(local)  # type: ignore[attr-defined]


@contextmanager
def edited_locally(path: AnyPath, *, every: float = 60.0) -> Iterator[AnyPath]:
    """A file of the local disk to append whole lines to; of a bucket with what it holds, locked
    there, and sent there every minute and at the end, however the block ends. Mistakes name the
    file of the bucket.

    Raises:
      UserError: another process writes it, or the block raises one.
      OSError: the bucket refuses.
    """
    if not is_remote(path):
        yield path
        return
    found: Any = path
    with (
        _locked_there(found),
        tempfile.TemporaryDirectory(prefix="balcap-") as folder,
    ):
        local = Path(folder) / found.name
        if found.is_file():
            found.download(local)
        sent = -1

        def send() -> None:
            nonlocal sent
            if local.exists():
                text = local.read_bytes()
                if len(text) != sent:
                    found.write_bytes(text[: text.rfind(b"\n") + 1])
                    sent = len(text)

        with (
            _sent_now_and_then(send, every=every, at_end=send),
            _named(found, instead_of=local),
        ):
            yield local


@contextmanager
def edited_folder(path: AnyPath, *, every: float = 60.0) -> Iterator[AnyPath]:
    """A folder of the local disk; of a bucket one with the files that are there, locked there. What
    changes is sent every minute and at the end, however the block ends, and what is removed goes at
    the end; hidden files stay here. Mistakes name the folder of the bucket.

    Raises:
      UserError: another process writes it, or the block raises one.
      OSError: the bucket refuses.
    """
    if not is_remote(path):
        yield path
        return
    found: Any = path
    with _locked_there(found), closing(Mirror(found, every=every)) as mirror:
        mirror.fetch()

        def end() -> None:
            mirror.sync(now=True)
            mirror.remove_gone()

        with (
            _sent_now_and_then(mirror.sync, every=every, at_end=end),
            _named(found, instead_of=mirror.local),
        ):
            yield mirror.local


@contextmanager
def _locked_there(found: Any) -> Iterator[None]:
    """The lease beside a file or folder of a bucket.

    Raises:
      UserError: another process holds it.
    """
    from balcap_jax.storage.lease import Lease  # noqa: PLC0415 - takes a second

    with closing(Lease(found.with_name(f".{found.name}.lock"), what=str(found))):
        yield


@contextmanager
def _sent_now_and_then(
    send: Callable[[], None], *, every: float, at_end: Callable[[], None]
) -> Iterator[None]:
    """`send` every so many seconds beside the block; `at_end` after it, however it ends."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(every):
            with suppress(OSError):  # told at the end, where it lasts
                send()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        at_end()


@contextmanager
def _named(found: Any, *, instead_of: AnyPath) -> Iterator[None]:
    """Mistakes in the block name what people know."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(instead_of), str(found))) from error


def send_folder(local: AnyPath, folder: Any, *, last: str = "") -> None:
    """Sends the files of a local folder to one of a bucket.

    Args:
      last: name of the file without which the folder is none; sent when all others are there.

    Raises:
      OSError: the bucket refuses.
    """
    files = [path for path in sorted(local.rglob("*")) if path.is_file()]
    names = {str(path.relative_to(local)): path for path in files}
    end = names.pop(last, None)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(lambda name: (folder / name).upload(names[name]), names))
    if end is not None:
        (folder / last).upload(end)


class Mirror:
    """A folder for libraries that append to files: of a bucket a local one, whose files are sent
    there now and then.

    Attributes:
      local: what to write to.
    """

    def __init__(self, folder: AnyPath, *, every: float = 60.0):
        self._folder, self._every = folder, every
        self._temporary: tempfile.TemporaryDirectory | None = None
        self.local = folder
        if is_remote(folder):
            self._temporary = tempfile.TemporaryDirectory(prefix="balcap-")
            self.local = Path(self._temporary.name) / folder.name
            self.local.mkdir()
        self._sent: dict[AnyPath, tuple[int, int]] = {}
        self._last = time.monotonic()

    def fetch(self) -> None:
        """Fills `local` with what is in the bucket.

        Raises:
          OSError: the bucket refuses.
        """
        folder: Any = self._folder
        names = [n for n in folder.files_below() if not n.endswith("/")]
        for name in names:
            _check_inside(name)
            (self.local / name).parent.mkdir(parents=True, exist_ok=True)  # type: ignore[attr-defined]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda name: (folder / name).download(self.local / name), names))
        self._sent = {path: _state(path) for path in self._files()}

    def remove_gone(self) -> None:
        """Removes from the bucket what was sent or fetched and is no longer here.

        Raises:
          OSError: the bucket refuses.
        """
        here = {*self._files()}
        for path in [path for path in self._sent if path not in here]:
            self._there(path).unlink(missing_ok=True)
            del self._sent[path]

    def _files(self) -> list[AnyPath]:
        """Of the local folder, but for hidden ones: locks, and what is written beside a file."""
        found = sorted(self.local.rglob("*"))  # type: ignore[attr-defined]
        return [path for path in found if path.is_file() and not path.name.startswith(".")]

    def _there(self, path: AnyPath) -> Any:
        return self._folder / str(path.relative_to(self.local))

    def sync(self, *, now: bool = False) -> None:
        """Sends what has changed, where it is time.

        Raises:
          OSError: the bucket refuses.
        """
        if self._temporary is None or (not now and time.monotonic() - self._last < self._every):
            return
        self._last = time.monotonic()
        for path in self._files():
            state = _state(path)
            if self._sent.get(path) != state:
                self._there(path).upload(path)
                self._sent[path] = state

    def close(self) -> None:
        """Sends the rest; twice is fine.

        Raises:
          OSError: the bucket refuses.
        """
        if self._temporary is None:
            return
        try:
            self.sync(now=True)
        finally:
            temporary, self._temporary = self._temporary, None
            temporary.cleanup()


def _state(path: Any) -> tuple[int, int]:
    """By which a change of a file is seen."""
    told = path.stat()
    return told.st_size, told.st_mtime_ns
