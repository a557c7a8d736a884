"""Paths in buckets: etils' paths over gcsfs, whose errors are those of a disk."""

import errno
import functools
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import fsspec
import gcsfs  # noqa: F401 - registers gs://, and tells early that it is missing
from etils.epath.backend import _FileSystemSpecBackend
from etils.epath.gpath import PosixGPath
from etils.epath.stat_utils import StatResult

from balcap_jax.storage.refusals import as_disk_error

_PIECE = 1 << 24  # bytes


# It writes a page for each error that it raises, and we say one sentence.
logging.getLogger("gcsfs").addFilter(lambda _: False)


@functools.cache
def filesystem() -> fsspec.AbstractFileSystem:
    """The client of all paths. It caches no listing: other hosts write there as well."""
    return fsspec.filesystem("gs", use_listings_cache=False, skip_instance_cache=True)


def _told(method: Callable) -> Callable:
    """`method` of something with a path, which raises OSError alone."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            raise as_disk_error(error, str(self)) from error

    return call


class _Backend(_FileSystemSpecBackend):
    def fs(self, path: Any) -> fsspec.AbstractFileSystem:
        return filesystem()


_BACKEND = _Backend()


class _Stat(StatResult):
    @property
    def st_size(self) -> int:
        return self.length


class BucketPath(PosixGPath):
    """An object, or what has its name and a slash as a prefix, which is taken for a folder.

    Folders need not be made and are gone with their last object. A write is whole or not there; it
    never needs another name first. Methods raise OSError, with its reason in `strerror`.
    """

    @property
    def _backend(self) -> Any:
        return _BACKEND

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.parts[2]

    @property
    def key(self) -> str:
        """Name within the bucket."""
        return "/".join(self.parts[3:])

    def absolute(self) -> "BucketPath":
        """The path itself, as all are absolute."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":  # noqa: FBT001, FBT002 - pathlib's
        """The path itself: there are no links."""
        return self

    expanduser = absolute

    @_told
    def _info(self) -> dict[str, Any] | None:
        try:
            return filesystem().info(str(self))
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Whether there is such an object or folder."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether it is an object."""
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        """Whether objects lie below it."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_symlink(self) -> bool:
        """There are none."""
        return False

    @_told
    def has_bucket(self) -> bool:
        """Whether its bucket exists; asks for nothing but to list it."""
        try:
            filesystem().call(
                "GET", "b/{}/o", self.bucket, prefix=self.key, maxResults=1, json_out=True
            )
        except FileNotFoundError:
            return False
        return True

    @_told
    def iterdir(self) -> Iterator["BucketPath"]:
        """Objects and folders directly below; none where there is nothing."""
        try:
            names = filesystem().ls(str(self), detail=False)
        except FileNotFoundError:
            names = []
        own = f"{self.bucket}/{self.key}".rstrip("/")
        return iter([self / os.path.basename(n) for n in names if n.rstrip("/") != own])

    @_told
    def files_below(self) -> dict[str, dict[str, Any]]:
        """What the store says of each object below, by its name after this path."""
        found = filesystem().find(str(self), detail=True)
        start = len(f"{self.bucket}/{self.key}".rstrip("/")) + 1
        return {name[start:]: info for name, info in found.items() if name[start:]}

    @_told
    def stat(self) -> "_Stat":
        """Of the object, as etils has it, with the size under the name that pathlib has, too."""
        found = self._backend.stat(str(self))
        return _Stat(**{field.name: getattr(found, field.name) for field in fields(found)})

    @_told
    def info(self) -> dict[str, Any]:
        """What the store says of the object: "size" in bytes, "generation"."""
        return filesystem().info(str(self))

    def mkdir(self, mode: Any = None, parents: bool = False, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Nothing: folders are there with their first object, and buckets are never made."""

    def touch(self) -> None:
        """Makes an empty object."""
        self.write_bytes(b"")

    @_told
    def read_bytes(self) -> bytes:
        """The object."""
        return filesystem().cat_file(str(self))

    @_told
    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop` of the object."""
        return filesystem().cat_file(str(self), start=start, end=stop)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The object as UTF-8."""
        return self.read_bytes().decode("utf-8", errors or "strict")

    def open(self, mode: str = "r", **_: Any) -> Any:  # type: ignore[override]
        """The object as a file to read, in pieces of 16 MB; bytes or UTF-8."""
        if mode not in ("r", "rb", "rt"):
            reason = (
                "this command writes its files bit by bit, which a bucket cannot; give a folder"
            )
            raise OSError(errno.ENOTSUP, reason, str(self))
        file = io.BufferedReader(_Ranges(self), buffer_size=_PIECE)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding="utf-8")

    @_told
    def write_bytes(self, data: bytes) -> None:
        """Replaces the object."""
        filesystem().pipe_file(str(self), data)

    def write_text(self, text: str, encoding: str | None = None) -> None:
        """Replaces the object by UTF-8."""
        self.write_bytes(text.encode())

    @_told
    def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - pathlib's
        """Removes the object."""
        try:
            filesystem().rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    @_told
    def rmtree(self, missing_ok: bool = True) -> None:  # noqa: FBT001, FBT002 - etils'
        """Removes all below."""
        try:
            filesystem().rm(str(self), recursive=True)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @_told
    def copy_to(self, other: "BucketPath") -> None:
        """Copies the object within the store."""
        filesystem().cp_file(str(self), str(other))

    @_told
    def upload(self, local: str | os.PathLike) -> None:
        """Replaces the object by a file of this machine."""
        filesystem().put_file(os.fspath(local), str(self))

    @_told
    def download(self, local: str | os.PathLike) -> None:
        """Writes the object to a file of this machine."""
        filesystem().get_file(str(self), os.fspath(local))


class _Ranges(io.RawIOBase):
    """An object as a file, each read of which is a request."""

    def __init__(self, path: BucketPath):
        self._path, self._size, self._at = path, path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._path.read_range(self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@_told
def _cat(paths: Sequence[str]) -> dict[str, bytes]:
    return filesystem().cat(paths, on_error="raise")


def read_all(paths: Sequence[BucketPath]) -> list[bytes]:
    """The objects, many at a time."""
    if not paths:
        return []
    names = [f"{path.bucket}/{path.key}" for path in paths]
    found = _cat([f"gs://{name}" for name in names])
    return [found[name] if name in found else found[f"gs://{name}"] for name in names]
