"""The policy that a checkpoint of a run holds."""

from pathlib import Path
from typing import NamedTuple

import jax

from balcap_jax.config import files as config_files
from balcap_jax.config.sections import ModelConfig
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.families import load_config, make_policy
from balcap_jax.models.hf.folders import POLICY, SCRATCH, START, policy_folder
from balcap_jax.models.json_files import read_json
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.selection import overlaid
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rl.train_state import TrainState, state_shapes
from balcap_jax.runs.folder import SUMMARY, RunLock, existing_run
from balcap_jax.runs.progress import announce
from balcap_jax.storage.local import fetched
from balcap_jax.storage.paths import as_path
from balcap_jax.training.adapter_run import base_digest, check_base, in_bfloat16, state_to_save
from balcap_jax.training.checkpoint import FOLDER, Checkpoints, Restored
from balcap_jax.training.checkpoint_record import PARAMETERS, latest_step_of
from balcap_jax.training.programs import optimizer_of
from balcap_jax.training.trained import load_policy, param_shapes, trained_of, with_lora


class SavedPolicy(NamedTuple):
    """A policy and where it comes from.

    Attributes:
      source: the folder that its run started from, with its processor.
      policy: with adapters where the run trains them.
      params: on the host, adapters among them: float32, or what the run keeps its base in. None
        where they were not asked for.
      adapters: of a run that trains adapters; else None.
      model: the settings that say which base they change.
    """

    source: Path
    policy: VisionLanguagePolicy
    params: Params | None
    adapters: Params | None
    model: ModelConfig
    step: int


def is_finished(run: Path) -> bool:
    """Whether the run wrote its policy at its end and has not been resumed and saved since."""
    written = (run / POLICY / "config.json").is_file()
    if not written or not (run / SUMMARY).is_file():  # supervised runs wrote none once
        return written
    return latest_step_of(run) <= read_json(run / SUMMARY).get("steps", 0)


def tell_if_older(model: str) -> None:
    """Says it where `model` is a run that went on after it had written its policy, which is the one
    that is read.
    """
    run = as_path(model)
    if (run / POLICY / "config.json").is_file() and not is_finished(run):
        announce(
            f"{run} has gone on since it wrote its policy, which is taken; its newest checkpoint "
            f"is of step {latest_step_of(run)}: finish the run with --resume, or export that step "
            "with --checkpoint"
        )


def _snapshot(run: Path, step: str, state: TrainState) -> Restored:
    """What a snapshot holds, as a state without anything but parameters."""
    like = jax.eval_shape(in_bfloat16, state.params)
    like = jax.tree.map(
        lambda x, leaf: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf.sharding),
        like,
        state.params,
    )
    with Checkpoints(run, name=PARAMETERS, read_only=True) as snapshots:
        found = snapshots.restore_intact({"params": like}, step=snapshots.find(step))
    params = jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), found.state["params"], state.params)
    return found._replace(state=state._replace(params=params))


def saved_policy(run: Path, which: str = "", *, adapter_only: bool = False) -> SavedPolicy:
    """The policy at a checkpoint of a run that nobody is writing.

    Args:
      which: "best", or the number of a step; "": the newest that is intact; "parameters/STEP": a
        snapshot of the weights, which may be read while the run goes on.
      adapter_only: the base of a run with adapters is not read.

    Raises:
      UserError: `run` is no run, is being written, or has no such checkpoint; or the base of its
        adapters is no longer the one they were trained on.
    """
    run = existing_run(run, needs=FOLDER)
    config = config_files.load_any_run(run)
    if config.model.path == SCRATCH:
        source = fetched(run / START)
    else:
        source = policy_folder(config.model.path, revision=config.model.revision)
    policy = make_policy(
        load_config(source), dtype=config.model.dtype, residual=config.model.residual
    )
    policy = with_lora(config.model, policy)
    state = state_shapes(
        param_shapes(config, policy),
        optimizer_of(config, policy),
        trained=trained_of(config, policy),
    )
    # To the host: a state that was spread over devices need not fit on one.
    cpu = jax.local_devices(backend="cpu")[:1]
    host = jax.sharding.SingleDeviceSharding(cpu[0])
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host),
        state_to_save(policy, state),
    )
    if which.startswith(f"{PARAMETERS}/"):
        found = _snapshot(run, which.partition("/")[2], state)
    else:
        # A run that is being written deletes checkpoints.
        with RunLock(run), Checkpoints(run, read_only=True) as checkpoints:
            found = checkpoints.restore_intact(state, step=checkpoints.find(which))
    for broken in found.broken:
        announce(f"the checkpoint of step {broken} is not intact; step {found.step} is taken")
    params, step = found.state.params, found.extra["step"]
    if policy.lora is None:
        return SavedPolicy(source, policy, params, None, config.model, step)
    if adapter_only:
        return SavedPolicy(source, policy, None, params, config.model, step)
    _, whole = load_policy(config, source, make_mesh(devices=cpu))
    digest = base_digest(policy, whole)  # with adapters, which there are here
    check_base(found.extra, digest, run=run, path=config.model.path)
    return SavedPolicy(source, policy, overlaid(whole, params), params, config.model, step)
