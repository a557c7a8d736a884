"""The CLIP vision tower (arXiv 2103.00020)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from balcap_jax.models.attention.plain import Attend
from balcap_jax.models.decoder.layers import LayerNorm, Linear
from balcap_jax.models.llava.blocks import MLP, attend_among_all
from balcap_jax.models.llava.tower_config import ClipConfig


class ClipEmbeddings(nnx.Module):
    """Patches by one matmul (a strided convolution in Hugging Face), class token, positions."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        normal = nnx.initializers.normal(std)
        self.dtype = dtype
        self.class_embedding = nnx.Param(normal(rngs.params(), (size,)))
        self.patch_embedding = Linear(
            config.patch_dim, size, use_bias=False, dtype=dtype, std=std, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            config.patches + 1, size, embedding_init=normal, rngs=rngs
        )

    def __call__(self, pixels: Float[Array, "i p c"]) -> Float[Array, "i q d"]:
        """[class token, patches] of each of i images; q = p + 1."""
        patches = self.patch_embedding(pixels)
        first = self.class_embedding[...].astype(self.dtype)[None, None]
        first = jnp.broadcast_to(first, (patches.shape[0], 1, patches.shape[2]))
        positions = self.position_embedding.embedding[...].astype(self.dtype)
        return jnp.concatenate([first, patches], axis=1) + positions[None]


class ClipAttention(nnx.Module):
    """The projections of multi-head attention among all tokens of an image."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        options = {"use_bias": True, "dtype": dtype, "std": std, "rngs": rngs}
        self.q_proj = Linear(size, size, **options)
        self.k_proj = Linear(size, size, **options)
        self.v_proj = Linear(size, size, **options)
        self.out_proj = Linear(size, size, **options)

    def __call__(self, x: Float[Array, "i q d"], attend: Attend) -> Float[Array, "i q d"]:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        return self.out_proj(attend_among_all(x, projections, heads=self.num_heads, attend=attend))


class ClipLayer(nnx.Module):
    """x + self_attn(layer_norm1(x)), then x + mlp(layer_norm2(x))."""

    def __init__(self, config: ClipConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs) -> None:
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ClipAttention(config, dtype=dtype, std=std, rngs=rngs)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config, dtype=dtype, std=std, rngs=rngs)

    def __call__(self, x: Float[Array, "i q d"], attend: Attend) -> Float[Array, "i q d"]:
        x = x + self.self_attn(self.layer_norm1(x), attend)
        return x + self.mlp(self.layer_norm2(x))
