"""Pictures of the evidence as SVG: differences with their intervals, and curves over steps."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from balcap_jax.evidence.claims import Curves, Scatter
from balcap_jax.evidence.compare import student_interval
from balcap_jax.evidence.measures import MARGINS, label_of
from balcap_jax.evidence.results import WINDOW, Found
from balcap_jax.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from balcap_jax.runs.folder import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balcap_jax.evidence.report import Compared

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY, "#111827")
_OF_DECODING = {"sampled": BLUE, "greedy": ORANGE}
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
    of_measure: dict[str, dict[str, list[Compared]]] = {}
    for row in rows:
        titles = of_measure.setdefault(row.measure, {})
        titles.setdefault(row.comparison.title, []).append(row)
    heights = [len(titles) + 1.5 for titles in of_measure.values()]
    size = (8.0, 0.6 + 0.33 * sum(heights))
    with _figure(path, size, len(heights), 1, height_ratios=heights) as panels:
        for panel, (measure, titles) in zip(panels, of_measure.items(), strict=True):
            panel.set_title(label_of(measure))
            panel.axvspan(-MARGINS[measure], MARGINS[measure], color="#F3F4F6", zorder=0)
            panel.axvline(0, color=GREY, linewidth=1)
            for place, of_title in enumerate(titles.values()):
                _differences(of_title, place, panel)
            panel.set_xlim(_span(titles.values(), margin=MARGINS[measure]))
            panel.set_yticks(range(len(titles)), list(titles))
            panel.set_ylim(len(titles) - 0.5, -0.5)
        panels[-1].set_xlabel("difference")
        # Below all of the picture: beside long titles a panel is too narrow for it.
        panels[-1].figure.supxlabel(
            "dots: seeds; thick: bootstrap 95 %; thin: Student 95 %, may leave the picture; grey: "
            "the margin",
            fontsize="medium",
        )
        for decoding, color in _OF_DECODING.items():
            panels[0].plot([], [], "D", color=color, markersize=4, label=decoding)
        panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def _span(of_titles: Iterable[Sequence["Compared"]], *, margin: float) -> tuple[float, float]:
    """Of an axis with all seeds, 0 and the margin; intervals of few seeds may be far longer."""
    values = [value for rows in of_titles for row in rows for value in row.found.values]
    low, high = min([-margin, *values]), max([margin, *values])
    return low - 0.3 * (high - low), high + 0.3 * (high - low)


def _differences(rows: Sequence["Compared"], place: int, panel: Any) -> None:
    for row, height in zip(rows, np.linspace(-0.15, 0.15, len(rows)) + place, strict=True):
        color, found = _OF_DECODING[row.decoding], row.found
        if found.pairs > 1:
            panel.plot(found.student, (height, height), color=color, linewidth=1)
            panel.plot(found.bootstrap, (height, height), color=color, linewidth=4, alpha=0.5)
        panel.plot(found.values, [height] * found.pairs, ".", color=color, alpha=0.6)
        panel.plot([found.mean], [height], "D", color=color, markersize=4)


def draw_curves(curves: Curves, found: Mapping[str, Found], path: Path) -> None:
    """A panel per series: means over seeds, with Student's 95 % intervals."""
    count = len(curves.series)
    with _figure(path, (4.0 * count, 2.6), 1, count) as panels:
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


def draw_scatter(scatter: Scatter, found: Mapping[str, Found], path: Path) -> None:
    """Drawn captions: a dot per seed and a ring at their mean, larger where `size` is larger."""
    sizes = [v for cells in found.values() for v in cells.after(scatter.size, "sampled").values()]
    largest = np.nanmax([*sizes, 0.0])
    if not largest > 0:
        largest = 1.0
    with _figure(path, (6.4, 4.2), 1, 1) as (panel,):
        colors = _COLORS * (1 + len(found) // len(_COLORS))
        for color, (name, cells) in zip(colors, found.items(), strict=False):
            x, y, size = (
                np.array(list(cells.after(measure, "sampled").values()))
                for measure in (scatter.x, scatter.y, scatter.size)
            )
            if not x.size:
                continue
            area = 240 * (size / largest) ** 2
            panel.scatter(x, y, s=area, color=color, alpha=0.35, linewidths=0)
            panel.scatter(x.mean(), y.mean(), s=area.mean(), facecolors="none", edgecolors=color)
            panel.annotate(name, (x.mean(), y.mean()), textcoords="offset points", xytext=(6, 6))
        panel.margins(0.15)  # for the names
        panel.set_title(scatter.title)
        panel.set_xlabel(label_of(scatter.x))
        panel.set_ylabel(label_of(scatter.y))
        panel.text(
            0.99, 0.02, f"size: {label_of(scatter.size)}, the largest {largest:.3g}",
            transform=panel.transAxes, ha="right", color=GREY,
        )  # fmt: skip


@contextmanager
def _figure(
    path: Path, size: tuple[float, float], rows: int, columns: int, **layout: Any
) -> "Iterator[list[Any]]":
    """Panels in rows and columns, written to `path` at the end."""
    import matplotlib  # noqa: PLC0415 - it takes a while
    from matplotlib.figure import Figure  # noqa: PLC0415

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield list(figure.subplots(rows, columns, squeeze=False, **layout).reshape(-1))
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="svg", metadata={"Date": None})
