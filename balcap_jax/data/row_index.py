"""Where the rows of a large text file are, so that any of them is read without the others.

The files are read once, in pieces; what stays in memory are the offsets.
"""

import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int

from balcap_jax.data.json_text import duplicate_key
from balcap_jax.errors import UserError

_PIECE = 1 << 24  # bytes
_BOM = b"\xef\xbb\xbf"
# A value that is broken this many characters before the end of what was read is not just cut off.
_CUT_OFF = 1 << 20
_LONGEST_NUMBER = 400  # digits; none that fits a float is longer
_MARKS = tuple(" \t\r\n,:]}")  # behind a whole value


class RowIndex(NamedTuple):
    """The bytes from `starts[i]` to `stops[i]` are row i, which people call `numbers[i]`."""

    starts: Int[np.ndarray, " n"]
    stops: Int[np.ndarray, " n"]
    numbers: Int[np.ndarray, " n"]


class RowTexts:
    """The texts of the rows of a file, by index; many threads may read at once."""

    def __init__(self, path: Path, index: RowIndex):
        self.path, self.index = path, index
        self._file = open_file(path)
        weakref.finalize(self, self._file.close)  # no one else knows when the last row is read

    def __len__(self) -> int:
        return len(self.index.starts)

    def __getitem__(self, index: int) -> str:
        """The text of row `index`.

        Raises:
          UserError: it is not UTF-8, or the file cannot be read any more.
        """
        return _decoded(self.raw(index), self.path, offset=int(self.index.starts[index]))

    def raw(self, index: int) -> bytes:
        """The bytes of row `index`.

        Raises:
          UserError: the file cannot be read any more.
        """
        start, stop = int(self.index.starts[index]), int(self.index.stops[index])
        try:
            return os.pread(self._file.fileno(), stop - start, start)
        except OSError as error:
            raise _unreadable(self.path, error) from error


def open_file(path: Path) -> BinaryIO:
    """The file, to read bytes.

    Raises:
      UserError: it cannot be read, or is a pipe, in which nobody can go back.
    """
    if "\0" in str(path):
        raise UserError(
            f"The data file {str(path)!r} has a zero byte in its name, which no file has; "
            "check the path."
        )
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise UserError(
                f"The data file {path} is no regular file but a pipe or a device, and rows are "
                "read from it in any order; write it to a file first."
            )
        file = path.open("rb")
        file.peek(1)  # a folder can be opened on some systems and only not be read
    except OSError as error:
        raise _unreadable(path, error) from error
    return file


def head(path: Path, size: int = 1 << 16) -> bytes:
    """The first `size` bytes, without byte order mark and leading white space.

    Raises:
      UserError: the file cannot be read.
    """
    with open_file(path) as file:
        return file.read(size).removeprefix(_BOM).lstrip()


def index_lines(path: Path, *, each: Callable[[bytes], None] | None = None) -> RowIndex:
    """The lines of a file that are not blank; numbers count from 1 and include the blank ones.

    Args:
      each: is given all bytes of the file, as whole lines of which many come at once.

    Raises:
      UserError: the file cannot be read.
    """
    starts, stops, numbers = [], [], []
    with open_file(path) as file:
        offset = len(_BOM) if file.peek(len(_BOM)).startswith(_BOM) else 0
        file.seek(offset)
        number, rest = 1, b""
        while piece := file.read(_PIECE):
            data = rest + piece
            ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
            begins = np.concatenate([[0], ends + 1])
            rest = data[begins[-1] :]
            if each is not None:
                each(data[: begins[-1]])
            _keep_full(data, begins[:-1], ends, offset, number, (starts, stops, numbers))
            offset += int(begins[-1])
            number += len(ends)
        if each is not None:
            each(rest)
        _keep_full(rest, np.array([0]), np.array([len(rest)]), offset, number,
                   (starts, stops, numbers))  # fmt: skip
    return RowIndex(np.concatenate(starts), np.concatenate(stops), np.concatenate(numbers))


def _keep_full(
    data: bytes,
    begins: Int[np.ndarray, " n"],
    ends: Int[np.ndarray, " n"],
    offset: int,
    number: int,
    kept: tuple[list, list, list],
) -> None:
    """Adds the lines of `data` that hold something, as places in the file, to `kept`."""
    filled = begins < ends
    # Only a line that does not begin as a row does can be blank: the others are not looked at.
    first = np.frombuffer(data, np.uint8)[begins[filled]]
    doubtful = np.flatnonzero(filled)[first != ord("{")]
    filled[doubtful] = [bool(data[begins[i] : ends[i]].strip()) for i in doubtful]
    starts, stops, numbers = kept
    starts.append(begins[filled] + offset)
    stops.append(ends[filled] + offset)
    numbers.append(np.flatnonzero(filled) + number)


class Item(NamedTuple):
    """A value in a JSON file: an element of an array or an entry of the outermost object.

    Attributes:
      key: the outermost key it stands under; None in an outermost array.
      start, stop: its bytes in the file.
      twice: a key that an object in it has twice; None if none has.
    """

    key: str | None
    start: int
    stop: int
    value: Any
    twice: str | None = None


def json_items(path: Path) -> Iterator[Item]:
    """The elements of the array that the file is, or of the arrays in the object that it is.

    One piece of the file is in memory at a time. Entries of the object that are no arrays come as
    they are.

    Raises:
      UserError: the file cannot be read, is not JSON, or its outermost object has a key twice.
    """
    with open_file(path) as file:
        keys: set[str] = set()
        reader = _Reader(path, file)
        if reader.take("["):
            yield from reader.elements(None)
        elif reader.take("{"):
            while not reader.take("}"):
                key = reader.value().value
                if not isinstance(key, str):
                    raise reader.error("a name is missing")
                if key in keys:
                    raise reader.error(f"it has {json.dumps(key)} twice")
                keys.add(key)
                reader.expect(":")
                if reader.take("["):
                    yield from reader.elements(key)
                else:
                    yield reader.value()._replace(key=key)
                if not reader.take(","):
                    reader.expect("}")
                    break
        else:
            raise reader.error("it begins with neither [ nor {")


class _Reader:
    """Reads JSON from a window that moves over the file.

    Bytes are taken for Latin-1 characters, so that places in the text are places in the file; the
    marks of JSON are ASCII, which no other character of UTF-8 contains. Values with characters
    beyond ASCII are then decoded as what they are.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.twice: str | None = None
        self.decode = json.JSONDecoder(object_pairs_hook=self._object).raw_decode
        self.window, self.offset, self.at, self.ended = "", 0, 0, False
        if file.peek(len(_BOM)).startswith(_BOM):
            self.offset = file.seek(len(_BOM))

    def elements(self, key: str | None) -> Iterator[Item]:
        """The values up to the end of an array, whose bracket has been taken."""
        if self.take("]"):
            return
        while True:
            yield self.value()._replace(key=key)
            if not self.take(","):
                self.expect("]")
                return

    def value(self) -> Item:
        self._skip_space()
        while True:
            self.twice = None
            try:
                value, end = self.decode(self.window, self.at)
                # A number at the end of the window may go on behind it ("1" of "1.5e3").
                behind = self.window[end : end + _LONGEST_NUMBER]
                if self.ended or behind[:1] in _MARKS or len(behind) == _LONGEST_NUMBER:
                    break
            except RecursionError as error:
                raise self.error("it is nested too deeply") from error
            except json.JSONDecodeError as error:
                if self.ended or len(self.window) - error.pos > _CUT_OFF:
                    self.at = error.pos
                    raise self.error(error.msg) from error
            except ValueError as error:  # a number of more digits than Python reads
                raise self.error(str(error)) from error
            self._read_on()
        start, stop = self.offset + self.at, self.offset + end
        raw = self.window[self.at : end]
        if not raw.isascii():
            value = json.loads(_decoded(raw.encode("latin-1"), self.path, offset=start))
        self.at = end
        return Item(None, start, stop, value, self.twice)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            self.twice = duplicate_key(pairs)
        return values

    def take(self, mark: str) -> bool:
        """Whether `mark` comes next; it is passed over."""
        self._skip_space()
        found = self.window.startswith(mark, self.at)
        self.at += len(mark) if found else 0
        return found

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise self.error(f"{mark} is missing")

    def error(self, reason: str) -> UserError:
        return UserError(
            f"The data file {self.path} is not JSON ({reason} at byte {self.offset + self.at}); "
            "give a whole file, or one JSON object per line as .jsonl."
        )

    def _skip_space(self) -> None:
        while True:
            while self.at < len(self.window) and self.window[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.window) or self.ended:
                return
            self._read_on()

    def _read_on(self) -> None:
        piece = self.file.read(_PIECE)
        self.ended = not piece
        self.window = self.window[self.at :] + piece.decode("latin-1")
        self.offset += self.at
        self.at = 0


def row_index(starts: array, stops: array, numbers: array) -> RowIndex:
    """The index of rows that were found one by one; all three are of type code "q"."""
    return RowIndex(*(np.frombuffer(part, np.int64) for part in (starts, stops, numbers)))


def _decoded(data: bytes, path: Path, *, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"The data file {path} is not UTF-8 text ({error.reason} at byte "
            f"{offset + error.start}); give a .jsonl or .json file in UTF-8."
        ) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"The data file {path} cannot be read ({error.strerror}); check the path and its "
        "permissions."
    )
