"""The arrays a policy reads. Batch-major, statically shaped, so that they shard over the batch."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num
from numpy import ndarray

from balcap_jax.models.geometry import Grid

# Made on the host by numpy, traced on the device by JAX.
AnyArray = Array | ndarray


class ImagePatches(NamedTuple):
    """The images of each prompt, cut to patches, one image after another, padded to a bucket.

    Attributes:
      pixels: flattened patches. Qwen2.5-VL: in the order of Hugging Face's Qwen2-VL image
        processor, where the merge x merge patches of one merged token are neighbours, all frames
        or the one that a still image repeats. LLaVA: row by row, [channel, row, column] each; all
        images have one size. Floats, or bytes, uint8, where there are `levels`.
      positions: row and column of each patch in its image.
      image_ids: index of the image within its prompt; -1 is padding. Full attention joins equal
        ids.
      windows: the patches of each attention window, as indices into the prompt's patches; -1 is an
        empty slot. [b 0 0] where the tower has no windows.
      levels: the number that each byte stands for, by channel; see `models/pixels`.
    """

    pixels: Num[AnyArray, "b s c"]
    positions: Int[AnyArray, "b s 2"]
    image_ids: Int[AnyArray, "b s"]
    windows: Int[AnyArray, "b w l"]
    levels: Float[AnyArray, "b k 256"] | None = None


class Prompts(NamedTuple):
    """Prompts without their last token, right-padded; the last token starts every completion.

    Attributes:
      tokens: prefix token ids, image placeholders already expanded to one per image feature.
      mask: True where a token is real.
      positions: of each token: temporal, height and width (multimodal rotary embedding), or on one
        axis where the decoder has plain rotary embedding.
      last_token: the first input of every completion of this prompt.
      last_position: position of `last_token`, equal on all axes; the completion's input t
        stands at `last_position + t`.
      images: the prompts' images.
    """

    tokens: Int[AnyArray, "b p"]
    mask: Bool[AnyArray, "b p"]
    positions: Int[AnyArray, "b axes p"]
    last_token: Int[AnyArray, " b"]
    last_position: Int[AnyArray, " b"]
    images: ImagePatches


class CutImage(NamedTuple):
    """One image as flattened patches, and its rows and columns of patches; see `ImagePatches`."""

    pixels: Num[np.ndarray, "s c"]
    grid: Grid
    levels: Float[np.ndarray, "k 256"] | None = None


class Row(NamedTuple):
    """One prompt before padding, its last token still in place."""

    tokens: Int[np.ndarray, " t"]
    positions: Int[np.ndarray, "axes t"]
    images: ImagePatches  # without the batch axis
