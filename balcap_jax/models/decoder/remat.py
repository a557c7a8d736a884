"""Rematerialisation: what a layer keeps for the backward pass; the rest is computed again."""

from collections.abc import Callable
from typing import Any

import jax

from balcap_jax.errors import UserError
from balcap_jax.models.attention.plain import OUTPUT


def _is_attention(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """What attention gives: the named results, and cuDNN's, which JAX does not name."""
    if primitive.name == "name":
        return parameters["name"] == OUTPUT
    return primitive.name.startswith("dot_product_attention_fwd")


# From most memory to least; "none" keeps everything.
POLICIES = {
    "none": None,
    # The outputs of matmuls with weights; not the scores of plain attention.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # The attended values, so that a fused attention kernel does not run a second time.
    "attention": _is_attention,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def check_remat(name: str) -> None:
    """Raises a UserError if there is no such policy."""
    if name not in POLICIES:
        raise UserError(f"remat={name!r} must be one of {', '.join(POLICIES)}; choose one.")


def rematerialise(name: str, layer: Callable) -> Callable:
    """The body of a scan over layers, of which the backward pass keeps what `name` says."""
    if name == "none":
        return layer
    # Inside a scan XLA cannot merge the recomputation with the first computation anyway.
    return jax.checkpoint(layer, prevent_cse=False, policy=POLICIES[name])
