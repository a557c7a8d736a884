"""What a run with adapters keeps: adapters and their moments in checkpoints, not the base; merged
weights and the adapter at its end.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from balcap_jax.config.sections import ModelConfig
from balcap_jax.errors import UserError
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.decoder.lora import TRAINED, without_adapters
from balcap_jax.models.hf.adapter_config import base_folder
from balcap_jax.models.hf.adapters import save_adapter
from balcap_jax.models.hf.folders import ADAPTER
from balcap_jax.models.hf.hub import is_hub_name
from balcap_jax.models.hf.weights import save_pretrained
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.selection import overlaid, part_of, selects
from balcap_jax.rl.train_state import TrainState
from balcap_jax.storage.paths import is_remote
from balcap_jax.training.checksums import checksums


def state_to_save(policy: VisionLanguagePolicy, state: Any) -> Any:
    """The part of a state that a checkpoint holds: without the base where adapters are trained.

    Args:
      state: a `TrainState` of arrays or of shapes.
    """
    if policy.lora is None:
        return state
    return state._replace(params=part_of(state.params, lambda path: selects(TRAINED, path)))


def restored_state(
    policy: VisionLanguagePolicy, saved: TrainState, state: TrainState
) -> TrainState:
    """A state from its part in a checkpoint, with the base of `state`."""
    if policy.lora is None:
        return saved
    return saved._replace(params=overlaid(state.params, saved.params))


@jax.jit
def in_bfloat16(params: Params) -> Params:
    """Parameters for a snapshot, where they lie: floats in bfloat16."""
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, params
    )


def base_digest(policy: VisionLanguagePolicy, params: Params, *, is_reference: bool = False) -> str:
    """A checksum of the base that adapters change, "" where there are none; all processes call it.

    It depends on the numbers alone, not on the devices they lie on.

    Args:
      is_reference: a KL term keeps the policy near the weights that it starts from, which are then
        read again when a run is resumed.
    """
    if policy.lora is None and not is_reference:
        return ""
    sums = json.dumps(checksums(without_adapters(params)), sort_keys=True)
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def check_base(extra: Mapping[str, Any], digest: str, *, run: Path, path: str) -> None:
    """Refuses a checkpoint whose adapters, or whose reference policy, are of other weights.

    Raises:
      UserError: the base is not the one that the checkpoint was made on.
    """
    # An older balcap_jax noted the base of adapters alone.
    if (then := extra.get("base")) and then != digest:
        raise UserError(
            f"{run} started from other weights than model.path {path!r} holds now (checksum "
            f"{digest}, not {then}), and its adapters or its KL term are of those; restore the "
            "base that the run started from, or start a new run with --name."
        )


def base_of(model: ModelConfig, folder: Path) -> tuple[str, str | None]:
    """How adapter_config.json names the base: as on the hub with its commit, else by its path."""
    if is_remote(model.path):
        return model.path, None
    if is_hub_name(model.path) and not Path(model.path).is_dir():
        return model.path, model.revision
    return str(base_folder(folder).resolve()), None


def write_policy(
    run: Path, name: str, policy: VisionLanguagePolicy, params: Params, *, model: ModelConfig,
    source: Path, dtype: str | None = None,
) -> None:  # fmt: skip
    """Writes the trained policy to RUN/NAME, adapters merged, and these to RUN/adapter.

    Args:
      params: on the host.
      source: the folder that the run started from.

    Raises:
      UserError: the disk is full.
    """
    dtype = dtype or model.dtype
    if policy.lora is not None:
        base, revision = base_of(model, source)
        save_adapter(run / ADAPTER, policy, params, base=base, revision=revision)
    save_pretrained(run / name, policy, params, dtype=dtype, source=source)
