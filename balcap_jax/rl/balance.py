"""Which prompts share a micro-batch: on each device long ones with short ones.

A row has room for the longest sum of any micro-batch, so sums that are alike leave little padding.
The order of prompts changes no result but for rounding.

Letters: b batch, r rows (parts that the mesh splits the batch in), m prompts of a row.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from balcap_jax.parallel.sharding import constrain_batch

AnyArray = Array | np.ndarray


def balanced_order(
    counts: Int[AnyArray, " b"], *, rows: int, micro_batches: int
) -> Int[AnyArray, "r m"]:
    """The prompts of each row, counted within it, in the order that `split_micro_batches` takes.

    From the longest to the shortest they are dealt out, forth and back.

    Args:
      counts: tokens of each prompt's completions; of numpy or JAX, and so is the result.
    """
    xp = counts.__array_namespace__()
    longest_first = xp.argsort(-counts.reshape(rows, -1), axis=1, stable=True)
    rounds = longest_first.reshape(rows, -1, micro_batches)
    back = (xp.arange(rounds.shape[1]) % 2 == 1)[None, :, None]
    return xp.where(back, rounds[..., ::-1], rounds).reshape(rows, -1)


def reordered(tree: Any, order: Int[Array, "r m"]) -> Any:
    """Arrays [b ...] with the prompts of each row in this order."""

    def take(x: Array) -> Array:
        of_rows = x.reshape(*order.shape, *x.shape[1:])
        return jax.vmap(lambda row, at: row[at])(of_rows, order).reshape(x.shape)

    return constrain_batch(jax.tree.map(take, tree))


def inverse(order: Int[Array, "r m"]) -> Int[Array, "r m"]:
    """The order that undoes it."""
    return jnp.argsort(order, axis=1)
