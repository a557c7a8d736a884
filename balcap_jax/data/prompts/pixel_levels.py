"""Whether an image processor's floats are told by bytes, and which float each byte stands for."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

# What makes floats of bytes, switched off.
AS_BYTES = {"do_rescale": False, "do_normalize": False}


def levels_of(
    processor: Any, process: Callable[..., np.ndarray], *, channels: int
) -> Float[np.ndarray, "k 256"] | None:
    """The float of each byte by channel; None where bytes do not tell what the processor makes.

    They do where it resizes and crops bytes and only then rescales and normalises them, as those of
    all published captioners. It is tried on two images whose pixels have all kinds of values.

    Args:
      processor: of transformers.
      process: its flattened patches [s, channel, number] of an image, with options of its call.
    """
    if getattr(processor, "do_pad", False):  # with a float that no byte may stand for
        return None
    try:
        levels = _levels(processor, channels)
        for image in trial_images():
            floats, plain = process(image), process(image, **AS_BYTES)
            found = to_bytes(plain)
            told = np.stack([levels[k][found[:, k]] for k in range(channels)], axis=1)
            if not np.array_equal(told.view(np.uint32), floats.view(np.uint32)):
                return None
    except Exception:  # noqa: BLE001 - settings may be anything; what is wrong is told elsewhere
        return None
    return levels


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """The same numbers as uint8.

    Raises:
      ValueError: they are none from 0 to 255.
    """
    found = pixels.astype(np.uint8)
    if not np.array_equal(found, pixels):
        raise ValueError("the image processor resizes to other numbers than bytes")
    return found


def trial_images() -> Sequence[Image.Image]:
    """Two images of other shapes, with ramps and noise of all bytes."""
    rng = np.random.default_rng(0)
    images = []
    for height, width in ((120, 256), (256, 61)):
        ramp = np.add.outer(np.arange(height), np.arange(width))
        noise = rng.integers(0, 256, (height, width))
        pixels = np.stack([ramp, -ramp, noise], axis=-1)
        images.append(Image.fromarray((pixels % 256).astype(np.uint8)))
    return images


def _levels(processor: Any, channels: int) -> Float[np.ndarray, "k 256"]:
    values: np.ndarray = np.tile(np.arange(256, dtype=np.uint8), (channels, 1, 1))
    if getattr(processor, "do_rescale", False):
        values = processor.rescale(values, processor.rescale_factor)
    if getattr(processor, "do_normalize", False):
        values = processor.normalize(values, processor.image_mean, processor.image_std)
    return np.ascontiguousarray(values[:, 0].astype(np.float32))
