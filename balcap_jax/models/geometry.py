"""Where patches and tokens stand: pure numpy functions of image grids.

A grid is (rows, columns) of patches of one image. Patches come in the order of Hugging Face's
Qwen2-VL image processor: merged token by merged token, row by row within each.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

Grid = tuple[int, int]


def patch_positions(grid: Grid, *, merge: int) -> Int[np.ndarray, "s 2"]:
    """Row and column of each patch in its image."""
    rows, columns = grid
    blocks = np.mgrid[:rows, :columns].reshape(2, rows // merge, merge, columns // merge, merge)
    return blocks.transpose(1, 3, 2, 4, 0).reshape(-1, 2).astype(np.int32)


def window_ids(grid: Grid, *, merge: int, window: int) -> Int[np.ndarray, " s"]:
    """Index of each patch's attention window; a window is `window` merged tokens wide and high.

    Windows at the right and lower border are smaller where the grid is no multiple.
    """
    side = merge * window
    rows, columns = (patch_positions(grid, merge=merge) // side).T
    return (rows * -(-grid[1] // side) + columns).astype(np.int32)


def window_patches(ids: Int[np.ndarray, " s"], *, slots: int) -> Int[np.ndarray, "w {slots}"]:
    """The patches of each window in ascending order, then -1 in the slots that are left.

    Args:
      ids: as `window_ids` gives them: every window from 0 to the largest has patches.
      slots: patches of a whole window.
    """
    order, sizes = np.argsort(ids, kind="stable"), np.bincount(ids)
    first = np.cumsum(sizes) - sizes
    windows = np.full((len(sizes), slots), -1, np.int32)
    windows[ids[order], np.arange(len(ids)) - first[ids[order]]] = order
    return windows


def token_positions(
    tokens: Int[np.ndarray, " t"], grids: Sequence[Grid], *, image_token_id: int, merge: int
) -> Int[np.ndarray, "3 t"]:
    """Temporal, height and width position of each token (M-RoPE, arXiv 2409.12191, section 2.1).

    Text counts on, the same on all axes. An image's tokens share one temporal position and stand at
    their row and column, counted from there; the text after it goes on after its larger side.

    Raises:
      ValueError: the placeholders do not fill the grids exactly.
    """
    positions = np.empty((3, len(tokens)), np.int32)
    is_image = tokens == image_token_id
    waiting = iter(grids)
    index, now, seen = 0, 0, 0
    while index < len(tokens):
        if not is_image[index]:
            positions[:, index] = now
            index, now = index + 1, now + 1
            continue
        grid, seen = next(waiting, None), seen + 1
        if grid is None:
            raise ValueError("more image placeholders than image tokens")
        rows, columns = grid[0] // merge, grid[1] // merge
        end = index + rows * columns
        if not is_image[index:end].all() or end > len(tokens):
            raise ValueError(
                f"image {seen} has fewer image placeholders together than image tokens"
            )
        row, column = np.mgrid[:rows, :columns].reshape(2, -1)
        positions[:, index:end] = now + np.stack([np.zeros_like(row), row, column])
        index, now = end, now + max(rows, columns)
    if next(waiting, None) is not None:
        raise ValueError(f"image {seen + 1} has no placeholders")
    return positions
