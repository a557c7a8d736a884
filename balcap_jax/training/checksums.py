"""Checksums of arrays that do not depend on where their parts lie."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from balcap_jax.runs.cores import usable_cores

# Steps of a mix that changes half of the result's bits for each changed bit (MurmurHash3).
_MIX = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
_OFFSET = 0x9E3779B1  # place 0 counts too
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
# Bytes. A leaf of up to this many is summed on the host: most of a policy's shapes are of norms and
# biases, and each would be one more program to compile before the first save.
_SMALL = 2**20
# Elements of a leaf that are summed at a time on the host, so that they stay in a core's cache.
_BLOCK = 2**16


def checksums(tree: Any) -> dict[str, int]:
    """A 32-bit sum of each leaf's bits by key path, equal whatever devices the leaf is spread over.

    Each element's bits are mixed with its place, and the results are added modulo 2^32, which is
    exact in any order. Of a large leaf it is one reduction on its devices, compiled once for each
    shape; but for processors, where XLA reduces to one number on one core.

    Args:
      tree: jax or numpy arrays, of all processes together.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    words = [_in_words(leaf) for _, leaf in leaves]
    sums = dict.fromkeys(names, 0)
    by_size = defaultdict(list)  # those of one size share the places of their elements
    for name, leaf in zip(names, words, strict=True):
        if _is_summed_here(leaf):
            by_size[leaf.size * (2 if np.iscomplexobj(leaf) else 1)].append((name, leaf))
    for same in by_size.values():
        found = _sums_on_host([np.asarray(leaf) for _, leaf in same])
        sums.update(zip((name for name, _ in same), found, strict=True))
    # One after the other: XLA's processors deadlock in collectives of many programs at once.
    for name, leaf in zip(names, words, strict=True):
        if not _is_summed_here(leaf):
            sums[name] = int(jax.device_get(_sum(leaf)))
    return sums


def _is_summed_here(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    if not leaf.is_fully_addressable:
        return False
    devices = leaf.sharding.device_set
    alone = len(devices) == 1 and next(iter(devices)).platform == "cpu"  # numpy sees it uncopied
    return alone or leaf.nbytes <= _SMALL


def _in_words(leaf: Any) -> Any:
    """numpy's 64 bits as two numbers of 32, since jax has none; all else as it is."""
    if isinstance(leaf, jax.Array) or leaf.dtype.itemsize < 8:
        return leaf
    return np.ascontiguousarray(leaf)[..., None].view(np.uint32)


@jax.jit
def _sum(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    if x.dtype != jnp.bool_:
        x = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize])
    # By axis and not as one row of numbers: that would move the parts between devices.
    place = jnp.full(x.shape, _OFFSET, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = place + along * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(_mixed(x.astype(jnp.uint32) ^ _mixed(place)), dtype=jnp.uint32)


def _sums_on_host(leaves: Sequence[np.ndarray]) -> list[int]:
    """The same as `_sum`, of leaves that have equally many elements, on all cores."""
    flat = [_flat(leaf) for leaf in leaves]
    size = flat[0].size

    def part(start: int) -> list[int]:
        stop = min(start + _BLOCK, size)
        place = np.arange(start, stop).astype(np.uint32)  # modulo 2^32
        place += np.uint32(_OFFSET)
        spare, mixed = np.empty_like(place), np.empty_like(place)
        _mix(place, spare)
        sums = []
        for x in flat:
            np.bitwise_xor(x[start:stop], place, out=mixed, dtype=np.uint32, casting="unsafe")
            _mix(mixed, spare)
            sums.append(int(np.sum(mixed, dtype=np.uint32)))
        return sums

    starts = range(0, size, _BLOCK)
    if len(starts) < 2:
        parts = [part(start) for start in starts]
    else:
        with ThreadPoolExecutor(usable_cores()) as threads:
            parts = list(threads.map(part, starts))
    return [sum(of_leaf) % 2**32 for of_leaf in zip(*parts, strict=True)] or [0] * len(flat)


def _flat(x: np.ndarray) -> np.ndarray:
    """The bits of each element as an unsigned number, of complex ones all real parts first."""
    if np.iscomplexobj(x):
        x = np.stack([x.real, x.imag])
    x = np.ascontiguousarray(x).reshape(-1)
    return x if x.dtype == np.bool_ else x.view(_UNSIGNED[x.dtype.itemsize])


def _mix(x: np.ndarray, spare: np.ndarray) -> None:
    """`_mixed` in place."""
    for shift, factor in _MIX:
        np.right_shift(x, shift, out=spare)
        np.bitwise_xor(x, spare, out=x)
        np.multiply(x, np.uint32(factor), out=x)
    np.right_shift(x, 16, out=spare)
    np.bitwise_xor(x, spare, out=x)


def _mixed(x: Any) -> Any:
    for shift, factor in _MIX:
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
