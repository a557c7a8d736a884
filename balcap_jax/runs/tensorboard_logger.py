"""Rows of a run as TensorBoard files."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from balcap_jax.runs.fields import RHO_EDGES
from balcap_jax.runs.folder import disk_errors
from balcap_jax.runs.sample_tables import table_of, thumbnail
from balcap_jax.storage.local import Mirror
from balcap_jax.storage.paths import AnyPath, as_path


class TensorBoardLogger:
    """Event files under `folder/tensorboard/`; a bucket gets them every minute."""

    def __init__(self, folder: str | AnyPath):
        self._events = as_path(folder) / "tensorboard"
        self._mirror = Mirror(self._events)
        self._writer: Any = None
        self._purge_step: int | None = None

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Numbers as scalars, lists (counts per bin of rho) as histograms; NaN, where there was
        nothing to measure, leaves a gap.

        Raises:
          UserError: the files cannot be written.
        """
        writer = self._open()
        for name, value in row.items():
            if np.ndim(value) == 0:
                if not math.isnan(value):
                    writer.add_scalar(name, float(value), step)
            else:
                writer.add_histogram_raw(name, **_raw_histogram(value), global_step=step)
        with disk_errors(self._events):
            self._mirror.sync()

    def log_samples(
        self, step: int, rows: Sequence[Mapping[str, Any]], images: Sequence[Image]
    ) -> None:
        """The pictures as `samples/1`, `samples/2`, ..., and a table whose column `image` names
        them.
        """
        writer = self._open()
        columns, values, ids = table_of(rows)
        for place, image in enumerate(images, start=1):
            pixels = np.asarray(thumbnail(image))
            writer.add_image(f"samples/{place}", pixels, step, dataformats="HWC")
        lines = [
            ("image", *columns),
            ("---",) * (1 + len(columns)),
            *((f"samples/{1 + ids.index(row[0])}", *map(_cell, row)) for row in values),
        ]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        writer.add_text("samples/captions", table, step)

    def truncate_to(self, step: int) -> None:
        """Makes TensorBoard forget what earlier starts of the run wrote past `step`."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Writes what is left and ends the thread; closing twice is fine."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        with disk_errors(self._events):
            self._mirror.sync(now=True)

    def _open(self) -> Any:
        if self._writer is None:
            # Imported and opened at the first row: the import is slow, and only now is it known
            # from which step on TensorBoard must forget an earlier attempt.
            from tensorboardX import SummaryWriter  # noqa: PLC0415

            with disk_errors(self._events):
                self._writer = SummaryWriter(str(self._mirror.local), purge_step=self._purge_step)
        return self._writer


def _raw_histogram(counts: Sequence[int]) -> dict[str, Any]:
    """The rho histogram as TensorBoard takes it; the open bin ends at twice its lower edge."""
    edges = np.array([*RHO_EDGES, 2 * RHO_EDGES[-1]])
    counts = np.asarray(counts, np.float64)
    middles = (np.array([0.0, *edges[:-1]]) + edges) / 2
    return {
        "min": 0.0,
        "max": float(edges[-1]),
        "num": float(counts.sum()),
        "sum": float((counts * middles).sum()),
        "sum_squares": float((counts * middles**2).sum()),
        "bucket_limits": edges.tolist(),
        "bucket_counts": counts.tolist(),
    }


def _cell(value: Any) -> str:
    """A value of a Markdown table: a caption stays what it is, whatever signs it has."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}"
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", text)
