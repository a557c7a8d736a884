"""The policy that a checkpoint of a run holds."""

from pathlib import Path
from typing import NamedTuple

import jax

from balcap_jax.config import files as config_files
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.families import load_config, make_policy
from balcap_jax.models.hf.folders import SCRATCH, START, policy_folder
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.rl.train_state import state_shapes
from balcap_jax.runs.folder import RunLock, existing_run
from balcap_jax.runs.progress import announce
from balcap_jax.training.checkpoint import FOLDER, Checkpoints
from balcap_jax.training.programs import optimizer_of, trained_of


class SavedPolicy(NamedTuple):
    """A policy and where it comes from.

    Attributes:
      source: the folder that its run started from, with its processor.
      params: float32, on the host.
    """

    source: Path
    policy: VisionLanguagePolicy
    params: Params
    step: int


def saved_policy(run: Path, which: str = "") -> SavedPolicy:
    """The policy at a checkpoint of a run that nobody is writing.

    Args:
      which: "best", or the number of a step; "": the newest that is intact.

    Raises:
      UserError: `run` is no run, is being written, or has no such checkpoint.
    """
    run = existing_run(run, needs=FOLDER)
    config = config_files.load_any_run(run)
    if config.model.path == SCRATCH:
        source = run / START
    else:
        source = policy_folder(config.model.path, revision=config.model.revision)
    policy = make_policy(load_config(source), dtype=config.model.dtype)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))  # float32, as they are trained
    state = state_shapes(shapes, optimizer_of(config, policy), trained=trained_of(config, policy))
    # To the host: a state that was spread over devices need not fit on one.
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), state
    )
    # A run that is being written deletes checkpoints.
    with RunLock(run), Checkpoints(run, read_only=True) as checkpoints:
        found = checkpoints.restore_intact(state, step=checkpoints.find(which))
    for broken in found.broken:
        announce(f"the checkpoint of step {broken} is not intact; step {found.step} is taken")
    return SavedPolicy(source, policy, found.state.params, found.extra["step"])
