"""Building blocks of the vision tower and the decoder, and how module definitions meet `params`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from balcap_jax.models.decoder.lora import Lora, Params, adapter, take_adapters
from balcap_jax.models.decoder.matmul import matmul
from balcap_jax.models.inputs import AnyArray

# By their names in Hugging Face's config.json.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Definition:
    """A module's structure without its weights: `definition(params)` is the module to call.

    Flax NNX modules only describe the computation; the weights live in a nested dict. `build` takes
    `nnx.Rngs` and makes the module.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]) -> None:
        self._build = build
        self.lora: Lora | None = None  # of the adapters that `params` may have
        self._graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        self._structure = jax.tree.structure(nnx.to_pure_dict(state))

    def init(self, key: jax.Array) -> Params:
        """Fresh weights."""
        return nnx.to_pure_dict(nnx.split(self._build(nnx.Rngs(key)))[1])

    def init_stacked(self, key: jax.Array, count: int) -> Params:
        """Fresh weights of `count` such modules, stacked on a leading axis."""
        return jax.vmap(self.init)(jax.random.split(key, count))

    def __call__(self, params: Params) -> Any:
        weights, adapters = take_adapters(params)
        # nnx.merge pairs leaves by position: other names in the same number would go unnoticed.
        assert jax.tree.structure(weights) == self._structure, "params do not fit the module"
        module = nnx.merge(self._graph, weights)
        for path, leaves in adapters.items():
            assert self.lora is not None, "params have adapters that the policy does not know"
            linear = module
            for name in path:
                linear = linear[name] if isinstance(linear, nnx.Dict) else getattr(linear, name)
            linear.adapter = adapter(leaves, self.lora, dtype=linear.dtype)
        return module


class RMSNorm(nnx.Module):
    """x / rms(x) * scale; the statistics in float32 whatever the dtype of `x`."""

    def __init__(self, size: int, *, eps: float) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return wide.astype(x.dtype) * scale


class LayerNorm(nnx.Module):
    """(x - mean(x)) / std(x) * scale + bias; all of it in float32 whatever the dtype of `x`."""

    def __init__(self, size: int, *, eps: float) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(size, jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        scale, bias = (
            weight[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
            for weight in (self.scale, self.bias)
        )
        return (wide * scale + bias).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(
        self,
        size: int,
        hidden: int,
        *,
        use_bias: bool,
        dtype: DTypeLike,
        std: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.gate_proj = Linear(size, hidden, use_bias=use_bias, dtype=dtype, std=std, rngs=rngs)
        self.up_proj = Linear(size, hidden, use_bias=use_bias, dtype=dtype, std=std, rngs=rngs)
        self.down_proj = Linear(hidden, size, use_bias=use_bias, dtype=dtype, std=std, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = x.astype(self.gate_proj.dtype)  # once, so that one gradient is summed over `tensor`
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Linear(nnx.Module):
    """x @ weight.T + bias, computed in `dtype`; starts normal(std) with zero bias.

    The weight is [out, size], as torch and so every file of Hugging Face has it. What an `adapter`
    makes of the rows of x is added.
    """

    def __init__(
        self, size: int, out: int, *, use_bias: bool, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        self.dtype = dtype
        self.weight = nnx.Param(nnx.initializers.normal(std)(rngs.params(), (size, out)).T)
        self.bias = nnx.Param(jnp.zeros(out, jnp.float32)) if use_bias else None
        self.adapter: Callable[[Array], Array] | None = None

    def __call__(self, x: Float[AnyArray, "*b d"]) -> Float[Array, "*b f"]:
        weight = self.weight[...].astype(self.dtype)
        rows = jnp.asarray(x).astype(self.dtype).reshape(-1, x.shape[-1])
        out = matmul(rows, weight)
        if self.bias is not None:
            out = out + self.bias[...].astype(self.dtype)[None]
        if self.adapter is not None:
            out = out + self.adapter(rows)
        return out.reshape(*x.shape[:-1], weight.shape[0])
