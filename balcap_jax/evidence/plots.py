"""Pictures of the evidence as SVG: differences with their intervals, and curves over steps."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from balcap_jax.evidence.claims import Curves
from balcap_jax.evidence.compare import student_interval
from balcap_jax.evidence.measures import MARGINS, label_of
from balcap_jax.evidence.results import WINDOW, Found
from balcap_jax.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from balcap_jax.runs.folder import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balcap_jax.evidence.report import Compared

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY, "#111827")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "legend.frameon": False,
    "svg.hashsalt": "balcap",  # the same numbers give the same file
}


def draw_differences(rows: Sequence["Compared"], path: Path) -> None:
    """A panel per measure: the difference of each comparison, a dot per seed, and its intervals."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    most = max(sum(row.measure == measure for row in rows) for measure in measures)
    with _figure(path, columns=len(measures), height=1.2 + 0.3 * most) as panels:
        for panel, measure in zip(panels, measures, strict=True):
            _differences([row for row in rows if row.measure == measure], panel)
            panel.set_title(label_of(measure))
            panel.axvspan(-MARGINS[measure], MARGINS[measure], color="#F3F4F6", zorder=0)
            panel.axvline(0, color=GREY, linewidth=1)


def _differences(rows: Sequence["Compared"], panel: Any) -> None:
    names = [f"{row.comparison.title}, {row.decoding}" for row in rows]
    for place, row in enumerate(rows):
        color = BLUE if row.decoding == "sampled" else ORANGE
        found = row.found
        if found.pairs > 1:
            panel.plot(found.student, (place, place), color=color, linewidth=1)
            panel.plot(found.bootstrap, (place, place), color=color, linewidth=4, alpha=0.5)
        panel.plot(found.values, [place] * found.pairs, ".", color=color, alpha=0.6)
        panel.plot([found.mean], [place], "D", color=color, markersize=4)
    panel.set_yticks(range(len(rows)), names)
    panel.invert_yaxis()
    panel.set_xlabel("difference (thick: bootstrap 95 %, thin: Student 95 %)")


def draw_curves(curves: Curves, found: Mapping[str, Found], path: Path) -> None:
    """A panel per series: means over seeds, with Student's 95 % intervals."""
    with _figure(path, columns=len(curves.series), height=2.6) as panels:
        for panel, name in zip(panels, curves.series, strict=True):
            for cell, color in zip(curves.cells, _COLORS * len(curves.cells), strict=False):
                rows = found[cell].curve(name)
                if not rows.size:
                    continue
                steps = WINDOW * (np.arange(rows.shape[1]) + 0.5)
                panel.plot(steps, rows.mean(axis=0), color=color, label=cell)
                if len(rows) > 1:
                    low, high = np.array([student_interval(column) for column in rows.T]).T
                    panel.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            panel.set_title(name)
            panel.set_xlabel("step")
        panels[0].legend()


@contextmanager
def _figure(path: Path, *, columns: int, height: float) -> "Iterator[list[Any]]":
    """Panels beside one another, written to `path` at the end."""
    import matplotlib  # noqa: PLC0415 - it takes a while
    from matplotlib.figure import Figure  # noqa: PLC0415

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * columns, height), layout="constrained")
        yield list(figure.subplots(1, columns, squeeze=False)[0])
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="svg", metadata={"Date": None})
