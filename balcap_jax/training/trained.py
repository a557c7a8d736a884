"""What a run trains: parts of the policy, or adapters on it; and the parameters it starts from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.sections import ModelConfig
from balcap_jax.errors import UserError
from balcap_jax.models.adapters import adapted_paths, adapter_shapes, init_adapters
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.decoder.lora import TRAINED, Lora
from balcap_jax.models.families import load_config, make_policy
from balcap_jax.models.hf.adapter_config import is_adapter, read_adapter_config
from balcap_jax.models.hf.adapters import load_adapter, paths_in
from balcap_jax.models.hf.folders import SCRATCH, adapter_folder
from balcap_jax.models.hf.weights import load_weights
from balcap_jax.models.param_tree import shapes_of
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.selection import (
    leaf_paths,
    overlaid,
    patterns_of,
    selects,
    trained_patterns,
)
from balcap_jax.rl.train_state import split_trainable


class Adapters(NamedTuple):
    """The adapters of a run: on which layers, and what they are made of."""

    paths: tuple[str, ...]
    rank: int
    lora: Lora


def adapters_of(model: ModelConfig, policy: VisionLanguagePolicy) -> Adapters | None:
    """The adapters that these settings ask for; None where whole weights are trained.

    Raises:
      UserError: a target matches nothing, or `model.lora.start` is no adapter for this policy.
    """
    lora = model.lora
    if lora.start:
        folder = adapter_folder(lora.start)
        start = read_adapter_config(folder)
        settings = start.lora._replace(dropout=lora.dropout)
        return Adapters(tuple(paths_in(folder, policy)), start.rank, settings)
    if not lora.rank:
        return None
    return Adapters(
        adapted_paths(policy, lora.targets),
        lora.rank,
        Lora(lora.alpha, rslora=lora.rslora, dropout=lora.dropout),
    )


def with_lora(model: ModelConfig, policy: VisionLanguagePolicy) -> VisionLanguagePolicy:
    """`policy` as it computes with the adapters of these settings."""
    adapters = adapters_of(model, policy)
    return policy if adapters is None else dataclasses.replace(policy, lora=adapters.lora)


def trained_of(config: TrainConfig | SFTConfig, policy: VisionLanguagePolicy) -> tuple[str, ...]:
    """Patterns of the paths in `params` that a run with these settings trains.

    Raises:
      UserError: model.train names what the policy does not have.
    """
    model = config.model
    if model.lora.on:
        return TRAINED
    return trained_patterns(policy, model.train, train_vision=model.train_vision)


def rates_of(
    config: TrainConfig | SFTConfig, policy: VisionLanguagePolicy
) -> tuple[tuple[tuple[str, ...], float], ...]:
    """Patterns of parts with a learning rate of their own, each with its rate.

    Raises:
      UserError: optim.rates names what the policy does not have, or what does not train.
    """
    if not config.optim.by_part:
        return ()
    shapes = param_shapes(config, policy)
    learning = leaf_paths(split_trainable(shapes, trained=trained_of(config, policy))[0])
    rates = []
    for name, rate in config.optim.by_part:
        patterns = patterns_of(policy, [name], setting="optim.rates")
        if not any(selects(patterns, path) for path in learning):
            raise UserError(
                f"optim.rates holds a rate for {name!r}, which is not trained; leave it out or "
                "train it (model.train, model.lora.targets)."
            )
        rates.append((tuple(patterns), rate))
    return tuple(rates)


def param_shapes(config: TrainConfig | SFTConfig, policy: VisionLanguagePolicy) -> Params:
    """Shape and dtype of each parameter of a run with these settings, adapters among them."""
    dtype_of = _dtypes(config, policy)
    shapes = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(
            x.shape, jnp.dtype(dtype_of(jax.tree_util.keystr(path, simple=True, separator="/")))
        ),
        shapes_of(policy),
    )
    adapters = adapters_of(config.model, policy)
    if adapters is None:
        return shapes
    return overlaid(shapes, adapter_shapes(policy, adapters.paths, rank=adapters.rank))


def load_policy(
    config: TrainConfig | SFTConfig, folder: Path, mesh: Mesh
) -> tuple[VisionLanguagePolicy, Params]:
    """The policy that computes in `model.dtype`, and its parameters, each device with its part.

    What trains is float32. The matrices that stay as they are have the dtype of their matmuls, in
    which they compute the same to the bit.

    Raises:
      UserError: see `load_pretrained`; the attention cannot run here; or the adapter that the
        settings start from does not fit.
    """
    model = config.model
    if model.lora.on and is_adapter(folder):
        raise UserError(
            f"model.path {str(folder)!r} is an adapter itself, and another one on top of it would "
            "fit no published base; give its base as --model.path and it as --model.lora.start, "
            "or leave model.lora out to train the merged policy."
        )
    policy = make_policy(
        load_config(folder),
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        residual=model.residual,
    )
    policy = dataclasses.replace(policy, attention=model.attention)
    params = load_weights(folder, policy, _dtypes(config, policy), mesh=mesh)
    adapters = adapters_of(model, policy)
    if adapters is None:
        return policy, params
    policy = dataclasses.replace(policy, lora=adapters.lora)
    if model.lora.start:
        new: Any = load_adapter(adapter_folder(model.lora.start), policy, mesh=mesh).params
    else:
        shapes = adapter_shapes(policy, adapters.paths, rank=adapters.rank)
        new = init_adapters(shapes, jax.random.key(config.seed), mesh=mesh)
    return policy, overlaid(params, new)


def _dtypes(config: TrainConfig | SFTConfig, policy: VisionLanguagePolicy) -> Callable[[str], str]:
    """The dtype of each parameter, by its path.

    Norms and biases stay float32: a matmul rounds its matrix anyway, but not these.
    """
    model, trained = config.model, trained_of(config, policy)
    by_name = model.lora.on or bool(model.train)
    # The tower of a new policy learns to see before the run; and what a file has more bits for than
    # matmuls comes back with all of them where it is written so.
    written = config.save_dtype if isinstance(config, SFTConfig) else "auto"
    kept = model.path == SCRATCH or written not in ("auto", model.dtype)

    def dtype_of(path: str) -> str:
        matrix = path.rpartition("/")[2] in ("weight", "embedding")
        frozen = matrix and not selects(trained, path) and (by_name or not kept)
        return model.dtype if frozen else "float32"

    return dtype_of
