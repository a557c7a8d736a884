"""The vision tower of Qwen2.5-VL: patches of any number of images to tokens of the decoder."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from balcap_jax.models.attention.plain import Attend
from balcap_jax.models.decoder.layers import GatedMLP, Linear, RMSNorm
from balcap_jax.models.decoder.rotary import rotary_frequencies, rotate
from balcap_jax.models.inputs import AnyArray
from balcap_jax.models.qwen2_5_vl.config import VisionConfig

# Hugging Face fixes it in code, not in config.json.
EPS = 1e-6


class PatchEmbed(nnx.Module):
    """The strided 3-D convolution of Hugging Face as one matmul on flattened patches."""

    def __init__(
        self, config: VisionConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        self.proj = Linear(
            config.patch_dim, config.hidden_size, use_bias=False, dtype=dtype, std=std, rngs=rngs
        )

    def __call__(self, pixels: Float[AnyArray, "b s c"]) -> Float[Array, "b s d"]:
        return self.proj(pixels)


class VisionAttention(nnx.Module):
    """The projections of multi-head attention; which patches attend to which is the caller's."""

    def __init__(
        self, config: VisionConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size = config.hidden_size
        self.heads = config.num_heads
        self.qkv = Linear(size, 3 * size, use_bias=True, dtype=dtype, std=std, rngs=rngs)
        self.proj = Linear(size, size, use_bias=True, dtype=dtype, std=std, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        angles: Float[Array, "b s half"],
        attend: Attend,
    ) -> Float[Array, "b s d"]:
        B, S, D = x.shape
        qkv = self.qkv(x).reshape(B, S, 3, self.heads, D // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = attend(rotate(q, angles), rotate(k, angles), v)
        return self.proj(out.reshape(B, S, D))


class VisionBlock(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(
        self, config: VisionConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        size = config.hidden_size
        self.norm1 = RMSNorm(size, eps=EPS)
        self.norm2 = RMSNorm(size, eps=EPS)
        self.attn = VisionAttention(config, dtype=dtype, std=std, rngs=rngs)
        self.mlp = GatedMLP(
            size, config.intermediate_size, use_bias=True, dtype=dtype, std=std, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "b s d"],
        angles: Float[Array, "b s half"],
        attend: Attend,
    ) -> Float[Array, "b s d"]:
        x = x + self.attn(self.norm1(x), angles, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """merge x merge neighbouring patches to one token of the decoder's width."""

    def __init__(
        self, config: VisionConfig, out: int, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        self.size = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, eps=EPS)
        # Named by their places in Hugging Face's nn.Sequential; place 1 is the GELU.
        self.mlp = nnx.Dict(
            {
                "0": Linear(self.size, self.size, use_bias=True, dtype=dtype, std=std, rngs=rngs),
                "2": Linear(self.size, out, use_bias=True, dtype=dtype, std=std, rngs=rngs),
            }
        )

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b m e"]:
        x = self.ln_q(x).reshape(x.shape[0], -1, self.size)
        return self.mlp["2"](jax.nn.gelu(self.mlp["0"](x), approximate=False))


def patch_angles(
    positions: Int[AnyArray, "b s 2"], *, head_dim: int, theta: float
) -> Float[Array, "b s half"]:
    """2-D rotary angles: half of the pairs turns with the row, the other half with the column."""
    frequencies = rotary_frequencies(head_dim // 2, theta)[None, None, None]
    angles = jnp.asarray(positions)[..., None].astype(jnp.float32) * frequencies
    return angles.reshape(*positions.shape[:2], head_dim // 2)
