"""Rows of a run as one run of Weights & Biases, an optional package."""

import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL.Image import Image

from balcap_jax.errors import UserError
from balcap_jax.runs.fields import RHO_EDGES
from balcap_jax.runs.folder import plain, write_text_atomic
from balcap_jax.runs.progress import console
from balcap_jax.runs.sample_tables import table_of, thumbnail
from balcap_jax.storage.local import Mirror
from balcap_jax.storage.paths import AnyPath, as_path, is_remote

ID_FILE = "wandb_id"  # in the run's folder, so that a resumed run goes on with its wandb run


class WandbLogger:
    """One wandb run per run, also over resumes; wandb's own files are under `folder/wandb/`.

    wandb's environment variables hold (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_API_KEY,
    WANDB_BASE_URL). It is never allowed to ask at the terminal. Charts are over `step`; the steps
    between a checkpoint and a kill come twice, with the same numbers.

    Args:
      folder: the run's folder.
      name: of the run, as wandb shows it.
      config: the run's settings.

    Raises:
      UserError: wandb is not installed, has no API key, or cannot start.
    """

    def __init__(self, folder: str | AnyPath, *, name: str, config: Mapping[str, Any]):
        self._wandb = _import_wandb()
        self._warned = False
        folder = as_path(folder)
        file = folder / ID_FILE
        # Of a run in a bucket wandb's own files stay on this machine until the end.
        self._files = Mirror(folder) if is_remote(folder) else None
        stored = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        self._run = self._start(folder, stored or uuid.uuid4().hex[:8], name, config)
        if not stored:
            write_text_atomic(file, f"{self._run.id}\n")

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Numbers as they are, lists (counts per bin of rho) as histograms."""
        self._try(
            lambda: self._run.log(
                {"step": step}
                | {
                    name: self._histogram(value) if np.ndim(value) else float(value)
                    for name, value in row.items()
                }
            )
        )

    def log_samples(
        self, step: int, rows: Sequence[Mapping[str, Any]], images: Sequence[Image]
    ) -> None:
        """A table `samples` with the pictures in its column `image`."""

        def log() -> None:
            columns, values, ids = table_of(rows)
            shown = dict(zip(ids, images, strict=True))
            data = [[self._wandb.Image(thumbnail(shown[row[0]])), *row] for row in values]
            table = self._wandb.Table(columns=["image", *columns], data=data)
            self._run.log({"step": step, "samples": table})

        self._try(log)

    def close(self) -> None:
        """Ends the wandb run and waits for what is being sent; closing twice is fine."""
        if self._run is not None:
            self._try(self._run.finish)
            self._run = None
            if self._files is not None:
                self._try(self._files.close)

    def _start(self, folder: AnyPath, id: str, name: str, config: Mapping[str, Any]) -> Any:  # noqa: A002
        wandb = self._wandb
        try:
            with _no_questions():
                run = wandb.init(
                    dir=str(folder if self._files is None else self._files.local),
                    id=id,
                    resume="allow",
                    name=name,
                    config=plain(dict(config)),
                    project=os.environ.get("WANDB_PROJECT", "balcap_jax"),
                    reinit="create_new",  # another run of this process stays what it is
                    settings=wandb.Settings(console="off"),  # progress bars are no log
                )
            run.define_metric("*", step_metric="step")
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise UserError(
                f"wandb cannot start ({_line(error)}); set WANDB_API_KEY to a valid key or run "
                "`wandb login` once, or set WANDB_MODE=offline."
            ) from error
        except (wandb.errors.Error, OSError, TimeoutError) as error:
            raise UserError(
                f"wandb cannot start ({_line(error)}); check the network and WANDB_BASE_URL, or "
                "set WANDB_MODE=offline and send the run later with `wandb sync`."
            ) from error
        return run

    def _histogram(self, counts: Sequence[int]) -> Any:
        edges = np.array([0.0, *RHO_EDGES, 2 * RHO_EDGES[-1]])
        return self._wandb.Histogram(np_histogram=(np.asarray(counts), edges))

    def _try(self, call: Callable[[], Any]) -> None:
        """metrics.jsonl has it all: a training run does not end for what wandb cannot take."""
        try:
            call()
        except Exception as error:
            if not self._warned:
                console.print(
                    f"wandb failed ({type(error).__name__}: {_line(error)}); the run goes on, its "
                    "numbers are in metrics.jsonl",
                    style="yellow", highlight=False, markup=False, soft_wrap=True,
                )  # fmt: skip
            self._warned = True


def _import_wandb() -> Any:
    try:
        import wandb  # noqa: PLC0415  half a second, only for those who use it
    except ImportError as error:
        raise UserError(
            "loggers has 'wandb', which is not installed; run pip install 'balcap_jax[wandb]' or "
            "leave it out."
        ) from error
    return wandb


@contextmanager
def _no_questions() -> Iterator[None]:
    """wandb finds no terminal, neither a real one nor a notebook's, to ask for a key at."""
    terminal, stdin = os.environ.get("TERM"), sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        os.environ["TERM"], sys.stdin = "dumb", nothing
        try:
            yield
        finally:
            sys.stdin = stdin
            if terminal is None:
                del os.environ["TERM"]
            else:
                os.environ["TERM"] = terminal


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
