"""Checkpoints of a run: asynchronous, atomic, the last few and the best; restored exactly.

A step is written into a temporary folder and counts from the moment it is committed as a whole, so
kill -9 at any moment costs at most the steps since the last commit.

Beside its arrays a step holds `extra/metadata`, JSON with their shapes and checksums and a digest
of itself. What does not fit is not restored: the newest step that is intact is.

Of several processes, each writes and reads its own parts of the arrays, and all make the same
calls; the folder is on storage that they share, and process 0 says what is in it.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.parallel.processes import is_alone, is_process_zero
from balcap_jax.runs.folder import cannot_write, plain
from balcap_jax.storage.held import check_held
from balcap_jax.storage.paths import AnyPath, as_path, is_remote
from balcap_jax.storage.refusals import bucket_reason
from balcap_jax.training.checkpoint_folders import (
    check_space,
    remove_steps,
    remove_unfinished,
    set_aside,
)
from balcap_jax.training.checkpoint_reading import BrokenError, Restored, read_step
from balcap_jax.training.checkpoint_record import (
    FOLDER,
    PENDING,
    STEP,
    agreed,
    describe,
    digest_of,
    latest_step_of,
    own_record,
    own_steps,
)
from balcap_jax.training.checksums import checksums
from balcap_jax.training.quiet_storage import drop_half_done, quiet_storage

__all__ = ["FOLDER", "Checkpoints", "Restored", "latest_step_of"]

# What the storage layer says, in exceptions of several types, when the disk refuses.
_DISK_REFUSES = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|Read-only file system"
    r"|Permission denied|Operation not permitted|Input/output error|Not a directory"
    r"|No such file or directory|Stale file handle|Transport endpoint is not connected"
    r"|Too many open files"
)


class Checkpoints:
    """The checkpoints of the run in `folder`, under `folder/checkpoints/<step>`.

    Args:
      folder: the run's folder.
      name: of their folder in it.
      keep: how many of the latest steps stay, at least 1; None: all.
      keep_best: whether the step with the best `metric` stays too.
      best_mode: "max" or "min", which `metric` is the best.
      read_only: nothing is saved, and nothing on the disk changes.
    """

    def __init__(
        self,
        folder: str | AnyPath,
        *,
        name: str = FOLDER,
        keep: int | None = 2,
        keep_best: bool = True,
        best_mode: str = "max",
        read_only: bool = False,
    ):
        # Imported here: orbax takes a second, and `balcap --help` must not pay for it.
        import orbax.checkpoint as ocp  # noqa: PLC0415

        if keep is not None and keep < 1:
            raise UserError(
                f"checkpoint.keep={keep} must be at least 1, or nothing could be resumed; "
                "set it to 1 or more."
            )
        assert best_mode in ("max", "min"), best_mode
        quiet_storage()
        self._ocp = ocp
        self._run = as_path(folder)
        self._folder = (self._run / name).absolute()
        self._keep, self._keep_best = keep, keep_best
        self._sign = 1.0 if best_mode == "max" else -1.0
        self._read_only = read_only
        self._writer = None
        self._began = 0.0  # when the last save began
        self._save: dict[str, float] = {}  # of the last save, for metrics
        self._told: dict[str, float] | None = None  # the same, once it is committed
        self._saved = False  # whether a save began whose commit has not been waited for
        with self._disk_errors():
            self._writer = self._open()

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
          pending: a pytree of arrays that only some checkpoints have.

        Raises:
          UserError: the disk refuses this save, or refused the one before (which ends when the next
            begins); older checkpoints stay.
        """
        assert not self._read_only
        if is_remote(self._run):
            check_held(self._run)
        began = time.perf_counter()
        self.wait()
        if step in self.steps():
            return
        self._began = began
        state = jax.tree.map(_as_array, state)
        check_space(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        args = self._ocp.args
        items = {} if pending is None else {PENDING: args.StandardSave(pending)}
        has_metric = metric is not None and math.isfinite(metric)
        record = {
            "step": step,
            "leaves": describe(state),
            "sums": checksums(state),
            "pending_sums": None if pending is None else checksums(pending),
            "metric": float(metric) if has_metric else None,
            "extra": plain(extra),
        }
        with self._disk_errors():
            # Whatever has the name of this step and is none.
            self._set_aside([step] if (self._folder / str(step)).exists() else [])
            self._writer.save(
                self._folder / str(step),
                args=args.Composite(
                    state=args.StandardSave(state),
                    extra=args.JsonSave({**record, "digest": digest_of(record)}),
                    **items,
                ),
            )
            self._saved = True
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((state, pending)))
        self._save |= {"save/held_seconds": time.perf_counter() - began, "save/mb": size / 1e6}

    def times(self) -> dict[str, float]:
        """Of the last save that was committed since the last call, for a row of metrics: seconds
        until it was, those in which the caller was held, and MB of the whole state; else nothing.
        """
        told, self._told = self._told, None
        return {} if told is None else told | self._save

    def _committed(self) -> None:
        self._told = {"save/seconds": time.perf_counter() - self._began}

    def restore(self, state_like: Any, *, step: int | None = None) -> tuple[Any, dict]:
        """The state and the extra of `step`, by default the latest; see `restore_intact`."""
        restored = self.restore_intact(state_like, step=step)
        return restored.state, restored.extra

    def restore_intact(
        self,
        state_like: Any,
        *,
        step: int | None = None,
        pending_like: Callable[[dict], Any] = lambda _: None,
    ) -> Restored:
        """What `step` holds, by default the newest one that is intact.

        Args:
          state_like: pytree of arrays or `jax.ShapeDtypeStruct`; its shardings say where the arrays
            go, so the devices may differ from those that saved.
          pending_like: `extra` -> the same for what only some checkpoints have; None: it is not
            read.
          step: one of `steps()`.

        Raises:
          UserError: nothing is saved, not that step, no step is intact or not the one that was
            asked for, the disk refuses, or the saved state is of another shape; the sentence names
            the key paths.
        """
        self.wait()
        steps = self.steps()
        if not steps:
            raise UserError(
                f"{self._run} holds no checkpoint to restore; give the folder of a run that saved "
                "one, or start anew with another --name."
            )
        if step is not None and step not in steps:
            raise UserError(
                f"{self._run} holds no checkpoint of step {step}; choose one of "
                f"{', '.join(map(str, steps))}."
            )
        broken: list[str] = []
        for candidate in reversed(steps) if step is None else (step,):
            try:
                return read_step(
                    self._folder, candidate, state_like, pending_like, broken=tuple(broken)
                )
            except BrokenError as error:
                broken.append(f"{candidate} ({error})")
        rest = [other for other in steps if other != step]
        if step is None or not rest:
            remedy = "restore its files from a copy, or start a new run with --name."
        else:
            remedy = f"choose another with --checkpoint, of {', '.join(map(str, rest))}."
        raise UserError(
            f"{self._run} has no intact checkpoint{'' if step is None else f' of step {step}'}: "
            f"{'; '.join(broken)}; {remedy}"
        )

    def steps(self) -> list[int]:
        """The committed steps on disk, ascending, as process 0 sees them; a save in progress is not
        one of them, nor is a file or folder that only has the name of one.
        """
        return agreed(own_steps(self._folder))

    def own_steps(self) -> list[int]:
        """`steps` as this process sees them, which asks no other."""
        return own_steps(self._folder)

    def latest_step(self) -> int | None:
        """The newest committed step, None before the first."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best metric so far, None when no metric was given."""
        return agreed(self._best(self.steps()))

    def find(self, which: str) -> int | None:
        """The step that "best" or a number means; None for "".

        Raises:
          UserError: it means none.
        """
        if not which:
            return None
        steps = self.steps()
        if which == "best":
            step = self.best_step()
            rule = "no best checkpoint, which needs checkpoint.keep_best and evaluation.every"
        else:
            step = int(which) if STEP.fullmatch(which) else None
            rule = f"no checkpoint {which!r}"
        if step not in steps:
            known = ", ".join(map(str, steps))
            remedy = f"choose one of {known} with --checkpoint" if steps else "drop --checkpoint"
            raise UserError(f"{self._run} holds {rule}; {remedy}.")
        return step

    def set_aside_after(self, step: int) -> list[str]:
        """Takes the steps after `step` out of the way of a run that goes on from there.

        Returns:
          The folders that they are in now.
        """
        return self._set_aside([later for later in self.steps() if later > step])

    def wait(self) -> None:
        """Blocks until the save in progress is committed.

        Raises:
          UserError: the disk refused it; the older checkpoints stay.
        """
        if self._writer is None:
            return
        with self._disk_errors():
            self._writer.wait_until_finished()
            # Only a save makes others old: what a killed run left is there for whoever asks for it.
            if self._saved:
                self._forget_old()
                self._saved = False

    def close(self) -> None:
        """`wait`, then ends the background threads, also when the last save failed."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # ---- writing

    def _open(self) -> Any:
        """A writer; what kill -9 or a failed save left is removed."""
        if self._read_only:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        if is_process_zero():
            remove_unfinished(self._folder)
        # Else threads wait for minutes for a folder that cannot be made.
        options = self._ocp.options.AsyncOptions(
            create_directories_asynchronously=False, post_finalization_callback=self._committed
        )
        return self._ocp.AsyncCheckpointer(
            self._ocp.CompositeCheckpointHandler(
                composite_options=self._ocp.CompositeOptions(async_options=options)
            ),
            async_options=options,
        )

    def _forget_old(self) -> None:
        """Removes the steps that are neither among the last ones nor the best."""
        if not is_process_zero() or self._keep is None:
            return
        steps = own_steps(self._folder)
        kept = set(steps[-self._keep :])
        if self._keep_best and (best := self._best(steps)) is not None:
            kept.add(best)
        remove_steps(self._folder, [step for step in steps if step not in kept])

    def _best(self, steps: list[int]) -> int | None:
        """The step with the best metric; of equals the first."""
        if not is_process_zero():
            return None
        scores = {}
        for step in steps:
            with suppress(UserError):
                record = own_record(self._folder, step)
                if isinstance(record, dict) and record.get("metric") is not None:
                    scores[step] = (self._sign * record["metric"], -step)
        return max(scores, key=scores.__getitem__, default=None)

    def _set_aside(self, steps: list[int]) -> list[str]:
        return agreed(set_aside(self._folder, steps) if is_process_zero() else [])

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Of several processes all would have to open it; a run of them ends with this error.
            if self._writer is not None and is_alone():
                # A new writer: the old one reports the error again. The unfinished save's files go,
                # they may fill the disk.
                with suppress(Exception):
                    self._writer.close()
                drop_half_done()
                with suppress(OSError):
                    self._writer = self._open()
            refused = _DISK_REFUSES.search(str(error))
            reason = refused.group() if refused else None
            if is_remote(self._folder) and not isinstance(error, UserError):
                reason = bucket_reason(error) or reason
            if reason is None:
                raise
            raise cannot_write(self._folder, reason) from error


def _as_array(leaf: Any) -> jax.Array | np.ndarray:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
