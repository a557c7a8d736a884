"""The DINOv2 vision transformer (arXiv 2304.07193), without registers; names as published."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from balcap_jax.models.attention.plain import Attend
from balcap_jax.models.decoder.layers import LayerNorm, Linear
from balcap_jax.models.llava.blocks import MLP, attend_among_all
from balcap_jax.models.llava.tower_config import Dinov2Config


class Dinov2Patches(nnx.Module):
    """Patches by one matmul, a strided convolution in Hugging Face."""

    def __init__(
        self, config: Dinov2Config, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        self.projection = Linear(
            config.patch_dim, config.hidden_size, use_bias=True, dtype=dtype, std=std, rngs=rngs
        )


class Dinov2Embeddings(nnx.Module):
    """Patches behind the class token, with their positions."""

    def __init__(
        self, config: Dinov2Config, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size = config.hidden_size
        normal = nnx.initializers.normal(std)
        self.dtype = dtype
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, size)))
        # Of pre-training and never computed with; a weight of the published files.
        self.mask_token = nnx.Param(jnp.zeros((1, size))) if config.use_mask_token else None
        self.patch_embeddings = Dinov2Patches(config, dtype=dtype, std=std, rngs=rngs)
        self.position_embeddings = nnx.Param(normal(rngs.params(), (1, config.patches + 1, size)))

    def __call__(self, pixels: Float[Array, "i p c"]) -> Float[Array, "i q d"]:
        """[class token, patches] of each of i images; q = p + 1."""
        patches = self.patch_embeddings.projection(pixels)
        first = self.cls_token[...].astype(self.dtype)
        first = jnp.broadcast_to(first, (patches.shape[0], 1, patches.shape[2]))
        positions = self.position_embeddings[...].astype(self.dtype)
        return jnp.concatenate([first, patches], axis=1) + positions


class Dinov2Projections(nnx.Module):
    """Query, key and value."""

    def __init__(
        self, config: Dinov2Config, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size = config.hidden_size
        options = {"use_bias": config.qkv_bias, "dtype": dtype, "std": std, "rngs": rngs}
        self.query = Linear(size, size, **options)
        self.key = Linear(size, size, **options)
        self.value = Linear(size, size, **options)


class Dinov2Output(nnx.Module):
    """The projection after attention."""

    def __init__(
        self, config: Dinov2Config, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size = config.hidden_size
        self.dense = Linear(size, size, use_bias=True, dtype=dtype, std=std, rngs=rngs)


class Dinov2Attention(nnx.Module):
    """Multi-head attention among all tokens of an image."""

    def __init__(
        self, config: Dinov2Config, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        self.num_heads = config.num_attention_heads
        self.attention = Dinov2Projections(config, dtype=dtype, std=std, rngs=rngs)
        self.output = Dinov2Output(config, dtype=dtype, std=std, rngs=rngs)

    def __call__(self, x: Float[Array, "i q d"], attend: Attend) -> Float[Array, "i q d"]:
        own = self.attention
        projections = (own.query, own.key, own.value)
        return self.output.dense(
            attend_among_all(x, projections, heads=self.num_heads, attend=attend)
        )


class LayerScale(nnx.Module):
    """x times a learned factor per channel."""

    def __init__(self, size: int, *, value: float) -> None:
        self.lambda1 = nnx.Param(jnp.full(size, value, jnp.float32))

    def __call__(self, x: Float[Array, "i q d"]) -> Float[Array, "i q d"]:
        return x * self.lambda1[...].astype(x.dtype)[None, None]


class Dinov2Layer(nnx.Module):
    """x + layer_scale1(attention(norm1(x))), then x + layer_scale2(mlp(norm2(x)))."""

    def __init__(
        self, config: Dinov2Config, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size, eps, value = config.hidden_size, config.layer_norm_eps, config.layerscale_value
        self.norm1 = LayerNorm(size, eps=eps)
        self.attention = Dinov2Attention(config, dtype=dtype, std=std, rngs=rngs)
        self.layer_scale1 = LayerScale(size, value=value)
        self.norm2 = LayerNorm(size, eps=eps)
        self.mlp = MLP(config, dtype=dtype, std=std, rngs=rngs)
        self.layer_scale2 = LayerScale(size, value=value)

    def __call__(self, x: Float[Array, "i q d"], attend: Attend) -> Float[Array, "i q d"]:
        x = x + self.layer_scale1(self.attention(self.norm1(x), attend))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))
