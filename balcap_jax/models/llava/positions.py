"""A tower's table of positions for images of another size."""

import numpy as np
from jaxtyping import Float

_A = -0.75  # of the cubic kernel; torch's choice, which the published towers were used with


def resize_positions(table: Float[np.ndarray, "*b q d"], side: int) -> Float[np.ndarray, "*b p d"]:
    """Positions of `side` x `side` patches behind that of the class token, q - 1 a square.

    Bicubic without antialiasing and with the corners' outer edges aligned, as DINOv2 itself and
    transformers do it where an image has another size than the tower's.
    """
    first, patches = table[..., :1, :], table[..., 1:, :]
    old = int(round(patches.shape[-2] ** 0.5))
    assert old**2 == patches.shape[-2], "patches are not a square"
    if old == side:
        return table
    weights = _weights(old, side)
    grid = patches.astype(np.float32).reshape(-1, old, old, patches.shape[-1])
    resized = np.einsum("yr,xc,brcd->byxd", weights, weights, grid, optimize=True)
    resized = resized.reshape(*table.shape[:-2], side**2, table.shape[-1]).astype(table.dtype)
    return np.concatenate([first, resized], axis=-2)


def _weights(old: int, new: int) -> Float[np.ndarray, "n o"]:
    """What each of `new` places takes of `old` ones; beyond the border the last one repeats."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        places = np.floor(centres).astype(int) + offset
        shares = _cubic(np.abs(centres - places))
        np.add.at(weights, (np.arange(new), np.clip(places, 0, old - 1)), shares)
    return weights.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """The kernel of Keys (1981) at distances below 2."""
    near = (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    far = _A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
