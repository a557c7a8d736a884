"""Checksums of arrays that do not depend on where their parts lie."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Steps of a mix that changes half of the result's bits for each changed bit (MurmurHash3).
_MIX = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
_OFFSET = 0x9E3779B1  # place 0 counts too
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
# Bytes. A leaf of up to this many is summed on the host: most of a policy's shapes are of norms and
# biases, and each would be one more program to compile before the first save.
_SMALL = 2**20


def checksums(tree: Any) -> dict[str, int]:
    """A 32-bit sum of each leaf's bits by key path, equal whatever devices the leaf is spread over.

    Each element's bits are mixed with its place, and the results are added modulo 2^32, which is
    exact in any order. Of a large leaf it is one reduction on its devices, compiled once for each
    shape.

    Args:
      tree: jax or numpy arrays, of all processes together.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One after the other: XLA's processors deadlock in collectives of many programs at once.
    sums = [_sum_of(_in_words(leaf)) for _, leaf in leaves]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return dict(zip(names, sums, strict=True))


def _sum_of(leaf: Any) -> int:
    here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    if here and leaf.nbytes <= _SMALL:
        return int(_sum_on_host(np.asarray(leaf)))
    return int(jax.device_get(_sum(leaf)))


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


def _sum_on_host(x: np.ndarray) -> np.uint32:
    """The same as `_sum`."""
    if np.iscomplexobj(x):
        x = np.stack([x.real, x.imag])
    if x.dtype != np.bool_:
        x = np.ascontiguousarray(x).view(_UNSIGNED[x.dtype.itemsize])
    place = np.arange(x.size, dtype=np.uint32).reshape(x.shape) + np.uint32(_OFFSET)
    return np.sum(_mixed(x.astype(np.uint32) ^ _mixed(place)), dtype=np.uint32)


def _mixed(x: Any) -> Any:
    for shift, factor in _MIX:
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
