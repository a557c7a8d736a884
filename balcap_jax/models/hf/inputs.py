"""The arrays that Hugging Face's processors return, as a policy reads them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from balcap_jax.errors import UserError
from balcap_jax.models.inputs import CutImage, ImagePatches, Prompts, Row
from balcap_jax.models.layout import Layout
from balcap_jax.models.padding import pad_images, pad_rows

# The type ids say again what input_ids say.
READ = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
REDUNDANT = ("token_type_ids", "mm_token_type_ids")
PREFIX_STEP = 16


class PaddedPrompts(NamedTuple):
    """Whole prompts, their padding where the caller has it.

    Attributes:
      tokens, mask: as input_ids and attention_mask.
      positions: of the real tokens; 0 in the padding.
      images: see `ImagePatches`.
    """

    tokens: Int[np.ndarray, "b t"]
    mask: Bool[np.ndarray, "b t"]
    positions: Int[np.ndarray, "b axes t"]
    images: ImagePatches


def padded_prompts(layout: Layout, inputs: Mapping[str, Any]) -> PaddedPrompts:
    """For a forward over whole prompts, padded on any side.

    Args:
      inputs: input_ids int [b t]; attention_mask [b t], default all ones; pixel_values, and
        image_grid_thw for Qwen2.5-VL, if there are images.

    Raises:
      UserError: an input of another name or shape, or an image whose features are not as many as
        its placeholders.
    """
    config = layout.config
    tokens, mask, rows = _rows(layout, inputs)
    positions = np.zeros((len(rows), config.text.position_axes, tokens.shape[1]), np.int32)
    for b, row in enumerate(rows):
        positions[b][:, mask[b]] = row.positions
    # What stands in the padding must not count as a placeholder.
    tokens = np.where(mask, tokens, np.int32(config.stop_tokens[0]))
    return PaddedPrompts(tokens, mask, positions, pad_images(rows, layout.patch_step))


def split_prompts(layout: Layout, inputs: Mapping[str, Any]) -> Prompts:
    """For answers to whole prompts: padding on the right, the last token apart.

    Args:
      inputs: as in `padded_prompts`.

    Raises:
      UserError: as in `padded_prompts`, or a prompt that is empty or ends in an image.
    """
    config = layout.config
    _, _, rows = _rows(layout, inputs)
    for b, row in enumerate(rows):
        if len(row.tokens) < 2 or row.tokens[-1] == config.image_token_id:
            raise UserError(
                f"Prompt {b} must have two tokens or more and end in text but is "
                f"{row.tokens[-3:].tolist()} at its end; add the prompt of the answer."
            )
    return pad_rows(
        rows,
        pad_token_id=config.pad_token_id,
        prefix_step=PREFIX_STEP,
        patch_step=layout.patch_step,
    )


def _rows(
    layout: Layout, inputs: Mapping[str, Any]
) -> tuple[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"], list[Row]]:
    """Tokens and mask as they came, and each prompt without its padding."""
    config = layout.config
    given = {name: value for name, value in inputs.items() if value is not None}
    unknown = [name for name in given if name not in READ + REDUNDANT]
    if unknown or "input_ids" not in given:
        raise UserError(
            f"The inputs {sorted(given)} must have input_ids and may have {', '.join(READ[1:])}; "
            "give what the processor of this model returns for text and images."
        )
    tokens = np.asarray(given["input_ids"]).astype(np.int32)
    mask = np.asarray(given.get("attention_mask", np.ones_like(tokens))).astype(bool)
    if tokens.ndim != 2 or len(tokens) == 0 or mask.shape != tokens.shape:
        raise UserError(
            f"input_ids {tokens.shape} and attention_mask {mask.shape} must have one shape [batch, "
            "length]; give both as the processor returns them."
        )
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
        raise UserError(
            f"input_ids reach from {tokens.min()} to {tokens.max()} but the vocabulary has "
            f"{config.vocab_size} tokens; use the tokenizer of this model."
        )
    images = layout.cut(given) if "pixel_values" in given else []
    own = [tokens[b][mask[b]] for b in range(len(tokens))]
    counts = [int(np.sum(row == config.image_token_id)) for row in own]
    rows = []
    for b, share in enumerate(_share(layout, counts, images)):
        try:
            rows.append(layout.row(own[b], share))
        except ValueError as error:
            raise UserError(
                f"Prompt {b}: {error}; give input_ids and pixel_values of one call of the "
                "processor, and do not cut prompts inside an image."
            ) from error
    return tokens, mask, rows


def _share(
    layout: Layout, counts: Sequence[int], images: Sequence[CutImage]
) -> list[list[CutImage]]:
    """The images of each prompt: as many as its placeholders ask for, the rest to the last one."""
    waiting, shares = list(images), []
    for count in counts:
        share: list[CutImage] = []
        while waiting and count > 0:
            share.append(waiting.pop(0))
            count -= layout.features(share[-1].grid)
        shares.append(share)
    shares[-1].extend(waiting)
    return shares
