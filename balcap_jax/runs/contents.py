"""What a file holds, for digests that must not take long: large files are read here and there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

PIECE = 1 << 20  # bytes


def pieces(path: Path, *, most: int, whole: int | None = None) -> Iterator[bytes]:
    """A file in pieces of `PIECE` bytes, or of a large one `most` of these, evenly spread.

    Args:
      whole: bytes up to which a file is read whole; default: `most` pieces.

    Raises:
      OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size <= (most * PIECE if whole is None else whole):
        starts = range(0, size, PIECE)
    else:
        starts = map(int, np.linspace(0, size - PIECE, most).astype(np.int64))
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            yield file.read(PIECE)
