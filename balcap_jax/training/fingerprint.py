"""What data a run sees, in a few numbers that a resumed run is compared with."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image, Resampling
from PIL.ImageFile import ImageFile

from balcap_jax.config.sections import DataConfig
from balcap_jax.data.examples import Example, Source
from balcap_jax.data.images import ImageLike, Part
from balcap_jax.data.photos import Photos
from balcap_jax.data.rows import Row
from balcap_jax.data.tar_files import is_tars, shards_of
from balcap_jax.data.tfds_folders import find_folder
from balcap_jax.errors import UserError
from balcap_jax.runs.contents import pieces
from balcap_jax.storage.local import fetched

INVALID = "invalid rows"
UNSIZED = "rows without sizes of images"
_OF_FILE = ("bytes of data.path", "content of data.path")
ROWS = 5_000  # of more rows, as many are looked at, evenly spread; the file is, as a whole
MEMORY_ROWS = 2_000  # the same for rows in memory, which may be decoded to be looked at
SIZED = 500  # rows of which the heads of images are read, evenly spread
_WHOLE = 1 << 30  # bytes; of a larger file pieces are read, evenly spread
_PIECES = 512
_SAMPLE = 4096  # bytes of an image in memory
_SIDE = 32  # pixels of one that is decoded


def fingerprint(
    data: DataConfig,
    source: Source,
    heldout: Sequence[Example],
    *,
    in_memory: bool = False,
    without: Collection[int] = (),
    unsized: Collection[int] = (),
) -> dict[str, Any]:
    """Names and sizes of the data's files, and numbers of rows with digests of their ids and texts.

    Images on the disk are not opened, but for the heads of some where their sizes decide which
    photos share a batch. A million rows take seconds.

    Args:
      in_memory: the training rows are, and not in the file of the settings.
      without: places of training rows to pass over: those that were invalid and are fixed since.
      unsized: the same of images whose sizes could not be read.
    """
    facts: dict[str, Any] = {"training rows": len(source)}
    if isinstance(source, Photos):
        for name in ("heldout_path", "boxes") if in_memory else ("path", "heldout_path", "boxes"):
            facts |= _files(f"data.{name}", getattr(data, name))
        most = MEMORY_ROWS if in_memory else ROWS
        places = [place for place in _spread(len(source), most) if place not in without]
        rows = {place: _row(source, place) for place in places}
        facts[INVALID] = [*without, *(place for place, row in rows.items() if row is None)]
        good = [row for row in rows.values() if row is not None]
        facts["ids of training rows"] = _digest(row.id for row in good)
        facts["texts of training rows"] = _digest(map(_text, good))
        facts["images of training rows"] = _digest(
            _image(image, decoded=source.verified) for row in good for image in row.all_images
        )
        if data.group_by_length:
            passed = {*without, *unsized}
            some = [place for place in _spread(len(source), SIZED) if place not in passed]
            sizes = {place: source.image_sizes(place) for place in some}
            facts[UNSIZED] = [*unsized, *(place for place in some if not sizes[place])]
            facts["sizes of training images"] = _digest(str(s) for s in sizes.values() if s)
    else:  # generated: other programs would give other texts
        places = _spread(min(len(source), 1 << 16), 4)
        facts["texts of training rows"] = _digest(_text(source[place]) for place in places)
    facts["held-out rows"] = len(heldout)
    facts["ids of held-out rows"] = _digest(example.id for example in heldout)
    facts["texts of held-out rows"] = _digest(map(_text, heldout))
    facts["sizes of held-out images"] = _digest(str(example.image.size) for example in heldout)
    return facts


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, each as "training rows (100 -> 120)"; a digest is not shown."""
    # Where rows were fixed, the file is another one; that the other rows are not is seen by them.
    fixed = bool(then.get(INVALID))
    return [
        f"{name} ({then.get(name)} -> {now.get(name)})"
        if isinstance(then.get(name, 0), int) and isinstance(now.get(name, 0), int)
        else name
        for name in {**then, **now}
        if then.get(name) != now.get(name)
        and name not in (INVALID, UNSIZED)
        and not (fixed and name.startswith(_OF_FILE))
    ]


def _row(source: Photos, place: int) -> Row | None:
    """The row, None where it is invalid, which stops a run only when its turn comes."""
    try:
        return source.row(place)
    except UserError:
        return None


def _files(setting: str, value: str) -> dict[str, Any]:
    """Bytes and content of a file; of the files of a folder their names and bytes."""
    if is_tars(value):
        listed = (f"{shard.path.name} {shard.size}" for shard in shards_of(value))
        return {f"names and bytes of the shards of {setting}": _digest(listed)}
    path = fetched(value)
    if value and path.is_file():
        size = path.stat().st_size
        return {
            f"bytes of {setting} {path.name}": size,
            f"content of {setting} {path.name}": _content(path),
        }
    if value and path.is_dir():
        folder = find_folder(path) or path
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        listed = (f"{p.relative_to(folder)} {p.stat().st_size}" for p in files)
        return {f"bytes of {setting}, or names of its files": _digest(listed)}
    return {}


def _content(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for piece in pieces(path, most=_PIECES, whole=_WHOLE):
        digest.update(piece)
    return digest.hexdigest()


def _spread(count: int, most: int) -> list[int]:
    """Places from 0 to below `count`, all or `most` of them."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64).tolist()


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _text(row: Row | Example) -> str:
    parts = (row.prompt, row.reference, row.references, row.boxes, row.units)
    turns = [[list(turn) for turn in row.turns]] if row.turns else []
    asked = [["questions", *map(list, row.questions)]] if row.questions else []
    return json.dumps(
        [*parts, *map(dict, row.messages), *turns, *asked, dict(row.columns)], default=_kind
    )


def _kind(value: Any) -> str:
    """For what JSON cannot hold: its address must not count."""
    return type(value).__name__


def _pixels(image: Image) -> str:
    """A digest of a few pixels of an image in memory."""
    small = image.resize((_SIDE, _SIDE), Resampling.NEAREST)
    return hashlib.blake2b(small.tobytes(), digest_size=12).hexdigest()


def _image(image: ImageLike, *, decoded: bool) -> str:
    """An image as far as it costs nothing: the name of a file, a part of what is in memory.

    Args:
      decoded: those in memory have been decoded once; others are not where they are of a file, and
        whether somebody else has done so must not count.
    """
    if isinstance(image, bytes):
        part = image[:: max(1, len(image) // _SAMPLE)]
        return f"{len(image)} {hashlib.blake2b(part, digest_size=12).hexdigest()}"
    if isinstance(image, np.ndarray):
        flat = image.reshape(-1)
        part = np.ascontiguousarray(flat[:: max(1, flat.size // _SAMPLE)]).tobytes()
        return f"{image.shape} {hashlib.blake2b(part, digest_size=12).hexdigest()}"
    if isinstance(image, Image):
        named = f"{image.size} {image.mode}"
        shows = 0 not in image.size and (decoded or not isinstance(image, ImageFile))
        return f"{named} {_pixels(image)}" if shows else named
    return image.name if isinstance(image, Part) else Path(image).name
