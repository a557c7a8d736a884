"""A safetensors file written tensor by tensor, so that no more than one is in memory.

The package's own `save_file` takes all tensors at once, which of a policy on an accelerator is a
whole policy in the memory of the host.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from balcap_jax.models.hf.weight_files import DTYPES

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Described(NamedTuple):
    """What the header says of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, tensors: Mapping[str, Described], read: Callable[[str], np.ndarray]
) -> None:
    """Writes the file: the length of the header (uint64), the header (JSON), the tensors, those of
    wider numbers first so that all begin at multiples of their size.

    Args:
      read: the tensor of a key, as described; called for one after the other.

    Raises:
      OSError: the disk refuses.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    keys = sorted(tensors, key=lambda key: -tensors[key].dtype.itemsize)
    start = 0
    for key in keys:
        tensor = tensors[key]
        end = start + tensor.bytes
        header[key] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in keys:
            array = read(key)
            assert (array.shape, array.dtype) == tensors[key], key
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
