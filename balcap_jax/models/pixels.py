"""Pixels as they travel to the device: bytes, and the number that each byte stands for.

An image processor makes its floats of bytes, each by its channel alone: rescaled, then normalised.
The 256 numbers of each channel, `levels`, are all that there is to it, so the device looks them up
and has the processor's floats to the last bit, whatever its own arithmetic is like.

Letters: b batch, s patches, k channels, c numbers of a patch.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from balcap_jax.models.inputs import ImagePatches, Prompts


def patch_values(
    images: ImagePatches, *, channels: int, patch_dim: int
) -> Float[Array, "b s {patch_dim}"]:
    """Inside jit: the flattened patches of the image processor, [channel, frame, row, column] each.

    A still image comes with one of its equal frames, which is repeated here.
    """
    values = jnp.asarray(images.pixels)
    B, S, C = values.shape
    if images.levels is not None:
        levels = jnp.asarray(images.levels).reshape(B, -1)
        first = np.repeat(256 * np.arange(channels, dtype=np.int32), C // channels)
        index = values.astype(jnp.int32) + first[None, None]
        found = jnp.take_along_axis(
            levels, index.reshape(B, S * C), axis=1, mode="promise_in_bounds"
        )
        values = found.reshape(B, S, C)
    if images.pixels.shape[-1] == patch_dim:
        return values
    frames = values.reshape(B, S, channels, 1, -1)
    shape = (B, S, channels, patch_dim // C, C // channels)
    return jnp.broadcast_to(frames, shape).reshape(B, S, patch_dim)


def look_up(
    levels: Float[np.ndarray, "k 256"], pixels: UInt8[np.ndarray, "s c"]
) -> Float[np.ndarray, "s c"]:
    """On the host: what the bytes of flattened patches stand for."""
    channel = np.repeat(np.arange(len(levels)), pixels.shape[1] // len(levels))
    return levels[channel[None], pixels]


def one_frame(pixels: np.ndarray, *, channels: int, frames: int) -> np.ndarray:
    """The first of the frames that each flattened patch [s, channel frame row column] has."""
    if frames == 1:
        return pixels
    return pixels.reshape(len(pixels), channels, frames, -1)[:, :, 0].reshape(len(pixels), -1)


def as_computed(prompts: Prompts, dtype: DTypeLike) -> Prompts:
    """Pixels that are no bytes, rounded on the host to what the tower computes with, where that is
    bfloat16: it rounds them so before anything else, and half as much travels.
    """
    images = prompts.images
    if images.levels is not None or jnp.dtype(dtype) != jnp.bfloat16:
        return prompts
    pixels = np.asarray(images.pixels).astype(jnp.bfloat16)
    return prompts._replace(images=images._replace(pixels=pixels))
