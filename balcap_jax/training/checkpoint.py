"""Checkpoints of a run: asynchronous, atomic, the last few and the best; restored exactly.

A step is written into a temporary folder and counts from the moment it is committed as a whole, so
kill -9 at any moment costs at most the steps since the last commit. A step leaves by a rename for
the same reason: a half-deleted checkpoint must not look like a checkpoint.

Of several processes, each writes and reads its own parts of the arrays, and all make the same
calls; the folder is on storage that they share.
"""

import logging
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.parallel.processes import is_alone, is_process_zero
from balcap_jax.runs.folder import cannot_write, existing_run, plain, run_folder, write_json_atomic

__all__ = ["Checkpoints", "existing_run", "run_folder", "write_json_atomic"]

FOLDER = "checkpoints"
PENDING = "pending"
_TRASH = "deleted"
# What the storage layer says, in exceptions of several types, when the disk refuses.
_DISK_REFUSES = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|Read-only file system"
    r"|Permission denied|Input/output error"
)


class Checkpoints:
    """The checkpoints of the run in `folder`, under `folder/checkpoints/<step>`.

    Args:
      folder: the run's folder.
      keep: how many of the latest steps stay, at least 1.
      keep_best: whether the step with the best `metric` stays too.
      best_mode: "max" or "min", which `metric` is the best.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        keep_best: bool = True,
        best_mode: str = "max",
    ):
        # Imported here: orbax takes a second, and `balcap --help` must not pay for it.
        import orbax.checkpoint as ocp  # noqa: PLC0415

        if keep < 1:
            raise UserError(
                f"checkpoint.keep={keep} must be at least 1, or nothing could be resumed; "
                "set it to 1 or more."
            )
        assert best_mode in ("max", "min"), best_mode
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._ocp = ocp
        self._run = Path(folder)
        self._folder = (self._run / FOLDER).absolute()
        policies = ocp.checkpoint_managers
        preserve = [policies.LatestN(keep)]
        if keep_best:
            preserve.append(
                policies.BestN(
                    get_metric_fn=_metric,
                    reverse=best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            best_fn=_metric,
            best_mode=best_mode,
            todelete_subdir=_TRASH,
        )
        self._manager = None
        with self._disk_errors():
            self._manager = self._open()

    def save(
        self,
        step: int,
        state: Any,
        extra: dict,
        *,
        metric: float | np.floating | None = None,
        pending: Any = None,
    ) -> None:
        """Starts saving `state`; returns once the arrays are copied to the host.

        Args:
          step: number of finished steps; each is saved once, saving it again does nothing.
          state: any pytree of arrays; every dtype comes back exactly.
          extra: plain JSON beside it: data cursor, seeds, counters.
          metric: what the best checkpoint is chosen by; None and NaN are never the best.
          pending: a pytree of arrays that only some checkpoints have; see `restore_pending`.

        Raises:
          UserError: the disk refuses this save, or refused the one before (which ends when the next
            begins); older checkpoints stay.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        state = jax.tree.map(_as_array, state)
        self._check_space(state)
        args = self._ocp.args
        items = {} if pending is None else {PENDING: args.StandardSave(pending)}
        has_metric = metric is not None and math.isfinite(metric)
        with self._disk_errors():
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(state),
                    extra=args.JsonSave({"leaves": _describe(state), "extra": plain(extra)}),
                    **items,
                ),
                metrics={"metric": float(metric)} if has_metric else None,
                force=True,
            )

    def restore(self, state_like: Any, *, step: int | None = None) -> tuple[Any, dict]:
        """The state and the extra of `step`, by default the latest.

        Args:
          state_like: pytree of arrays or `jax.ShapeDtypeStruct`; its shardings say where the arrays
            go, so the devices may differ from those that saved.
          step: one of `steps()`.

        Raises:
          UserError: nothing is saved, not that step, or the saved state is of another shape; the
            sentence names the key paths.
        """
        self.wait()
        steps = self.steps()
        if not steps:
            raise UserError(
                f"{self._run} holds no checkpoint to restore; give the folder of a run that saved "
                "one, or start anew with another --name."
            )
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UserError(
                f"{self._run} holds no checkpoint of step {step}; choose one of "
                f"{', '.join(map(str, steps))}."
            )
        args = self._ocp.args
        extra = self._manager.restore(step, args=args.Composite(extra=args.JsonRestore())).extra
        _check_same_leaves(extra["leaves"], _describe(state_like), where=self._folder / str(step))
        restored = self._manager.restore(
            step,
            args=args.Composite(state=args.StandardRestore(jax.tree.map(_abstract, state_like))),
        )
        return restored.state, extra["extra"]

    def restore_pending(self, pending_like: Any) -> Any:
        """What the latest checkpoint holds beside its state; None where it holds nothing.

        Args:
          pending_like: as `state_like` of `restore`.
        """
        step = self.steps()[-1]
        if not (self._folder / str(step) / PENDING).exists():
            return None
        args = self._ocp.args
        like = jax.tree.map(_abstract, pending_like)
        restored = self._manager.restore(
            step, args=args.Composite(**{PENDING: args.StandardRestore(like)})
        )
        return restored[PENDING]

    def steps(self) -> list[int]:
        """The committed steps on disk, ascending; a save in progress is not one of them."""
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def latest_step(self) -> int | None:
        """The newest committed step, None before the first."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best metric so far, None when no metric was given."""
        return self._manager.best_step()

    def wait(self) -> None:
        """Blocks until the save in progress is committed.

        Raises:
          UserError: the disk refused it; the older checkpoints stay.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()
        if is_process_zero():
            shutil.rmtree(self._folder / _TRASH, ignore_errors=True)

    def close(self) -> None:
        """`wait`, then ends the background threads, also when the last save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open(self) -> Any:
        """A manager of the committed steps; what kill -9 or a failed save left is removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir() if is_process_zero() else ():
            if not path.name.isdigit():
                # Errors are ignored: a failed save's last threads may still be writing here.
                shutil.rmtree(path, ignore_errors=True)
        return self._ocp.CheckpointManager(
            self._folder, item_names=("state", "extra", PENDING), options=self._options
        )

    def _check_space(self, state: Any) -> None:
        """Refuses a save that cannot fit before orbax starts it and fills the disk.

        Raises:
          UserError: the free space is less than the state's bytes.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise cannot_write(
                self._folder,
                f"No space left on device (a checkpoint takes up to {needed / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free)",
            )

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Of several processes all would have to open it; a run of them ends with this error.
            if self._manager is not None and is_alone():
                # A new manager: the old one counts the failed step, and forgot those that it would
                # have deleted after it. The unfinished save's files go, they may fill the disk.
                with suppress(Exception):
                    self._manager.close()
                self._manager = self._open()
            refused = _DISK_REFUSES.search(str(error))
            if refused is None:
                raise
            raise cannot_write(self._folder, refused.group()) from error


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """orbax logs each failed save with several tracebacks; we raise it as one sentence instead."""
    return "orbax" not in record.pathname


def _metric(metrics: dict) -> float:
    return metrics["metric"]


def _as_array(leaf: Any) -> jax.Array | np.ndarray:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct | np.ndarray:
    """What orbax restores to: a jax array where `leaf` lives, a numpy array for a numpy leaf."""
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return np.asarray(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(tree: Any) -> dict[str, str]:
    """Key path -> "dtype[shape]" of each leaf; saved beside the arrays, compared on restore."""

    def describe(leaf: Any) -> str:
        if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
            leaf = np.asarray(leaf)
        return f"{leaf.dtype}{list(leaf.shape)}"

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): describe(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_same_leaves(saved: dict[str, str], wanted: dict[str, str], *, where: Path) -> None:
    """orbax would cast dtypes and skip what the target lacks; a checkpoint comes back as it was.

    Raises:
      UserError: naming the first key paths of each difference.
    """
    differences = [
        *(f"{path} is missing" for path in wanted if path not in saved),
        *(f"{path} is unexpected" for path in saved if path not in wanted),
        *(
            f"{path} is {saved[path]}, not {wanted[path]}"
            for path in wanted
            if path in saved and saved[path] != wanted[path]
        ),
    ]
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(
            f"{where} was saved with other settings of the model or the optimizer: "
            f"{'; '.join(differences[:5])}{more}; resume with the settings of that run."
        )
