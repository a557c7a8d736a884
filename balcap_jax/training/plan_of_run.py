"""What a run is going to do, in a few lines before it does it."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from balcap_jax.parallel.processes import is_process_zero
from balcap_jax.rl.train_state import split_trainable
from balcap_jax.runs.progress import announce

if TYPE_CHECKING:
    from balcap_jax.training.task_run import TaskRun


def announce_run(loop: "TaskRun") -> None:
    """Says what was opened, and the memory that each device needs at least."""
    config, shown = loop.config, is_process_zero()
    devices = list(loop.mesh.devices.flat)
    kind = f"{len(devices)} x {devices[0].device_kind}"
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(loop.state.params))
    endless = len(loop.source) >= 10**9
    data = "scenes without end" if endless else f"{len(loop.source)} images"
    announce(f"devices: {kind}; parameters: {parameters / 1e6:,.1f} million", shown=shown)
    announce(
        f"data: {data}, {len(loop.heldout)} held out; {'; '.join(loop.describe())}", shown=shown
    )
    if config.checkpoint.keep_best and not config.evaluation.every:
        announce(
            "no best checkpoint is kept, because evaluation.every=0 makes no held-out scores "
            "between steps",
            shown=shown,
        )
    announce(
        f"memory of each device: {bytes_of_state(loop) / 2**30:.2f} GiB for weights, optimizer and "
        "gradients; activations come on top (`balcap plan` counts them)",
        shown=shown,
    )


def bytes_of_state(loop: "TaskRun") -> int:
    """Bytes on the fullest device of parameters, optimizer, float32 gradients and reference."""

    def here(tree: object, itemsize: int | None = None) -> int:
        return sum(
            math.prod(x.sharding.shard_shape(x.shape)) * (itemsize or jnp.dtype(x.dtype).itemsize)
            for x in jax.tree.leaves(tree)
        )

    trained, _ = split_trainable(loop.state.params, trained=loop.trained)
    reference = here(getattr(loop, "reference_params", None))
    return here((loop.state.params, loop.state.opt_state)) + here(trained, 4) + reference
