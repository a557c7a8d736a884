"""Rematerialisation: what a layer keeps for the backward pass; the rest is computed again."""

import math
from collections.abc import Callable
from typing import Any

import jax

from balcap_jax.errors import UserError
from balcap_jax.models.attention.plain import OUTPUT

STREAM = "stream"  # the residual stream within a layer, by its name for checkpoints

# A matmul that gives so many times what it reads is the second one of an adapter.
_WIDENING = 8


def _is_attention(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """What attention gives: the named results, and cuDNN's, which JAX does not name."""
    if primitive.name == "name":
        return parameters["name"] == OUTPUT
    return primitive.name.startswith("dot_product_attention_fwd")


def _is_dot(primitive: Any, *shapes: Any, **parameters: Any) -> bool:
    """The outputs of matmuls with weights; not the scores of plain attention, and not what an
    adapter adds: kept beside the output that it is added to, it would double what is kept, and it
    is quickly made again from a few numbers per token.
    """
    if not jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
        primitive, *shapes, **parameters
    ):
        return False
    ((_, contracted), _) = parameters["dimension_numbers"]
    weight = shapes[1].shape
    summed = math.prod(weight[axis] for axis in contracted)
    return math.prod(weight) < _WIDENING * summed * summed


def _is_stream(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """The residual stream between attention and MLP, which devices of `tensor` have summed."""
    return primitive.name == "name" and parameters["name"] == STREAM


# From most memory to least; "none" keeps everything.
POLICIES = {
    "none": None,
    "dots": _is_dot,
    # The attended values, so that a fused attention kernel does not run a second time.
    "attention": _is_attention,
    # What is sent between devices is not sent again for the backward pass.
    "sums": _is_stream,
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
