"""Where the rows of a run go beside metrics.jsonl: TensorBoard, Weights & Biases, a user's own."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from balcap_jax.errors import UserError
from balcap_jax.runs.tensorboard_logger import TensorBoardLogger
from balcap_jax.runs.wandb_logger import WandbLogger
from balcap_jax.storage.paths import AnyPath, as_path

__all__ = ["NAMES", "Logger", "TensorBoardLogger", "WandbLogger", "make_loggers"]

NAMES = ("tensorboard", "wandb")


@runtime_checkable
class Logger(Protocol):
    """What a logger has to have. It may have more, which is called where it is there:

    `log_samples(step, rows, images)`: a table of captions, rows as `caption_row` makes them and a
    PIL image per distinct id, in their order; `truncate_to(step)`: the run goes on after `step` and
    makes the later rows once more; `close()`: the run has ended.
    """

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """The numbers (NaN: nothing to measure) and lists of a step, or means since the last."""


def make_loggers(
    wanted: Sequence[Any], folder: str | AnyPath, *, config: Mapping[str, Any]
) -> list[Logger]:
    """The loggers of a run, in the order of `wanted`: names of `NAMES` or own objects.

    Args:
      folder: the run's folder; its name is the run's.
      config: the run's settings, for those who show them.

    Raises:
      UserError: an unknown or repeated name, an object that is no logger, or see `WandbLogger`.
    """
    folder = as_path(folder)
    for place, item in enumerate(wanted):
        if not isinstance(item, str):
            if isinstance(item, type) or not callable(getattr(item, "log", None)):
                raise UserError(
                    f"loggers has {item!r}, which is neither a name nor an object with a method "
                    f"log(step, row); give such an object or one of {', '.join(NAMES)}."
                )
        elif item not in NAMES:
            raise UserError(
                f"loggers has {item!r}, known are {', '.join(NAMES)} (metrics.jsonl is always "
                "written); choose of these or give an object with a method log(step, row)."
            )
        elif item in [other for other in wanted[:place] if isinstance(other, str)]:
            raise UserError(f"loggers has {item!r} twice; name it once.")
    return [_make(item, folder, config) if isinstance(item, str) else item for item in wanted]


def _make(name: str, folder: AnyPath, config: Mapping[str, Any]) -> Logger:
    if name == "wandb":
        return WandbLogger(folder, name=folder.resolve().name, config=config)
    return TensorBoardLogger(folder)
