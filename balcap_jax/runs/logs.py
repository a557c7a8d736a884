"""What a run writes while it goes: a row of numbers per step, sampled captions.

`metrics.jsonl` is the truth; the loggers beside it repeat its numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL.Image import Image

from balcap_jax.errors import UserError
from balcap_jax.runs.fields import RHO_EDGES, WALL_CLOCK, without_wall_clock
from balcap_jax.runs.jsonl import JsonlLog
from balcap_jax.runs.loggers import Logger, TensorBoardLogger
from balcap_jax.storage.paths import AnyPath, as_path

__all__ = [
    "RHO_EDGES", "WALL_CLOCK", "JsonlLog", "MetricsLog", "NoLog", "SampleLog", "without_wall_clock",
]  # fmt: skip


class MetricsLog:
    """`metrics.jsonl` of a run, one row per step, and the same rows to `loggers`.

    Args:
      folder: the run's folder.
      tensorboard: whether to write TensorBoard files where no `loggers` are given.
      loggers: as `make_loggers` returns them; this closes them.
    """

    def __init__(
        self,
        folder: str | AnyPath,
        *,
        tensorboard: bool = True,
        loggers: Sequence[Logger] | None = None,
    ):
        if loggers is None:
            loggers = [TensorBoardLogger(folder)] if tensorboard else []
        self._log = JsonlLog(as_path(folder) / "metrics.jsonl")
        self._loggers = list(loggers)
        self._step = 0

    @property
    def takes_samples(self) -> bool:
        """Whether a logger makes tables with pictures: else none need be read."""
        return any(callable(getattr(logger, "log_samples", None)) for logger in self._loggers)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **row}` to the file, where NaN is written as null, then gives the
        row to the loggers. Values are numbers or lists.

        Raises:
          UserError: the disk is full, or a logger failed; the row is in the file in any case then.
        """
        self._step = step
        self._log.append([{"step": step, **row}])
        self._each("log", lambda logger: logger.log(step, row))

    def log_samples(
        self, step: int, rows: Sequence[Mapping[str, Any]], images: Sequence[Image]
    ) -> None:
        """A table of captions to the loggers that take one.

        Args:
          rows: made by `caption_row`.
          images: one per distinct id of `rows`, in their order.

        Raises:
          UserError: a logger failed.
        """
        self._step = step
        self._each("log_samples", lambda logger: logger.log_samples(step, rows, images))

    def flush(self) -> None:
        """See `JsonlLog.flush`."""
        self._log.flush()

    def rows_to(self, step: int) -> int:
        """How many rows the file holds of steps up to `step`."""
        return self._log.rows_to(step)

    def truncate_to(self, step: int) -> None:
        """Forgets the rows past `step`, so that a resumed run's file equals an unbroken one's."""
        self._step = step
        self._log.truncate_to(step)
        self._each("truncate_to", lambda logger: logger.truncate_to(step))

    def close(self) -> None:
        """Ends the loggers; closing twice is fine."""
        self._log.close()
        while self._loggers:  # one that fails is not asked again
            logger = self._loggers.pop()
            self._call(logger, "close", lambda logger: logger.close())

    def _each(self, method: str, call: Callable[[Any], None]) -> None:
        for logger in self._loggers:
            self._call(logger, method, call)

    def _call(self, logger: Any, method: str, call: Callable[[Any], None]) -> None:
        """`call(logger)` where it has `method`; what a user's own class raises gets its name."""
        if not callable(getattr(logger, method, None)):
            return
        try:
            call(logger)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"The logger {type(logger).__name__} failed in {method} at step {self._step} "
                f"({type(error).__name__}: {reason}); correct it or leave it out, then continue "
                "with --resume."
            ) from error


class SampleLog:
    """`samples.jsonl` of a run: some captions of some steps with their verdicts."""

    def __init__(self, folder: str | AnyPath):
        self._log = JsonlLog(as_path(folder) / "samples.jsonl")

    def log(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows made by `caption_row`, each with its step."""
        self._log.append([{"step": step, **row} for row in rows])

    def flush(self) -> None:
        """See `JsonlLog.flush`."""
        self._log.flush()

    def truncate_to(self, step: int) -> None:
        """Forgets the captions past `step`."""
        self._log.truncate_to(step)

    def close(self) -> None:
        """Closes the file."""
        self._log.close()


class NoLog:
    """In place of both on the processes that do not write."""

    takes_samples = False

    def log(self, step: int, row: object) -> None:
        """Writes nothing."""

    def log_samples(self, step: int, rows: object, images: object) -> None:
        """Writes nothing."""

    def flush(self) -> None:
        """Holds nothing back."""

    def rows_to(self, step: int) -> int:
        """Holds nothing."""
        return 0

    def truncate_to(self, step: int) -> None:
        """Forgets nothing."""

    def close(self) -> None:
        """Closes nothing."""
