"""Captions and images in tar files as WebDataset has them, here or in a bucket:

    shard-{000..999}.tar      with  0001.jpg, 0001.json, 0002.jpg, 0002.txt, ...

The files of a sample have one name up to its first dot; `.json` holds what a row of a .jsonl file
does, `.txt` a caption alone. Each shard is read once: what it holds where, and its texts, are kept
on this machine. Then any image is one read of its bytes, and a row costs none.
"""

import hashlib
import io
import tarfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from balcap_jax.data import rows
from balcap_jax.data.caption_files import json_object
from balcap_jax.data.images import Part
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.errors import UserError
from balcap_jax.storage.local import cache_folder
from balcap_jax.storage.paths import as_path, is_remote

SUFFIX = ".tar"
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "avif", "jp2")
_TEXTS = ("json", "txt")
_AT_ONCE = 8  # shards that are read
_VERSION = 2  # of the files that say what shards hold


class Shard(NamedTuple):
    """A tar file.

    Attributes:
      version: of its content, as far as listing tells.
    """

    path: Any
    size: int
    version: str


class _Index(NamedTuple):
    """Where the samples of a shard are: their images in it, their texts in the file beside this."""

    keys: np.ndarray  # [n] of bytes
    images: np.ndarray  # [n, 2] int64, first byte and the one behind the last
    texts: np.ndarray  # [n, 2] int64
    is_json: np.ndarray  # [n] bool
    incomplete: int


def is_tars(path: str) -> bool:
    """Whether a setting names tar files."""
    return path.endswith(SUFFIX)


def shards_of(path: str) -> list[Shard]:
    """The tar files that a path with braces means, in their order.

    Raises:
      UserError: there is none, or one is missing.
    """
    import braceexpand  # noqa: PLC0415

    try:
        names = list(braceexpand.braceexpand(path))
    except braceexpand.UnbalancedBracesError as error:
        raise UserError(
            f"data.path={path!r} has a brace without its other one; write shard-{{000..999}}.tar."
        ) from error
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(_shard, names))


def _shard(name: str) -> Shard:
    path = as_path(name)
    try:
        if is_remote(path):
            told = path.info()
            return Shard(path, int(told["size"]), str(told.get("generation", told.get("etag"))))
        found = path.stat()
    except FileNotFoundError as error:
        raise UserError(
            f"The shard {name} does not exist; upload it, or correct the numbers in the braces of "
            "--data.path."
        ) from error
    except OSError as error:
        raise UserError(
            f"The shard {name} cannot be read ({error.strerror}); check the path and its "
            "permissions."
        ) from error
    return Shard(path, found.st_size, str(found.st_mtime_ns))


class TarRows(Sequence[Row]):
    """The samples with an image and a text, those of the first shard first.

    Attributes:
      incomplete: how many lack one of them, and are passed over.
    """

    def __init__(self, path: str):
        """
        Raises:
          UserError: a shard is missing or no tar file, or there is no sample.
        """
        self.path, self.shards = path, shards_of(path)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = list(threads.map(_index_of, self.shards))
        self._texts, self._indices = [path for path, _ in found], [index for _, index in found]
        self._ends = np.cumsum([len(index.keys) for index in self._indices])
        self.incomplete = sum(index.incomplete for index in self._indices)
        if not len(self):
            raise UserError(
                f"{path} has no sample of an image and a .json or .txt of the same name "
                f"({self.incomplete} lack one of them); give tar files as WebDataset writes them."
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Sample `index`.

        Raises:
          BadRowError: its text is not that of a row.
          UserError: the shard cannot be read any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        found, shard = self._indices[number], self.shards[number]
        at = index - (int(self._ends[number]) - len(found.keys))
        key = found.keys[at].decode("utf-8", "replace")
        where = f"{shard.path}, {key}"
        first, stop = map(int, found.images[at])
        image = Part(shard.path, first, stop, f"{shard.path.name}/{key}")
        first, stop = map(int, found.texts[at])
        try:
            text = Part(self._texts[number], first, stop, key).read()
        except OSError as error:
            raise UserError(
                f"The texts of {shard.path} cannot be read any more in {self._texts[number]} "
                f"({error.strerror or error}); resume the run, which reads them again."
            ) from error
        values = (
            json_object(text, where=where)
            if found.is_json[at]
            else {"caption": text.decode("utf-8", "replace").strip()}
        )
        return _row(values, image, where=where, id_=f"{shard.path.stem}/{key}")


def _row(values: dict[str, Any], image: Part, *, where: str, id_: str) -> Row:
    captions = rows.captions(values, names=rows.CAPTIONS, where=where)
    if not captions:
        raise BadRowError(
            where,
            'has no "caption" and no "captions", of which every sample must have one; add it or '
            "remove the sample.",
        )
    return rows.caption_row(values, captions, id_=id_, image=image, where=where)


# What a shard holds -------------------------------------------------------------------------------


def _index_of(shard: Shard) -> tuple[Path, _Index]:
    """The file of the shard's texts and where all is, as an earlier start kept it, or by reading
    the shard.
    """
    digest = hashlib.sha256(
        f"{_VERSION} {shard.path} {shard.size} {shard.version}".encode()
    ).hexdigest()
    kept = cache_folder() / f"tar-{digest[:20]}.npz"
    texts = kept.with_suffix(".texts")
    try:
        with np.load(kept) as found:
            index = _Index(*(found[name] for name in _Index._fields[:-1]), int(found["incomplete"]))
        if texts.is_file():
            return texts, index
    except (OSError, ValueError, KeyError, EOFError):  # none, or half of one
        pass
    index, found_texts = _read_index(shard)
    data = io.BytesIO()
    np.savez(data, **index._asdict())
    for path, content in ((texts, found_texts), (kept, data.getvalue())):
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        beside.write_bytes(content)
        beside.replace(path)
    return texts, index


def _read_index(shard: Shard) -> tuple[_Index, bytes]:
    """Where all is, and the texts one after the other."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with shard.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name, dot, kind = _split(member.name)
                if not member.isfile() or not dot:
                    continue
                place: Any = member.offset_data, member.offset_data + member.size
                if kind in _TEXTS:
                    place = tar.extractfile(member).read()  # type: ignore[union-attr]
                parts = samples.setdefault(name, {})
                if kind in parts:
                    raise UserError(
                        f"The shard {shard.path} holds {member.name} twice; write it again with "
                        "each name once."
                    )
                parts[kind] = place
                tar.members = []  # or all of them stay in memory
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"The shard {shard.path} is no whole tar file without compression ({error}), whose "
            "samples could be read one by one; write it as WebDataset does, or upload it again."
        ) from error
    except OSError as error:
        raise UserError(
            f"The shard {shard.path} cannot be read ({error.strerror or error}); check its "
            "permissions."
        ) from error
    keys, images, texts, is_json, blob = [], [], [], [], bytearray()
    for name, parts in samples.items():
        image = next((parts[kind] for kind in _IMAGES if kind in parts), None)
        text = parts.get("json", parts.get("txt"))
        if image is None or text is None:
            continue
        keys.append(name.encode("utf-8", "surrogateescape"))
        images.append(image)
        texts.append((len(blob), len(blob) + len(text)))
        blob += text
        is_json.append("json" in parts)
    return _Index(
        np.array(keys, dtype=np.bytes_) if keys else np.zeros(0, "S1"),
        np.array(images, np.int64).reshape(-1, 2),
        np.array(texts, np.int64).reshape(-1, 2),
        np.array(is_json, bool),
        len(samples) - len(keys),
    ), bytes(blob)


def _split(name: str) -> tuple[str, str, str]:
    """Name of the sample, a dot where there is one, and what kind of file: up to the first dot of
    the last part, as WebDataset has it.
    """
    folder, slash, last = name.rpartition("/")
    key, dot, kind = last.partition(".")
    return f"{folder}{slash}{key}", dot if key else "", kind.lower()
