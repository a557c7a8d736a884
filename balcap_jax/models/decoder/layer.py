"""The decoder layer. Which keys it attends to is the caller's choice, so one layer serves the full
forward, the shared prompt with its completions, and decoding with a cache.
"""

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from balcap_jax.models.attention.plain import KV, Rotate
from balcap_jax.models.config import DecoderConfig
from balcap_jax.models.decoder.layers import GatedMLP, Linear, RMSNorm
from balcap_jax.models.decoder.remat import STREAM
from balcap_jax.parallel.sharding import constrain_heads, constrain_stream


class SelfAttention(nnx.Module):
    """The projections of grouped-query attention."""

    def __init__(
        self, config: DecoderConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size, bias = config.hidden_size, config.attention_bias
        self.head_dim = config.head_dim
        wide = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        options = {"dtype": dtype, "std": std, "rngs": rngs}
        self.q_proj = Linear(size, wide, use_bias=bias, **options)
        self.k_proj = Linear(size, narrow, use_bias=bias, **options)
        self.v_proj = Linear(size, narrow, use_bias=bias, **options)
        self.o_proj = Linear(wide, size, use_bias=config.attention_out_bias, **options)

    def heads(self, x: Float[Array, "*b d"]) -> Float[Array, "*b n h"]:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)


class DecoderLayer(nnx.Module):
    """A pre-norm layer in two halves: `project`, then attention of any kind, then `finish`."""

    def __init__(
        self, config: DecoderConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size, scaling = config.hidden_size, config.rope_scaling
        self.attention_factor = 1.0 if scaling is None else scaling.attention_factor
        self.input_layernorm = RMSNorm(size, eps=config.rms_norm_eps)
        self.self_attn = SelfAttention(config, dtype=dtype, std=std, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(
            size,
            config.intermediate_size,
            use_bias=config.mlp_bias,
            dtype=dtype,
            std=std,
            rngs=rngs,
        )

    def project(
        self, x: Float[Array, "*b t d"], angles: Float[Array, "*#b t half"], rotate: Rotate
    ) -> tuple[Float[Array, "*b t n h"], KV]:
        """Queries, and keys with values, rotary embedding applied by `rotate`."""
        attn = self.self_attn
        # Rounded once: the gradients of the three are added before `tensor` sums them.
        x = self.input_layernorm(x).astype(attn.q_proj.dtype)
        # Of heads that `tensor` does not divide XLA would split the heads themselves.
        q, k, v = (
            constrain_heads(attn.heads(project(x)))
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = rotate(q, angles), rotate(k, angles)
        if self.attention_factor != 1:
            q, k = q * self.attention_factor, k * self.attention_factor
        return q, KV(k, v)

    def finish(
        self, x: Float[Array, "*b t d"], attended: Float[Array, "*b t n h"]
    ) -> Float[Array, "*b t d"]:
        """The residual stream after attention and MLP, in the dtype it came in."""
        of_attention = self.self_attn.o_proj(attended.reshape(*x.shape[:-1], -1))
        x = checkpoint_name(x + of_attention.astype(x.dtype), STREAM)
        of_mlp = self.mlp(self.post_attention_layernorm(x))
        return constrain_stream(x + of_mlp.astype(x.dtype))
