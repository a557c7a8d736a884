"""From logits to tokens, a number from 0 to 1 for each."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.parallel.sharding import tensor_shards


def nucleus(logprobs: Float[Array, " v *batch"], *, top_p: float) -> Float[Array, " v *batch"]:
    """The smallest set of likeliest tokens whose probabilities reach `top_p`; -inf elsewhere.

    The token that crosses `top_p` is kept, so the set is never empty; tokens as likely as the last
    one kept are kept too. Not renormalised: `draw` does not care. Holtzman et al.,
    arXiv:1904.09751.
    """
    ordered = jnp.sort(logprobs, axis=0, descending=True)
    probabilities = jnp.exp(ordered)
    before = jnp.cumsum(probabilities, axis=0) - probabilities
    # before[0] is 0 exactly; the later ones may round to below top_p = 1 only, which keeps all.
    last = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=0, keepdims=True)
    return jnp.where(logprobs >= last, logprobs, -jnp.inf)


def draw(
    logits: Float[Array, "v n"],
    uniform: Float[Array, " n"],
    *,
    temperature: float,
    top_p: float,
    likeliest: Bool[Array, " n"] | None = None,
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """One token per caption, by one uniform number; at temperature 0 the likeliest.

    Args:
      logits: of `policy_logits`, which has divided them by the temperature.
      uniform: from 0 to below 1; not read at temperature 0.
      likeliest: captions that take the likeliest token all the same.

    Returns:
      Tokens, and their logprobs before top-p cuts the tail.
    """
    top = jnp.max(logits, axis=0)
    weights = jnp.exp(logits - top[None])
    log_sum = top + jnp.log(jnp.sum(weights, axis=0))
    if temperature == 0:
        tokens = jnp.argmax(logits, axis=0)
    else:
        if top_p < 1:
            weights = jnp.exp(nucleus(logits - log_sum[None], top_p=top_p))
        # One number, where Gumbel-max takes one per word, which is slow to make on a CPU.
        tokens = invert_cumulative(weights, uniform)
        if likeliest is not None:
            tokens = jnp.where(likeliest, jnp.argmax(logits, axis=0), tokens)
    return tokens, jnp.take_along_axis(logits, tokens[None], axis=0)[0] - log_sum


def invert_cumulative(
    weights: Float[Array, " v *batch"], uniform: Float[Array, "*batch"], *, block: int = 256
) -> Int[Array, "*batch"]:
    """The first word up to which the weights sum to more than `uniform` of their total.

    In two levels, the sums of blocks of words and then the words of one block: a cumulative sum of
    all words takes many passes over them. Sums round, at the borders between words by about 1e-7 of
    the total, but a word of weight 0 is never returned.

    Args:
      weights: at least 0, not all 0; need not sum to 1.
      uniform: from 0 to below 1.
    """

    def first_above(sizes: Array, target: Array) -> Array:
        """Where the sum of `sizes` goes above `target`; the largest if rounding says nowhere."""
        above = (jnp.cumsum(sizes, axis=0) > target[None]) & (sizes > 0)
        return jnp.where(jnp.any(above, axis=0), jnp.argmax(above, axis=0), jnp.argmax(sizes, 0))

    def at(x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index[None], axis=0)[0]

    # Whole blocks on every device: those that share one would gather all their words for it.
    padding = [(0, -len(weights) % (block * tensor_shards()))] + [(0, 0)] * (weights.ndim - 1)
    blocks = jnp.pad(weights, padding).reshape(-1, block, *weights.shape[1:])
    sizes = jnp.sum(blocks, axis=1)
    target = uniform * jnp.sum(sizes, axis=0)
    which = first_above(sizes, target)
    words = jnp.take_along_axis(blocks, which[None, None], axis=0)[0]
    before = at(jnp.cumsum(sizes, axis=0), which) - at(sizes, which)
    return which * block + first_above(words, target - before)
