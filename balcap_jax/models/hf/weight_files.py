"""The safetensors files of a folder: which ones count, and where in them each tensor lies."""

import struct
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.models.hf.keys import BUFFERS, KeyTable
from balcap_jax.models.json_files import parse_json, printable, read_json, reason_of, shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F64": np.dtype(np.float64),
}
_BLOCK = 1 << 18  # bytes that stay in a processor's cache


class Stored(NamedTuple):
    """A tensor in a safetensors file, under the key it has there.

    Attributes:
      dtype: as safetensors writes it, "BF16".
      start: its first byte in the file.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """What `index` takes of the tensor; nothing else is read."""
        from safetensors import safe_open

        # Opened for this tensor alone: an open file is mapped, and what was read of it would stay
        # in memory until it is closed.
        with safe_open(self.path, framework="numpy") as file:
            return file.get_slice(self.key)[index] if index else file.get_tensor(self.key)

    def read_to(self, out: np.ndarray) -> None:
        """The bytes of the whole tensor straight to their place, with no copy on the way."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            rest = memoryview(out.view(np.uint8).reshape(-1))
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise UserError(f"{self.path} ends within {self.key}; fetch it again.")
                rest = rest[count:]


def scan(folder: Path, table: KeyTable) -> dict[str, Stored]:
    """Published key -> where it is stored, over all files that count.

    Raises:
      UserError: a file is missing or damaged, holds a tensor twice or one that is no plain number.
    """
    tensors: dict[str, Stored] = {}
    for path in weight_files(folder):
        for tensor in tensors_of(path):
            if BUFFERS.search(tensor.key):
                continue
            if tensor.dtype not in DTYPES:
                raise UserError(
                    f"{path} stores {printable(tensor.key)} as {tensor.dtype}, which is quantised "
                    f"or no weight; give the folder with weights as {', '.join(DTYPES)}."
                )
            published = table.normalise(tensor.key)
            if published in tensors:
                raise UserError(
                    f"{folder} holds {printable(tensor.key)} twice; keep one of the files that "
                    "have it."
                )
            tensors[published] = tensor
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read: the single one, else those of the index.

    Raises:
      UserError: there are none, or the index names what is missing or outside of the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        shards = shard_names(folder)
        absent = [name for name in shards if not (folder / name).is_file()]
        if absent or not shards:
            raise UserError(
                f"{folder / INDEX} names {len(shards)} files of which {absent[:3]} are missing; "
                "fetch them again."
            )
        outside = next((name for name in shards if not lies_within(folder, name)), None)
        if outside is not None:
            raise UserError(
                f"{folder / INDEX} names {outside!r}, a link out of the folder; put the file "
                "itself there."
            )
        return [folder / name for name in shards]
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} has its weights as pytorch_model.bin, a pickle, which can run any code when "
            "read; give a folder with safetensors."
        )
    raise UserError(f"{folder} has no {WEIGHTS}; give a folder with the weights as safetensors.")


def shard_names(folder: Path) -> list[str]:
    """The files that the index of `folder` names, each once.

    Raises:
      UserError: no readable index, or a name that is no path to safetensors below the folder.
    """
    shards = read_json(folder / INDEX).get("weight_map", {})
    if not isinstance(shards, dict):
        raise UserError(
            f"{folder / INDEX} has as weight_map {shown(shards)}, not keys with names of files; "
            "fetch it again."
        )
    wrong = [name for name in shards.values() if not _is_shard_name(name)]
    if wrong:
        raise UserError(
            f"{folder / INDEX} names {shown(wrong[0])} but a shard must be a .safetensors file in "
            "its folder; fetch the index again."
        )
    return sorted(set(shards.values()))


def lies_within(folder: Path, name: str) -> bool:
    """Whether a file, links followed, lies in `folder`; or for a snapshot of the hub in its cache,
    where snapshots are links.
    """
    try:
        target = (folder / name).resolve(strict=True)
        roots = [folder.resolve(strict=True)]
    except (OSError, RuntimeError):  # a circle of links
        return False
    repository = roots[0].parent.parent
    if roots[0].parent.name == "snapshots" and repository.name.startswith("models--"):
        # The blobs of the repository, and those that repositories of a cache share.
        roots += [repository / "blobs", repository.parent / "blobs"]
    return any(target.is_relative_to(root) for root in roots)


def check_finite(numbers: np.ndarray, stored: Stored) -> None:
    """Raises a UserError where an array just read of `stored` has a NaN or an infinity.

    By the bits: above those of infinity, and of its negative, there are only NaNs. Two maxima over
    whole numbers need no copy and take as long as reading memory.
    """
    kind = np.dtype(numbers.dtype)
    infinity = np.array(np.inf, kind).view(f"u{kind.itemsize}")
    signed, unsigned = np.dtype(f"i{kind.itemsize}"), np.dtype(f"u{kind.itemsize}")
    lowest = unsigned.type(1 << (8 * kind.itemsize - 1)) | infinity
    flat = numbers.reshape(-1).view(unsigned)
    step = _BLOCK // kind.itemsize
    for start in range(0, flat.size, step):
        block = flat[start : start + step]
        if block.max() >= lowest or block.view(signed).max() >= infinity.view(signed):
            raise UserError(
                f"{stored.path} has a NaN or an infinity in {stored.key} (as {kind.name}); every "
                "weight must be a number: fetch the file again or take another checkpoint."
            )


def tensors_of(path: Path) -> list[Stored]:
    """Where each tensor of a safetensors file lies.

    Raises:
      UserError: it is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # which checks all that the header says
            return _stored(path)
    except (OSError, SafetensorError, ValueError, MemoryError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({reason_of(error)}); fetch it again."
        ) from error


def _stored(path: Path) -> list[Stored]:
    """The tensors of a safetensors file, by its header: the length of the header (uint64), the
    header (JSON), the tensors.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = parse_json(file.read(length))
    return [
        Stored(path, key, tuple(of["shape"]), of["dtype"], start=8 + length + of["data_offsets"][0])
        for key, of in header.items()
        if key != "__metadata__"
    ]


def _is_shard_name(name: object) -> bool:
    if not isinstance(name, str) or not name.isprintable() or not name.endswith(".safetensors"):
        return False
    # Backslashes and colons are separators elsewhere, the rest are patterns for the hub.
    if any(sign in name for sign in "\\:*?[]"):
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
