"""New adapters of a policy: on which layers, of which shapes, from which numbers."""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.decoder.lora import A, B
from balcap_jax.models.families import family_of
from balcap_jax.models.param_tree import get_at, set_at, shapes_of
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.selection import leaf_paths, selects
from balcap_jax.parallel.sharding import param_shardings


def adapted_paths(policy: VisionLanguagePolicy, targets: Sequence[str]) -> tuple[str, ...]:
    """The layers that targets mean, by their paths in `params`.

    Args:
      targets: "decoder", "projector" or "tower" for all layers of a part; a layer's last name,
        "q_proj", for those of the decoder alone; a path, in which * stands for anything. None: the
        matmuls of the decoder.

    Raises:
      UserError: a target matches no layer (names the nearest).
    """
    linear = linear_layers(policy)
    if not targets:
        return family_of(policy.config).target_modules
    found: list[str] = []
    for target in targets:
        # A bare name would also mean layers of the tower, which has some of the same names.
        patterns = policy.parts.get(
            target, (target if "/" in target else f"language_model/*/{target}",)
        )
        matching = [path for path in linear if selects(patterns, path)]
        if not matching:
            decoder = {p.rpartition("/")[2] for p in linear if selects(policy.parts["decoder"], p)}
            known = {*policy.parts, *linear, *decoder}
            names = ", ".join([*policy.parts, *sorted(decoder)])
            near = did_you_mean(target, known)
            raise UserError(
                f"model.lora.targets holds {target!r}, which matches no layer that takes an "
                f"adapter{near if near != '.' else f'; choose of {names}, or give a path.'}"
            )
        found += [path for path in matching if path not in found]
    return tuple(found)


def linear_layers(policy: VisionLanguagePolicy) -> list[str]:
    """Paths of the layers that may have an adapter: not embeddings, head and convolution."""
    convolution = family_of(policy.config).keys(policy.config).convolution.replace(".", "/")
    weights = [path for path in leaf_paths(shapes_of(policy)) if path.endswith("/weight")]
    layers = [path.removesuffix("/weight") for path in weights]
    return [path for path in layers if path not in ("lm_head", convolution)]


def adapter_shapes(policy: VisionLanguagePolicy, paths: Sequence[str], *, rank: int) -> Params:
    """Shapes of the adapters on these layers, nested as in `params`, float32.

    Raises:
      UserError: the rank is above the width of one of them.
    """
    shapes: Params = {}
    for path in paths:
        *layers, out, size = get_at(shapes_of(policy), path.split("/"))["weight"].shape
        if rank > min(out, size):
            raise UserError(
                f"model.lora.rank={rank} is above the width of {path}, whose weight is {out} x "
                f"{size}; set --model.lora.rank {min(out, size)} or less, or leave it out of "
                "model.lora.targets."
            )
        leaves = {
            A: jax.ShapeDtypeStruct((*layers, rank, size), jnp.float32),
            B: jax.ShapeDtypeStruct((*layers, out, rank), jnp.float32),
        }
        set_at(shapes, path.split("/"), leaves)
    return shapes


def init_adapters(shapes: Params, key: PRNGKeyArray, *, mesh: Mesh | None = None) -> Params:
    """Adapters that change nothing yet, as PEFT starts them: B zero, A uniform within
    1 / sqrt(in) (Kaiming's rule with a = sqrt(5)).

    Each layer's numbers depend on the key and its path alone.
    """

    def draw(path: tuple, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith(B):
            return jnp.zeros(leaf.shape, leaf.dtype)
        own = jax.random.fold_in(key, zlib.crc32(name.encode()) >> 1)
        bound = leaf.shape[-1] ** -0.5
        return jax.random.uniform(own, leaf.shape, leaf.dtype, -bound, bound)

    def all_of() -> Params:
        return jax.tree_util.tree_map_with_path(draw, shapes)

    places = None if mesh is None else param_shardings(mesh, shapes)
    return jax.jit(all_of, out_shardings=places)()
