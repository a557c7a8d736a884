"""Decoding: one token of every completion, with the decoder's weights laid out for it.

Activations are features first, [d n] with a column per completion: `weight @ x` reads a weight as
it lies, and the next matmul reads what it writes. Of rows [n d] XLA on CPUs transposes what goes in
or comes out of each matmul, which took a third of a step; on other devices it chooses the layout
whatever the order of the letters.

Letters: b batch, g group, n completions (b * g) as columns, p prefix, s slots of a completion's
cache, d width, k key-value heads, r query heads of one of them, h head size, f mlp, v vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.models.attention.plain import KV, merge
from balcap_jax.models.config import DecoderConfig
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.decoder.slots import Slots
from balcap_jax.parallel.sharding import BATCH_AXES, constrain, tensor_shards

Cache = tuple[Slots, ...]  # an entry per layer


class Projection(NamedTuple):
    """weight @ x + bias."""

    weight: Float[Array, "*f d"]
    bias: Float[Array, "*f"] | None

    def __call__(self, x: Float[Array, "d n"]) -> Float[Array, "*f n"]:
        out = jnp.einsum("...d,dn->...n", self.weight, x.astype(self.weight.dtype))
        return out if self.bias is None else out + self.bias[..., None]


class LayerWeights(NamedTuple):
    """One decoder layer: what reads the same input is one matmul.

    Attributes:
      qkv: [k, (r + 2) * h, d]; of each key-value head its queries, its keys, its values. So a cut
        by key-value heads, as `tensor` makes it, leaves the parts whole.
      gate_up: [2, f, d].
    """

    input_layernorm: Float[Array, " d"]
    qkv: Projection
    o: Projection
    post_attention_layernorm: Float[Array, " d"]
    gate_up: Projection
    down: Projection


class DecodeWeights(NamedTuple):
    """The decoder, matrices in the dtype of matmuls.

    Attributes:
      embedding, head: [v, d], one array where they are tied.
    """

    embedding: Float[Array, "v d"]
    layers: tuple[LayerWeights, ...]
    norm: Float[Array, " d"]
    head: Float[Array, "v d"]


class Rotation(NamedTuple):
    """Rotary embedding of one position per completion: `rotary.rotate`, features first."""

    cos: Float[Array, "half n"]
    sin: Float[Array, "half n"]

    @classmethod
    def of(cls, angles: Float[Array, "half n"]) -> "Rotation":
        # Behind a barrier, or XLA computes them again for each number of each layer that is turned.
        return cls(*jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles))))

    def __call__(self, x: Float[Array, "k m h n"]) -> Float[Array, "k m h n"]:
        cos, sin = self.cos[None, None], self.sin[None, None]
        a, b = jnp.split(x.astype(jnp.float32), 2, axis=2)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2).astype(x.dtype)


def layer_weights(layer: Params, config: DecoderConfig) -> LayerWeights:
    """`LayerWeights` of one layer's `params`, whose matrices have the dtype of matmuls."""
    attention, mlp, heads = layer["self_attn"], layer["mlp"], config.num_key_value_heads

    def joined(parts: Sequence[Array]) -> Array:
        """[k, rows of all parts for one key-value head, ...]."""
        by_heads = [x.reshape(heads, -1, *x.shape[1:]) for x in parts]
        return constrain(jnp.concatenate(by_heads, axis=1), *_rows_over_tensor(heads))

    def stacked(parts: Sequence[Array]) -> Array:
        return constrain(jnp.stack(parts), None, "tensor")

    return LayerWeights(
        input_layernorm=layer["input_layernorm"]["scale"],
        qkv=fuse_qkv(joined, attention),
        o=_fuse(lambda parts: parts[0], attention, ("o_proj",)),
        post_attention_layernorm=layer["post_attention_layernorm"]["scale"],
        gate_up=_fuse(stacked, mlp, ("gate_proj", "up_proj")),
        down=_fuse(lambda parts: parts[0], mlp, ("down_proj",)),
    )


def fuse_qkv(join: Callable, attention: Params) -> Projection:
    """The projections to queries, keys and values as one, joined by `join`."""
    return _fuse(join, attention, ("q_proj", "k_proj", "v_proj"))


def _fuse(join: Callable, module: Params, names: Sequence[str]) -> Projection:
    parts = [module[name] for name in names]
    return Projection(
        join([x["weight"] for x in parts]),
        join([x["bias"] for x in parts]) if "bias" in parts[0] else None,
    )


def _rows_over_tensor(heads: int) -> tuple[str | None, ...]:
    """Key-value heads over `tensor`; the rows of each where it does not divide their number."""
    return ("tensor",) if heads % tensor_shards() == 0 else (None, "tensor")


def decode_layer(
    weights: LayerWeights,
    x: Float[Array, "d n"],
    rotation: Rotation,
    prompt: Slots,
    prompt_mask: Bool[Array, "b p"],
    past: Slots,
    step: Int[Array, ""] | int,
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "d n"], Slots]:
    """The residual stream after one layer, in the dtype it came in, and the cache with slot `step`
    written.
    """
    q, own = _project(weights, x, rotation, config)
    past = past.write(own, step)
    seen = jnp.arange(past.v.shape[-2]) <= step
    attended = attend_prompt_and_slots(q, prompt, prompt_mask, past, seen)
    columns = attended.transpose(1, 2, 3, 0).reshape(-1, x.shape[1])
    x = x + weights.o(columns).astype(x.dtype)
    gate, up = weights.gate_up(rms_norm(x, weights.post_attention_layernorm, config.rms_norm_eps))
    of_mlp = weights.down(jax.nn.silu(gate) * up)
    return constrain(x + of_mlp.astype(x.dtype), None, BATCH_AXES), past


def _project(
    weights: LayerWeights, x: Float[Array, "d n"], rotation: Rotation, config: DecoderConfig
) -> tuple[Float[Array, "n k r h"], KV]:
    """Queries, and keys with values [n k h], rotary embedding applied."""
    K, H = config.num_key_value_heads, config.head_dim
    normed = rms_norm(x, weights.input_layernorm, config.rms_norm_eps)
    heads = weights.qkv(normed).reshape(K, -1, H, x.shape[1])
    # Heads that `tensor` does not divide are whole on every device, as their cache is.
    heads = constrain(heads, "tensor", None, None, BATCH_AXES)
    turned = rotation(heads[:, :-1])
    if config.rope_scaling is not None:
        turned = turned * jnp.asarray(config.rope_scaling.attention_factor, turned.dtype)
    turned = turned.transpose(3, 0, 1, 2)
    return turned[:, :, :-1], KV(turned[:, :, -1], heads[:, -1].transpose(2, 0, 1))


def attend_prompt_and_slots(
    q: Float[Array, "n k r h"],
    prompt: Slots,
    prompt_mask: Bool[Array, "b p"],
    past: Slots,
    seen: Bool[Array, " s"],
) -> Float[Array, "n k r h"]:
    """`attend_prompt_and_past` for one query per completion, keys and values by heads.

    Args:
      prompt: of b prompts, not copied for the group.
      seen: the slots that are written.
    """
    B, (N, K, R, H) = len(prompt_mask), q.shape
    G = N // B
    together = q.reshape(B, G, K, R, H).swapaxes(1, 2).reshape(B, K, G * R, H)
    of_prompt = prompt.attended_by(together, prompt_mask[:, None, None, :])

    def apart(x):  # [b k (g r) *] -> [n k r *]
        by_group = x.reshape(B, K, G, R, *x.shape[3:])
        return by_group.swapaxes(1, 2).reshape(N, K, R, *x.shape[3:])

    return merge(*map(apart, of_prompt), *past.attended_by(q, seen)).astype(q.dtype)


def rms_norm(x: Float[Array, "d n"], scale: Float[Array, " d"], eps: float) -> Array:
    """`layers.RMSNorm` of columns, rounded where that rounds."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=0, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)[:, None]
