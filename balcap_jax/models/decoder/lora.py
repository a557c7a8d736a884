"""Low-rank adapters (LoRA, arXiv:2106.09685) beside the weights they change.

The dict of an adapted linear layer has "lora_A" [r, in] and "lora_B" [out, r] beside its "weight"
[out, in], stacked as that is, float32 whatever the weight is. The layer adds scale * (x A^T) B^T:
alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv:2312.03732). Being leaves of `params`,
adapters go where weights go: through scans, rematerialisation, meshes and checkpoints.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from balcap_jax.models.decoder.matmul import matmul

Params = dict[str, Any]

A, B = "lora_A", "lora_B"
KEY = "lora_key"  # key data of a layer's dropout; within one update only
LEAVES = (A, B, KEY)
TRAINED = (f"*/{A}", f"*/{B}")  # patterns of the paths


class Lora(NamedTuple):
    """What is the same for all adapters of a policy; their ranks are those of their shapes.

    Attributes:
      dropout: share of an adapter's inputs that an update leaves out; the rest is scaled up.
    """

    alpha: float
    rslora: bool = False
    dropout: float = 0.0

    def scale(self, rank: int) -> float:
        """The factor of B A."""
        return self.alpha / (rank**0.5 if self.rslora else rank)


def adapter(
    leaves: Mapping[str, Array], lora: Lora, *, dtype: DTypeLike
) -> Callable[[Float[Array, "n d"]], Float[Array, "n f"]]:
    """What an adapted layer adds, of its input rows; computed in `dtype`."""
    down, up = leaves[A].astype(dtype), leaves[B].astype(dtype)
    scale = lora.scale(down.shape[0])

    def added(rows: Float[Array, "n d"]) -> Float[Array, "n f"]:
        if KEY in leaves:
            rows = _dropout(rows, leaves[KEY], lora.dropout)
        return matmul(matmul(rows, down) * scale, up)

    return added


def _dropout(rows: Float[Array, "n d"], key_data: Array, rate: float) -> Float[Array, "n d"]:
    kept = jax.random.bernoulli(jax.random.wrap_key_data(key_data), 1 - rate, rows.shape)
    return jnp.where(kept, rows / (1 - rate), 0)


def take_adapters(params: Params) -> tuple[Params, dict[tuple[str, ...], Params]]:
    """`params` without adapters, and the leaves of each adapter by the path of its layer."""
    found: dict[tuple[str, ...], Params] = {}

    def rest(tree: Params, path: tuple[str, ...]) -> Params:
        if own := {name: tree[name] for name in LEAVES if name in tree}:
            found[path] = own
        return {
            name: rest(value, (*path, name)) if isinstance(value, dict) else value
            for name, value in tree.items()
            if name not in LEAVES
        }

    return rest(params, ()), found


def without_adapters(params: Params) -> Params:
    """The policy that the adapters change: the same arrays, no copies."""
    return take_adapters(params)[0]


def merge_adapters(params: Params, lora: Lora | None) -> Params:
    """`params` with W + scale B A in place of each adapted weight: the sum in float32, then in the
    dtype of W. Layers may be stacked or not.
    """

    def merged(tree: Params) -> Params:
        if A not in tree:
            return {k: merged(v) if isinstance(v, dict) else v for k, v in tree.items()}
        assert lora is not None, "params have adapters that the policy does not know"
        weight = merge(tree["weight"], tree[A], tree[B], lora)
        return {k: v for k, v in tree.items() if k not in LEAVES} | {"weight": weight}

    return merged(params)


def merge(
    weight: Float[Array, "*l out d"],
    a: Float[Array, "*l r d"],
    b: Float[Array, "*l out r"],
    lora: Lora,
) -> Float[Array, "*l out d"]:
    """W + scale B A, summed in float32."""
    change = jnp.einsum("...or,...ri->...oi", b.astype(jnp.float32), a.astype(jnp.float32))
    return (weight.astype(jnp.float32) + lora.scale(a.shape[-2]) * change).astype(weight.dtype)


def with_dropout_keys(params: Params, key: PRNGKeyArray) -> Params:
    """`params` whose adapted layers each have a key of their own to drop inputs by."""
    _, adapters = take_adapters(params)
    keys = iter(jax.random.split(key, max(1, len(adapters))))

    def keyed(tree: Params, path: tuple[str, ...]) -> Params:
        tree = {k: keyed(v, (*path, k)) if isinstance(v, dict) else v for k, v in tree.items()}
        if path not in adapters:
            return tree
        own = next(keys)
        layers = tree[A].shape[:-2]
        return tree | {KEY: jax.random.key_data(jax.random.split(own, layers) if layers else own)}

    return keyed(params, ())


def adapted_modules(params: Params) -> Iterator[tuple[str, Params]]:
    """Path, "language_model/layers/mlp/up_proj", and leaves of each adapter."""
    for path, leaves in take_adapters(params)[1].items():
        yield "/".join(path), leaves
