"""What data a run sees, in a few numbers that a resumed run is compared with."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from balcap_jax.config.sections import DataConfig
from balcap_jax.data.examples import Example, Source
from balcap_jax.data.photos import Photos
from balcap_jax.data.rows import Row

ROWS = 20_000  # of more rows, as many are looked at, evenly spread
MEMORY_ROWS = 2_000  # the same for rows in memory, which may be decoded to be looked at
_WHOLE = 1 << 30  # bytes; of a larger file pieces are read, evenly spread
_PIECE, _PIECES = 1 << 20, 512
_SAMPLE = 4096  # bytes of an image in memory


def fingerprint(
    data: DataConfig, source: Source, heldout: Sequence[Example], *, in_memory: bool
) -> dict[str, Any]:
    """Names and sizes of the data's files, and numbers of rows with digests of their ids and texts.

    Images on the disk are not opened. A million rows take seconds.
    """
    photos = isinstance(source, Photos)
    facts: dict[str, Any] = {}
    for name in ("path", "heldout_path", "boxes"):
        facts |= _files(f"data.{name}", getattr(data, name))
    facts["training rows"] = len(source)
    if photos:
        most = MEMORY_ROWS if in_memory else ROWS
        rows = [source.row(int(i)) for i in _spread(len(source), most)]
        facts["ids of training rows"] = _digest(row.id for row in rows)
        facts["texts of training rows"] = _digest(map(_text, rows))
        facts["images of training rows"] = _digest(map(_image, rows))
    else:
        facts["texts of training rows"] = _digest(
            _text(source[int(i)]) for i in _spread(min(len(source), 1 << 16), 8)
        )
    facts["held-out rows"] = len(heldout)
    facts["ids of held-out rows"] = _digest(example.id for example in heldout)
    facts["texts of held-out rows"] = _digest(map(_text, heldout))
    facts["sizes of held-out images"] = _digest(str(example.image.size) for example in heldout)
    return facts


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, each as "training rows (100 -> 120)"; a digest is not shown."""
    return [
        f"{name} ({then.get(name)} -> {now.get(name)})"
        if isinstance(then.get(name, 0), int) and isinstance(now.get(name, 0), int)
        else name
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]


def _files(setting: str, value: str) -> dict[str, Any]:
    """Bytes and content of a file; of the files of a folder their names and bytes."""
    path = Path(value)
    if value and path.is_file():
        size = path.stat().st_size
        return {
            f"bytes of {setting} ({path.name})": size,
            f"content of {setting} ({path.name})": _content(path, size),
        }
    if value and path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        listed = (f"{p.relative_to(path)} {p.stat().st_size}" for p in files)
        return {
            f"files of {setting}": len(files),
            f"their names and bytes, {setting}": _digest(listed),
        }
    return {}


def _content(path: Path, size: int) -> str:
    digest = hashlib.blake2b(digest_size=12)
    with path.open("rb") as file:
        if size <= _WHOLE:
            while piece := file.read(_PIECE):
                digest.update(piece)
        else:
            for start in np.linspace(0, size - _PIECE, _PIECES).astype(np.int64):
                file.seek(int(start))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _spread(count: int, most: int) -> Iterator[int]:
    return iter(range(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64))


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _text(row: Row | Example) -> str:
    parts = (row.prompt, row.reference, row.references, row.boxes, row.units, row.messages)
    return repr(tuple(map(_plain, parts)))


def _plain(value: Any) -> Any:
    return (
        [dict(item) if hasattr(item, "keys") else item for item in value]
        if isinstance(value, tuple)
        else value
    )


def _image(row: Row) -> str:
    """An image as far as it costs nothing: the name of a file, a part of what is in memory."""
    image = row.image
    if isinstance(image, bytes):
        part = image[:: max(1, len(image) // _SAMPLE)]
        return f"{len(image)} {hashlib.blake2b(part, digest_size=12).hexdigest()}"
    if isinstance(image, np.ndarray):
        flat = image.reshape(-1)
        part = np.ascontiguousarray(flat[:: max(1, flat.size // _SAMPLE)]).tobytes()
        return f"{image.shape} {hashlib.blake2b(part, digest_size=12).hexdigest()}"
    if isinstance(image, Image):
        return f"{image.size} {image.mode}"
    return Path(image).name
