"""What users hang into a run: called after steps, evaluations and saves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from balcap_jax.errors import UserError


class Run(Protocol):
    """What a callback sees of the run.

    Attributes:
      config: its settings.
      step: steps made.
    """

    config: Any
    step: int

    def stop(self, reason: str) -> None:
        """Ends the run after this step as if it were the last one."""
        ...


class Callback:
    """Base of callbacks; override what is needed.

    On several hosts every process calls its own, with the same numbers but those of the clock, and
    all must decide alike.
    """

    def on_start(self, run: Run) -> None:
        """Before the first step of this start; the place to refuse settings."""

    def on_step(self, run: Run, step: int, row: Mapping[str, Any]) -> None:
        """After a step, with its whole row of metrics, also where `log_every` passes over it."""

    def on_evaluate(self, run: Run, step: int, scores: Mapping[str, float]) -> None:
        """After an evaluation between steps, with `heldout/...` scores."""

    def on_save(self, run: Run, step: int) -> None:
        """After a checkpoint of this step is on its way to the disk."""

    def state(self) -> Any:
        """What a resumed run needs, as JSON can hold it."""

    def restore(self, state: Any) -> None:
        """Takes up what `state` returned."""


class EarlyStopping(Callback):
    """Ends the run when `metric` has not risen for `patience` evaluations.

    Args:
      metric: a name in the rows of metrics; those of held-out images begin with `heldout/`.
      patience: evaluations in a row without a new best; for other metrics, steps.
      min_delta: what a new best must be above the last one.
      mode: "max", or "min" for what shall fall.
    """

    def __init__(
        self, metric: str, patience: int = 3, *, min_delta: float = 0.0, mode: str = "max"
    ):
        if patience < 1 or not min_delta >= 0 or mode not in ("max", "min"):
            raise UserError(
                f"EarlyStopping(patience={patience}, min_delta={min_delta}, mode={mode!r}) must "
                "have a patience of at least 1, a min_delta of at least 0 and the mode 'max' or "
                "'min'; change it."
            )
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self._sign = 1.0 if mode == "max" else -1.0
        self._best, self._waited = -math.inf, 0

    @property
    def reads_heldout(self) -> bool:
        """Whether `metric` is a score of held-out images."""
        return self.metric.startswith("heldout/")

    def on_start(self, run: Run) -> None:
        if self.reads_heldout and not run.config.evaluation.every:
            raise UserError(
                f"EarlyStopping({self.metric!r}) waits for held-out scores, and evaluation.every=0 "
                "makes none between steps; set evaluation.every to a number of steps."
            )

    def on_step(self, run: Run, step: int, row: Mapping[str, Any]) -> None:
        if not self.reads_heldout:
            self._look(run, step, row)

    def on_evaluate(self, run: Run, step: int, scores: Mapping[str, float]) -> None:
        if self.reads_heldout:
            self._look(run, step, scores)

    def _look(self, run: Run, step: int, row: Mapping[str, Any]) -> None:
        if self.metric not in row:
            raise UserError(
                f"EarlyStopping({self.metric!r}) finds no such number at step {step}, known are "
                f"{', '.join(sorted(row))}; choose one of them."
            )
        value = self._sign * float(row[self.metric])
        if value > self._best + self.min_delta:  # NaN is no new best
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            run.stop(
                f"{self.metric} has not improved on {self._sign * self._best:.4g} for "
                f"{self.patience} evaluations"
            )

    def state(self) -> Any:
        best = None if math.isinf(self._best) else self._best
        return {"best": best, "waited": self._waited}

    def restore(self, state: Any) -> None:
        self._best = -math.inf if state["best"] is None else state["best"]
        self._waited = state["waited"]


class Callbacks:
    """All callbacks of a run as one; their own mistakes become sentences with their name."""

    def __init__(self, callbacks: Sequence[Callback]):
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise UserError(
                    f"callbacks holds {callback!r:.80}, which must be a balcap_jax.Callback; "
                    "derive its class from it."
                )
        self._callbacks = tuple(callbacks)

    def on_start(self, run: Run) -> None:
        """See `Callback`."""
        self._call("on_start", run)

    def on_step(self, run: Run, step: int, row: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self._call("on_step", run, step, row)

    def on_evaluate(self, run: Run, step: int, scores: Mapping[str, float]) -> None:
        """See `Callback`."""
        self._call("on_evaluate", run, step, scores)

    def on_save(self, run: Run, step: int) -> None:
        """See `Callback`."""
        self._call("on_save", run, step)

    def state(self) -> dict[str, Any]:
        """By place and class, so that a resumed run with other callbacks takes up none of it."""
        return {self._key(i): callback.state() for i, callback in enumerate(self._callbacks)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Hands each callback its own; one that is new starts afresh."""
        for i, callback in enumerate(self._callbacks):
            if state.get(self._key(i)) is not None:
                callback.restore(state[self._key(i)])

    def _key(self, place: int) -> str:
        return f"{place}:{type(self._callbacks[place]).__name__}"

    def _call(self, name: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            try:
                getattr(callback, name)(*arguments)
            except UserError:
                raise
            except Exception as error:  # the user's code may raise anything
                raise UserError(
                    f"The callback {type(callback).__name__} raised in {name} "
                    f"({type(error).__name__}: {error}); fix it and resume the run, which is saved."
                ) from error
