"""The tree of a policy's parameters: shapes, places in it, and the layers of its stacks."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax

from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.policy import VisionLanguagePolicy


@lru_cache(maxsize=8)  # tracing `init` takes longer than reading a small file
def shapes_of(policy: VisionLanguagePolicy) -> Params:
    """Shape and dtype of each parameter that `policy.init` gives; not to be changed."""
    return jax.eval_shape(policy.init, jax.random.key(0))


def get_at(params: Params, path: Sequence[str]) -> Any:
    """What is at `path`: a leaf or a dict."""
    for key in path:
        params = params[key]
    return params


def set_at(params: Params, path: Sequence[str], value: Any) -> None:
    """Puts `value` at `path`, in new dicts where there are none."""
    for key in path[:-1]:
        params = params.setdefault(key, {})
    params[path[-1]] = value


def stack_of(policy: VisionLanguagePolicy, path: str) -> str | None:
    """The stack of layers that a dotted path lies in."""
    return next((stack for stack in policy.stacks if path.startswith(f"{stack}.")), None)


def layer_names(policy: VisionLanguagePolicy, path: str) -> list[str]:
    """The dotted path as files have it, with the number of the layer: one per layer of its stack,
    itself where it lies in none.
    """
    stack = stack_of(policy, path)
    if stack is None:
        return [path]
    count = policy.stacks[stack]
    return [path.replace(f"{stack}.", f"{stack}.{i}.", 1) for i in range(count)]
