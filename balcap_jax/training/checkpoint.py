"""Checkpoints of a run: asynchronous, atomic, the last few and the best; restored exactly.

A step is written into a temporary folder and counts from the moment it is committed as a whole, so
kill -9 at any moment costs at most the steps since the last commit. A step leaves by a rename for
the same reason: a half-deleted checkpoint must not look like a checkpoint.

Beside its arrays a step holds `extra/metadata`, JSON with their shapes and checksums and a digest
of itself. What does not fit is not restored: the newest step that is intact is.

Of several processes, each writes and reads its own parts of the arrays, and all make the same
calls; the folder is on storage that they share, and process 0 says what is in it.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.parallel.processes import gather_list, is_alone, is_process_zero
from balcap_jax.runs.folder import cannot_write, existing_run, plain, run_folder, write_json_atomic
from balcap_jax.training.checksums import checksums
from balcap_jax.training.quiet_storage import drop_half_done, quiet_storage

__all__ = [
    "Checkpoints", "Restored", "existing_run", "latest_step_of", "run_folder", "write_json_atomic",
]  # fmt: skip

FOLDER = "checkpoints"
STATE, EXTRA, PENDING = "state", "extra", "pending"
_RECORD = "metadata"  # the file in EXTRA
_ITEMS = (STATE, EXTRA, "_CHECKPOINT_METADATA")  # one of them at least makes a folder a step
_TRASH = "deleted"
_UNFINISHED = ".orbax-checkpoint-tmp"
_SAID = 70  # letters of what a library says about a broken file
_STEP = re.compile(r"0|[1-9][0-9]{0,17}")
# What the storage layer says, in exceptions of several types, when the disk refuses.
_DISK_REFUSES = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|Read-only file system"
    r"|Permission denied|Operation not permitted|Input/output error|Not a directory"
    r"|No such file or directory|Stale file handle|Transport endpoint is not connected"
    r"|Too many open files"
)
# What is no fault of the checkpoint's, and must not make an older one be taken.
_NOT_ITS_FAULT = re.compile(
    r"Permission denied|Operation not permitted|Input/output error|Stale file handle"
    r"|Transport endpoint is not connected|Too many open files|RESOURCE_EXHAUSTED|Out of memory"
)


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


class _BrokenError(Exception):
    """A step is not what was saved."""


class Checkpoints:
    """The checkpoints of the run in `folder`, under `folder/checkpoints/<step>`.

    Args:
      folder: the run's folder.
      keep: how many of the latest steps stay, at least 1.
      keep_best: whether the step with the best `metric` stays too.
      best_mode: "max" or "min", which `metric` is the best.
      read_only: nothing is saved, and nothing on the disk changes.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        keep_best: bool = True,
        best_mode: str = "max",
        read_only: bool = False,
    ):
        # Imported here: orbax takes a second, and `balcap --help` must not pay for it.
        import orbax.checkpoint as ocp  # noqa: PLC0415

        if keep < 1:
            raise UserError(
                f"checkpoint.keep={keep} must be at least 1, or nothing could be resumed; "
                "set it to 1 or more."
            )
        assert best_mode in ("max", "min"), best_mode
        quiet_storage()
        self._ocp = ocp
        self._run = Path(folder)
        self._folder = (self._run / FOLDER).absolute()
        self._keep, self._keep_best = keep, keep_best
        self._sign = 1.0 if best_mode == "max" else -1.0
        self._read_only = read_only
        self._writer = None
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
        self.wait()
        if step in self.steps():
            return
        state = jax.tree.map(_as_array, state)
        self._check_space(state)
        args = self._ocp.args
        items = {} if pending is None else {PENDING: args.StandardSave(pending)}
        has_metric = metric is not None and math.isfinite(metric)
        record = {
            "step": step,
            "leaves": _describe(state),
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
                    extra=args.JsonSave({**record, "digest": _digest(record)}),
                    **items,
                ),
            )

    def restore(self, state_like: Any, *, step: int | None = None) -> tuple[Any, dict]:
        """The state and the extra of `step`, by default the latest; see `restore_intact`."""
        restored = self.restore_intact(state_like, step=step)
        return restored.state, restored.extra

    def restore_intact(
        self, state_like: Any, *, step: int | None = None, pending_like: Any = None
    ) -> Restored:
        """What `step` holds, by default the newest one that is intact.

        Args:
          state_like: pytree of arrays or `jax.ShapeDtypeStruct`; its shardings say where the arrays
            go, so the devices may differ from those that saved.
          pending_like: the same for what only some checkpoints have; None: it is not read.
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
                return self._read(candidate, state_like, pending_like, broken)
            except _BrokenError as error:
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
        return _agreed(_own_steps(self._folder))

    def own_steps(self) -> list[int]:
        """`steps` as this process sees them, which asks no other."""
        return _own_steps(self._folder)

    def latest_step(self) -> int | None:
        """The newest committed step, None before the first."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best metric so far, None when no metric was given."""
        return _agreed(self._best(self.steps()))

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
            step = int(which) if _STEP.fullmatch(which) else None
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
            self._forget_old()

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

    # ---- reading

    def _read(self, step: int, state_like: Any, pending_like: Any, broken: list[str]) -> Restored:
        """What a step holds.

        Raises:
          _BrokenError: it is not what was saved; on all processes.
          UserError: it is of another shape, or the disk refuses.
        """
        record = self._record(step)
        _check_same_leaves(record["leaves"], _describe(state_like), where=self._folder / str(step))
        sums, pending_sums = record.get("sums"), record.get("pending_sums")
        state, pending = self._arrays(step, STATE, state_like, sums), None
        has_pending = pending_sums is not None or (
            sums is None and _agreed((self._folder / str(step) / PENDING).exists())
        )
        if has_pending and pending_like is not None:
            pending = self._arrays(step, PENDING, pending_like, pending_sums)
        return Restored(state, record["extra"], pending, step, sums is not None, tuple(broken))

    def _record(self, step: int) -> dict:
        """What a step says of itself, as process 0 reads it."""
        found = _agreed(self._own_record(step) if is_process_zero() else None)
        if isinstance(found, str):
            raise _BrokenError(found)
        return found

    def _own_record(self, step: int) -> dict | str:
        """The record, or what is wrong with it."""
        path = self._folder / str(step) / EXTRA / _RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            if _NOT_ITS_FAULT.search(str(error)):
                raise _cannot_read(path, error.strerror or str(error)) from error
            return f"{EXTRA}/{_RECORD}: {error.strerror}"
        except (ValueError, RecursionError):
            return f"{EXTRA}/{_RECORD} is not JSON"
        if not isinstance(record, dict) or not {"leaves", "extra"} <= set(record):
            return f"{EXTRA}/{_RECORD} lacks what was saved"
        digest = record.pop("digest", None)
        if digest is None and "sums" not in record:  # of an older balcap_jax
            return record if isinstance(record["leaves"], dict) else f"{EXTRA}/{_RECORD} is broken"
        if digest != _digest(record):
            return f"{EXTRA}/{_RECORD} was changed after it was saved"
        if record["step"] != step:
            return f"it is step {record['step']}"
        return record

    def _arrays(self, step: int, item: str, like: Any, sums: dict[str, int] | None) -> Any:
        """The arrays of one item of a step, whose checksums fit.

        Raises:
          _BrokenError, UserError: as `_read`.
        """
        args = self._ocp.args
        arrays, problem = None, ""
        try:
            with self._ocp.Checkpointer(self._ocp.CompositeCheckpointHandler()) as reader:
                like = jax.tree.map(_abstract, like)
                args = args.Composite(**{item: args.StandardRestore(like)})
                arrays = reader.restore(self._folder / str(step), args=args)[item]
        except Exception as error:  # of many types, whatever the bytes are taken for
            if is_alone() and (reason := _NOT_ITS_FAULT.search(str(error))):
                raise _cannot_read(self._folder / str(step), reason.group()) from error
            problem = f"{item} cannot be read: {_shown(error)}"
        if problem:
            drop_half_done()
        if not is_alone():  # before the sums, which all must compute
            problem = next(filter(None, gather_list([problem])), "")
        if problem or arrays is None:
            raise _BrokenError(problem or f"{item} is missing")
        if sums is not None:
            found = checksums(arrays)
            changed = [path for path in sums if found.get(path) != sums[path]]
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise _BrokenError(f"the checksum of {changed[0]}{more} does not fit")
        return arrays

    # ---- writing

    def _open(self) -> Any:
        """A writer; what kill -9 or a failed save left is removed."""
        if self._read_only:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir() if is_process_zero() else ():
            if path.name == _TRASH or _UNFINISHED in path.name:
                # Errors are ignored: a failed save's last threads may still be writing here.
                shutil.rmtree(path, ignore_errors=True)
        # Else threads wait for minutes for a folder that cannot be made.
        options = self._ocp.options.AsyncOptions(create_directories_asynchronously=False)
        return self._ocp.AsyncCheckpointer(
            self._ocp.CompositeCheckpointHandler(
                composite_options=self._ocp.CompositeOptions(async_options=options)
            ),
            async_options=options,
        )

    def _forget_old(self) -> None:
        """Removes the steps that are neither among the last ones nor the best."""
        if not is_process_zero():
            return
        steps = _own_steps(self._folder)
        kept = set(steps[-self._keep :])
        if self._keep_best and (best := self._best(steps)) is not None:
            kept.add(best)
        trash = self._folder / _TRASH
        for step in steps:
            if step not in kept:
                trash.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(trash / str(step))
        shutil.rmtree(trash, ignore_errors=True)

    def _best(self, steps: list[int]) -> int | None:
        """The step with the best metric; of equals the first."""
        if not is_process_zero():
            return None
        scores = {}
        for step in steps:
            with suppress(UserError):
                record = self._own_record(step)
                if isinstance(record, dict) and record.get("metric") is not None:
                    scores[step] = (self._sign * record["metric"], -step)
        return max(scores, key=scores.__getitem__, default=None)

    def _set_aside(self, steps: list[int]) -> list[str]:
        moved = []
        for step in steps if is_process_zero() else ():
            path = self._folder / str(step)
            name = f"aside-{step}"
            number = 1
            while (self._folder / name).exists():
                number += 1
                name = f"aside-{step}-{number}"
            path.rename(self._folder / name)
            moved.append(name)
        return _agreed(moved)

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
            if self._writer is not None and is_alone():
                # A new writer: the old one reports the error again. The unfinished save's files go,
                # they may fill the disk.
                with suppress(Exception):
                    self._writer.close()
                drop_half_done()
                with suppress(OSError):
                    self._writer = self._open()
            refused = _DISK_REFUSES.search(str(error))
            if refused is None:
                raise
            raise cannot_write(self._folder, refused.group()) from error


def latest_step_of(run: Path) -> int:
    """The newest committed step of a run as this process sees it, 0 before the first."""
    return max(_own_steps(run / FOLDER), default=0)


def _own_steps(folder: Path) -> list[int]:
    """The committed steps that this process sees."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if _STEP.fullmatch(path.name) and any((path / item).exists() for item in _ITEMS)
    )


def _agreed(value: Any) -> Any:
    """The value of process 0, on all."""
    return value if is_alone() else gather_list([value])[0]


def _digest(record: dict) -> str:
    text = json.dumps(record, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(error: Exception) -> str:
    """The beginning of what a library says, on one line."""
    text = " ".join(str(error).split())
    return f"{text[:_SAID]} ..." if len(text) > _SAID else text or type(error).__name__


def _cannot_read(path: Path, reason: str) -> UserError:
    return UserError(
        f"Cannot read {path}: {reason}; this says nothing about the checkpoint itself, so fix the "
        "permissions or the storage, then try again."
    )


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
