"""A step of a checkpoint read back: its arrays where they belong, once its sums have fitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from balcap_jax.parallel.processes import gather_list, is_alone, is_process_zero
from balcap_jax.storage.paths import AnyPath, is_remote
from balcap_jax.storage.refusals import bucket_reason
from balcap_jax.training.checkpoint_record import (
    NOT_ITS_FAULT,
    PENDING,
    STATE,
    agreed,
    cannot_read,
    check_same_leaves,
    describe,
    own_record,
)
from balcap_jax.training.checksums import checksums
from balcap_jax.training.quiet_storage import drop_half_done

_SAID = 70  # letters of what a library says about a broken file


class Restored(NamedTuple):
    """What a step held.

    Attributes:
      extra: as `save` got it.
      pending: None where the step has none, or none was asked for.
      checked: its checksums were compared; False for a step of an older balcap_jax without them.
      broken: the newer steps that are not intact, each as "4 (what is wrong)".
    """

    state: Any
    extra: dict
    pending: Any
    step: int
    checked: bool
    broken: tuple[str, ...]


class BrokenError(Exception):
    """A step is not what was saved."""


def read_step(
    folder: AnyPath,
    step: int,
    state_like: Any,
    pending_like: Callable[[dict], Any],
    *,
    broken: tuple[str, ...],
) -> Restored:
    """What a step holds.

    Args:
      folder: of all steps.
      pending_like: see `Checkpoints.restore_intact`.
      broken: what to say of the newer steps, see `Restored`.

    Raises:
      BrokenError: it is not what was saved; on all processes.
      UserError: it is of another shape, or the disk refuses.
    """
    record = _record(folder, step)
    saved_like = _as_saved(state_like, record["leaves"])
    check_same_leaves(record["leaves"], describe(saved_like), where=folder / str(step))
    sums, pending_sums = record.get("sums"), record.get("pending_sums")
    state, pending = _arrays(folder, step, STATE, saved_like, sums), None
    state = jax.tree.map(
        lambda x, was, like: x if was is like else x.astype(like.dtype),
        state,
        saved_like,
        state_like,
    )
    has_pending = pending_sums is not None or (
        sums is None and agreed((folder / str(step) / PENDING).exists())
    )
    if has_pending and (like := pending_like(record["extra"])) is not None:
        pending = _arrays(folder, step, PENDING, like, pending_sums)
    return Restored(state, record["extra"], pending, step, sums is not None, broken)


def _as_saved(like: Any, saved: dict[str, str]) -> Any:
    """`like`, but float32 where a step of an older balcap_jax has that for what is bfloat16 now:
    matrices that do not train, of which a matmul in bfloat16 reads no more.
    """

    def as_saved(path: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) or leaf.dtype != jnp.bfloat16:
            return leaf
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if saved.get(name) != f"float32{list(leaf.shape)}":
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(as_saved, like)


def _record(folder: AnyPath, step: int) -> dict:
    """What a step says of itself, as process 0 reads it."""
    found = agreed(own_record(folder, step) if is_process_zero() else None)
    if isinstance(found, str):
        raise BrokenError(found)
    return found


def _arrays(folder: AnyPath, step: int, item: str, like: Any, sums: dict[str, int] | None) -> Any:
    """The arrays of one item of a step, whose checksums fit.

    Raises:
      BrokenError, UserError: as `read_step`.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415 - see `Checkpoints`

    args = ocp.args
    arrays, problem = None, ""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            like = jax.tree.map(_abstract, like)
            args = args.Composite(**{item: args.StandardRestore(like)})
            arrays = reader.restore(folder / str(step), args=args)[item]
    except Exception as error:  # of many types, whatever the bytes are taken for
        if is_alone() and (reason := NOT_ITS_FAULT.search(str(error))):
            raise cannot_read(folder / str(step), reason.group()) from error
        if is_alone() and is_remote(folder) and (told := bucket_reason(error)):
            raise cannot_read(folder / str(step), told) from error
        problem = f"{item} cannot be read: {_shown(error)}"
    if problem:
        drop_half_done()
    if not is_alone():  # before the sums, which all must compute
        problem = next(filter(None, gather_list([problem])), "")
    if problem or arrays is None:
        raise BrokenError(problem or f"{item} is missing")
    if sums is not None:
        found = checksums(arrays)
        changed = [path for path in sums if found.get(path) != sums[path]]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise BrokenError(f"the checksum of {changed[0]}{more} does not fit")
    return arrays


def _shown(error: Exception) -> str:
    """The beginning of what a library says, on one line."""
    text = " ".join(str(error).split())
    return f"{text[:_SAID]} ..." if len(text) > _SAID else text or type(error).__name__


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct | np.ndarray:
    """What orbax restores to: a jax array where `leaf` lives, a numpy array for a numpy leaf."""
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return np.asarray(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
