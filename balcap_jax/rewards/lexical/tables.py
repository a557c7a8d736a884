"""Tables of words as the package ships them, arrays in `assets/lexicon/*.npz`."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

import numpy as np


@cache
def read_table(name: str) -> Mapping[str, np.ndarray]:
    """All arrays of `assets/lexicon/{name}.npz`, a few megabytes, read once."""
    path = files("balcap_jax") / "assets" / "lexicon" / f"{name}.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def packed(words: Iterable[str]) -> np.ndarray:
    """Words as one array of bytes, (n,) uint8."""
    return np.frombuffer("\n".join(words).encode(), np.uint8)


def unpacked(array: np.ndarray) -> list[str]:
    """The words of `packed`."""
    return array.tobytes().decode().split("\n")
