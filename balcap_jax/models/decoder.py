"""The decoder layer. Which keys it attends to is the caller's choice, so one layer serves the full
forward, the shared prompt with its completions, and decoding with a cache.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from balcap_jax.models.attention import KV
from balcap_jax.models.config import DecoderConfig
from balcap_jax.models.inputs import AnyArray
from balcap_jax.models.layers import GatedMLP, RMSNorm, linear, rotary_frequencies, rotate


class SelfAttention(nnx.Module):
    """The projections of grouped-query attention."""

    def __init__(
        self, config: DecoderConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size, bias = config.hidden_size, config.attention_bias
        self.head_dim = config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        self.q_proj = linear(size, size, use_bias=bias, dtype=dtype, std=std, rngs=rngs)
        self.k_proj = linear(size, narrow, use_bias=bias, dtype=dtype, std=std, rngs=rngs)
        self.v_proj = linear(size, narrow, use_bias=bias, dtype=dtype, std=std, rngs=rngs)
        self.o_proj = linear(size, size, use_bias=False, dtype=dtype, std=std, rngs=rngs)

    def heads(self, x: Float[Array, "*b d"]) -> Float[Array, "*b n h"]:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)


class DecoderLayer(nnx.Module):
    """A pre-norm layer in two halves: `project`, then attention of any kind, then `finish`."""

    def __init__(
        self, config: DecoderConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size = config.hidden_size
        self.input_layernorm = RMSNorm(size, eps=config.rms_norm_eps)
        self.self_attn = SelfAttention(config, dtype=dtype, std=std, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(
            size, config.intermediate_size, use_bias=False, dtype=dtype, std=std, rngs=rngs
        )

    def project(
        self, x: Float[Array, "*b t d"], angles: Float[Array, "*#b t half"]
    ) -> tuple[Float[Array, "*b t n h"], KV]:
        """Queries, and keys with values, rotary embedding applied."""
        attn = self.self_attn
        x = self.input_layernorm(x)
        q = rotate(attn.heads(attn.q_proj(x)), angles)
        k = rotate(attn.heads(attn.k_proj(x)), angles)
        return q, KV(k, attn.heads(attn.v_proj(x)))

    def finish(
        self, x: Float[Array, "*b t d"], attended: Float[Array, "*b t n h"]
    ) -> Float[Array, "*b t d"]:
        """The residual stream after attention and MLP."""
        x = x + self.self_attn.o_proj(attended.reshape(x.shape))
        return x + self.mlp(self.post_attention_layernorm(x))


def multimodal_angles(
    positions: Int[AnyArray, "b 3 t"], *, section: tuple[int, ...], theta: float
) -> Float[Array, "b t half"]:
    """Rotary angles of M-RoPE: frequency i turns with the axis (temporal, height, width) whose
    section it is in (Qwen2-VL, arXiv 2409.12191, section 2.1).
    """
    axis = np.repeat(np.arange(len(section)), section)
    chosen = jnp.asarray(positions)[:, axis].swapaxes(1, 2).astype(jnp.float32)
    return chosen * rotary_frequencies(2 * sum(section), theta)[None, None]


def text_angles(
    positions: Int[AnyArray, "*b t"], *, head_dim: int, theta: float
) -> Float[Array, "*b t half"]:
    """Rotary angles where the three axes of M-RoPE are equal, which is plain 1-D RoPE."""
    frequencies = rotary_frequencies(head_dim, theta)
    frequencies = frequencies.reshape((1,) * positions.ndim + (-1,))
    return jnp.asarray(positions)[..., None].astype(jnp.float32) * frequencies
