"""Keys and values that decoding reads, laid out as the matmuls read them.

Letters as in `decode_step`; t queries that share their keys, s slots, m completions and heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.models.attention.plain import KV, softmax_parts
from balcap_jax.models.config import DecoderConfig
from balcap_jax.parallel.sharding import BATCH_AXES, constrain, tensor_shards


class Slots(NamedTuple):
    """Keys (rotary embedding applied) and values of one layer.

    Each lies as the right side of its matmul does, or XLA on CPUs transposes all keys in every
    step. What is written to has completions and heads as one axis, m = n * k: with two, XLA on CPUs
    writes it twice, for the loop and, reshaped, for the matmul, and copies it four times for that.
    Heads that are spread over `tensor` have an axis of their own all the same.
    """

    k: Float[Array, "*m h s"]
    v: Float[Array, "*m s h"]

    @classmethod
    def of(cls, kv: KV) -> "Slots":
        """Of keys and values [n s k h], to be read alone; m is n and k, two axes."""
        return cls(kv.k.transpose(0, 2, 3, 1), kv.v.swapaxes(1, 2))

    @classmethod
    def empty(cls, count: int, length: int, config: DecoderConfig, dtype: DTypeLike) -> "Slots":
        """Of `count` completions of `length` tokens, zeros."""
        heads, size = config.num_key_value_heads, config.head_dim
        m = (count * heads,) if tensor_shards() == 1 else (count, heads)
        axes = (BATCH_AXES, "tensor")[: len(m)]
        return cls(
            constrain(jnp.zeros((*m, size, length), dtype), *axes),
            constrain(jnp.zeros((*m, length, size), dtype), *axes),
        )

    def write(self, new: KV, step: Int[Array, ""] | int) -> "Slots":
        """With keys and values [n k h] in slot `step`."""
        m = self.v.shape[:-2]
        update = jax.lax.dynamic_update_slice_in_dim
        return Slots(
            update(self.k, new.k.reshape(*m, -1, 1), step, axis=len(m) + 1),
            update(self.v, new.v.reshape(*m, 1, -1), step, axis=len(m)),
        )

    def take(self, index: Int[Array, " i"], count: int) -> "Slots":
        """Those of some of the `count` completions or prompts."""

        def taken(x: Array) -> Array:
            by_completion = x.reshape(count, -1, *x.shape[1:])
            return by_completion[index].reshape(-1, *x.shape[1:])

        return Slots(taken(self.k), taken(self.v))

    def attended_by(
        self, q: Float[Array, "n k t h"], mask: Bool[Array, "*#m s"]
    ) -> tuple[Float[Array, "n k t h"], Float[Array, "n k t"]]:
        """Softmax attention over the slots where `mask`, and the log-sum-exp of its scores; float32
        both.
        """
        grouped = q.reshape(*self.v.shape[:-2], *q.shape[2:])
        scores = jnp.einsum("...th,...hs->...ts", grouped, self.k, preferred_element_type="float32")
        weights, total, log_sum = softmax_parts(scores * q.shape[-1] ** -0.5, mask)
        out = jnp.einsum(
            "...ts,...sh->...th",
            weights.astype(self.v.dtype),
            self.v,
            preferred_element_type="float32",
        )
        return (out / total).reshape(q.shape), log_sum.reshape(q.shape[:-1])
