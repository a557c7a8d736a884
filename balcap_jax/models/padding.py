"""Prompts of many lengths as one batch: padded to few sizes, so that few programs are compiled.

Host side, numpy only. Below `data/`, because `policy.logits` takes the arrays of a processor, too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from balcap_jax.models.inputs import ImagePatches, Prompts, Row


class Least(NamedTuple):
    """What a batch has room for at least, so that batches are of few sizes: tokens of a prefix,
    patches and windows.
    """

    prefix: int = 0
    patches: int = 0
    windows: int = 0


def pad_rows(
    rows: Sequence[Row],
    *,
    pad_token_id: int,
    prefix_step: int,
    patch_step: int,
    least: Least = Least(),  # noqa: B008 - a tuple
) -> Prompts:
    """Rows as a batch: prefix and patches padded on the right to the next bucket."""
    prefix = bucket(max(least.prefix, *(len(row.tokens) - 1 for row in rows)), prefix_step)
    return Prompts(
        tokens=np.stack([_pad(row.tokens[:-1], prefix, pad_token_id) for row in rows]),
        mask=np.stack([np.arange(prefix) < len(row.tokens) - 1 for row in rows]),
        positions=np.stack([_pad(row.positions[:, :-1].T, prefix, 0).T for row in rows]),
        last_token=np.array([row.tokens[-1] for row in rows], np.int32),
        last_position=np.array([row.positions[0, -1] for row in rows], np.int32),
        images=pad_images(rows, patch_step, least=least),
    )


def pad_images(
    rows: Sequence[Row],
    patch_step: int,
    *,
    least: Least = Least(),  # noqa: B008 - a tuple
) -> ImagePatches:
    """The images of a batch, patches padded on the right to the next bucket."""
    patches = bucket(max(least.patches, *(len(row.images.pixels) for row in rows)), patch_step)
    levels = [row.images.levels for row in rows]

    def stack(name: str, value: int) -> np.ndarray:
        return np.stack([_pad(getattr(row.images, name), patches, value) for row in rows])

    return ImagePatches(
        pixels=stack("pixels", 0),
        positions=stack("positions", 0),
        image_ids=stack("image_ids", -1),
        windows=pad_windows([row.images.windows for row in rows], patches, least=least.windows),
        levels=None if levels[0] is None else np.stack(levels),  # those of one processor
    )


def sizes_of(prompts: Prompts) -> list[int]:
    """[prefix tokens, patches, windows, patches of a window] that a batch is padded to."""
    images = prompts.images
    return [prompts.tokens.shape[1], images.pixels.shape[1], *images.windows.shape[1:]]


def pad_to_sizes(prompts: Prompts, sizes: Sequence[int], *, pad_token_id: int) -> Prompts:
    """A batch of `pad_rows`, padded on to larger `sizes_of` that batch."""
    if list(sizes) == sizes_of(prompts):
        return prompts
    prefix, patches, windows, slots = sizes

    def pad(x: np.ndarray, value: int, lengths: dict[int, int]) -> np.ndarray:
        widths = [(0, lengths.get(axis, size) - size) for axis, size in enumerate(x.shape)]
        return np.pad(x, widths, constant_values=value)

    images = prompts.images
    return prompts._replace(
        tokens=pad(prompts.tokens, pad_token_id, {1: prefix}),
        mask=pad(prompts.mask, 0, {1: prefix}),
        positions=pad(prompts.positions, 0, {2: prefix}),
        images=images._replace(
            pixels=pad(images.pixels, 0, {1: patches}),
            positions=pad(images.positions, 0, {1: patches}),
            image_ids=pad(images.image_ids, -1, {1: patches}),
            windows=pad(images.windows, -1, {1: windows, 2: slots}),
        ),
    )


def bucket(value: int, step: int) -> int:
    """The smallest padded size that holds `value`.

    Sizes are multiples of `step` up to 16 of them, and from there eight per doubling. So at most an
    eighth is padding, and up to n steps there are no more than 16 + 8 log2(n / 16) sizes, each of
    which compiles the programs once.
    """
    steps = -(-value // step)
    return round_up(value, step << max(0, steps.bit_length() - 4))


def pad_windows(
    rows: Sequence[Int[np.ndarray, "_ _"]], patches: int, *, least: int = 0
) -> Int[np.ndarray, "b windows slots"]:
    """The windows of a batch of prompts, padded with empty ones.

    To a multiple of half the whole windows that so many patches fill: small windows at the borders
    add some, and every count is a program to compile.
    """
    # No window has more patches than there are, and a prompt without images has no slots at all.
    slots = min(max(windows.shape[1] for windows in rows), patches)
    step = round_up(patches, 2 * slots) // (2 * slots) if slots else 1
    count = round_up(max(least, *map(len, rows)), step)
    padded = np.full((len(rows), count, slots), -1, np.int32)
    for b, windows in enumerate(rows):
        padded[b, : len(windows), : windows.shape[1]] = windows[:, :slots]
    return padded


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step


def _pad(x: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=value)
