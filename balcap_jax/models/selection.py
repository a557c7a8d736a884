"""Which leaves of `params` are meant: by the names of parts, or by paths with wildcards."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.param_tree import shapes_of
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import path_name

EVERYTHING = ("*",)


def selects(patterns: Iterable[str], path: str) -> bool:
    """Whether a pattern matches the leaf at `path`, or what it lies in.

    Args:
      patterns: paths, in which * stands for anything: "visual", "*/mlp/*_proj".
      path: "visual/merger/mlp/0/weight".
    """
    return any(fnmatchcase(path, p) or fnmatchcase(path, f"{p}/*") for p in patterns)


def part_of(params: Mapping[str, Any], keep: Callable[[str], bool]) -> dict[str, Any]:
    """The leaves of a nested dict whose path `keep` takes; dicts without any are left out."""

    def kept(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
        found = {}
        for name, value in tree.items():
            path = f"{where}{name}"
            if isinstance(value, Mapping):
                if inner := kept(value, f"{path}/"):
                    found[name] = inner
            elif keep(path):
                found[name] = value
        return found

    return kept(params, "")


def overlaid(params: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with the leaves of `part` in the place of its own, or beside them."""
    joined = dict(params)
    for name, value in part.items():
        under = joined.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            joined[name] = overlaid(under, value)
        else:
            joined[name] = value
    return joined


def patterns_of(policy: VisionLanguagePolicy, names: Sequence[str], *, setting: str) -> list[str]:
    """The patterns that names of parts ("projector", "tower", "decoder") and paths stand for.

    Args:
      setting: where the names are given, for the message.

    Raises:
      UserError: a name matches nothing of this policy.
    """
    paths = leaf_paths(shapes_of(policy))
    patterns: list[str] = []
    for name in names:
        meant = policy.parts.get(name, (name,))
        if not any(selects(meant, path) for path in paths):
            inner = {"/".join(p.split("/")[:n]) for p in paths for n in range(1, p.count("/") + 2)}
            raise UserError(
                f"{setting} holds {name!r}, which is no part of the policy (they are "
                f"{', '.join(policy.parts)}) and matches no path in it"
                f"{did_you_mean(name, {*policy.parts, *inner})}"
            )
        patterns += meant
    return patterns


def trained_patterns(
    policy: VisionLanguagePolicy, names: Sequence[str], *, train_vision: bool
) -> tuple[str, ...]:
    """The patterns of what trains: the names where some are given, else the decoder, and with
    `train_vision` everything.

    Raises:
      UserError: see `patterns_of`.
    """
    if names:
        return tuple(patterns_of(policy, names, setting="model.train"))
    return EVERYTHING if train_vision else policy.parts["decoder"]


def trains_vision(policy: VisionLanguagePolicy, params: Params, trained: Sequence[str]) -> bool:
    """Whether something that makes image features trains: they must be made within each update."""
    vision = {name: params[name] for name in policy.vision_paths}
    return any(selects(trained, path) for path in leaf_paths(vision))


def leaf_paths(params: Any) -> list[str]:
    """The path of every leaf, as "language_model/norm/scale"."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
