"""The pictures of a run: its curves over the steps, and the lengths of its captions."""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num

from balcap_jax.config.sections import REWARDS
from balcap_jax.reporting.scores import label_of
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.runs.folder import disk_errors
from balcap_jax.runs.logs import WALL_CLOCK
from balcap_jax.storage.local import written_locally
from balcap_jax.storage.paths import AnyPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#8E5A9B", "#6B7280"
_COLUMNS = 3
_REWARD, _HELDOUT = "reward/", "heldout/"
_NO_PANEL = ("step", "epoch", "rho/std", "heldout/captions")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9CA3AF",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "xtick.color": "#4B5563",
    "ytick.color": "#4B5563",
    "legend.frameon": False,
}


class Panel(NamedTuple):
    """A curve over the steps.

    Attributes:
      key: of metrics.jsonl.
      values: per row, NaN where it has none.
    """

    key: str
    title: str
    color: str
    values: Float[np.ndarray, " n"]


def draw_curves(
    rows: Sequence[Mapping[str, Any]], path: AnyPath, *, band: tuple[float, float] = (0.5, 2.0)
) -> None:
    """One panel per number of metrics.jsonl: rewards first, then held-out scores where they were
    measured along the way, lengths, and the update's health. What stood still is told in words.

    Args:
      rows: of metrics.jsonl.
      path: of the PNG.
      band: the range of rho that the length mask keeps.
    """
    from matplotlib import rc_context  # noqa: PLC0415  half a second, only for reports
    from matplotlib.figure import Figure  # noqa: PLC0415

    found = panels(rows)
    drawn = [panel for panel in found if not stands_still(panel)]
    grid_rows = max(1, -(-len(drawn) // _COLUMNS))
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.0 * _COLUMNS, 2.3 * grid_rows), layout="constrained")
        axes = figure.subplots(grid_rows, _COLUMNS, squeeze=False).ravel()
        steps = np.array([row["step"] for row in rows])
        for ax, panel in zip(axes, drawn, strict=False):
            # A learning rate of 1e-6 varies, and so may a reward of any size; a share that does so
            # little does not.
            exact = panel.key.startswith(("learning_rate", _REWARD, _HELDOUT))
            _draw_panel(ax, panel, steps, floor=0.0 if exact else 1e-2)
            if panel.key == "rho/mean":
                _shade_band(ax, band, horizontal=True)
        for ax in axes[len(drawn) :]:
            ax.set_axis_off()
        figure.supxlabel("\n".join(["step", *_told([x for x in found if stands_still(x)])]))
        save_figure(figure, path)


def draw_lengths(
    before: Num[np.ndarray, " n"],
    after: Num[np.ndarray, " m"],
    path: AnyPath,
    *,
    band: tuple[float, float] = (0.5, 2.0),
) -> None:
    """Histograms of rho before and after training, over the range that the length mask keeps.

    Args:
      before, after: rho of the held-out captions.
      path: of the PNG.
      band: the range of rho that the length mask keeps.
    """
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    highest = max(3.0, 1.25 * band[1])
    edges = np.linspace(0.0, highest, 31)
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 3.4), layout="constrained")
        ax = figure.subplots()
        _shade_band(ax, band, horizontal=False)
        for label, rho, color in (("before", before, GREY), ("after", after, BLUE)):
            rho = rho[np.isfinite(rho)]
            if not rho.size:
                continue
            # Lengths beyond the axis are drawn in its last bin, not left out.
            clipped = np.minimum(rho, highest - 1e-9)
            name = f"{label}: mean {rho.mean():.2f}, median {np.median(rho):.2f}"
            share = np.full(rho.size, 1 / rho.size)
            style = {"bins": edges, "weights": share, "color": color}
            ax.hist(clipped, **style, alpha=0.3)
            ax.hist(clipped, **style, histtype="step", linewidth=1.6, label=name)
            ax.axvline(rho.mean(), color=color, linewidth=1.2, linestyle=(0, (4, 2)))
        ax.set_xlim(0.0, highest)
        ax.set_title("Caption length on held-out images")
        ax.set_xlabel(f"rho = words / words of the reference (last bin: {edges[-2]:.1f} and above)")
        ax.set_ylabel("share of captions")
        ax.legend(loc="upper right")
        save_figure(figure, path)


def smooth(values: Float[np.ndarray, " n"], *, width: float) -> Float[np.ndarray, " n"]:
    """Gaussian moving average, centred so that the curve does not lag behind its points.

    Args:
      values: without NaN.
      width: standard deviation of the window, in points; 0 changes nothing. At both ends only the
        points inside the run are averaged.
    """
    reach = int(np.ceil(3 * width))
    if reach == 0:
        return values
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    total, weight = (np.convolve(x, kernel) for x in (values, np.ones_like(values)))
    return (total / weight)[reach : reach + values.size]


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Every number of metrics.jsonl worth a curve, in the order of their panels."""
    # Not every row need hold every number: some are measured every few steps only.
    keys = list(dict.fromkeys(key for row in rows for key in row if not _passed_over(key)))
    series = {key: values for key in keys if (values := _series(rows, key)) is not None}
    if "learning_rate" in series and _is_constant(series["learning_rate"]):
        del series["learning_rate"]
    rewards = {name: series[key] for key in series if (name := _reward_name(key)) is not None}
    heldout = [key for key in series if key.startswith(_HELDOUT)]
    lengths = [key for key in ("words", "rho/mean") if key in series]
    shown = {*heldout, *lengths, *(key for key in series if key.startswith(_REWARD))}

    made = [Panel(f"{_REWARD}{name}/mean", name, GREEN, values) for name, values in rewards.items()]
    if set(REWARDS) <= set(rewards):
        mean = 100 * harmonic_mean(np.stack([rewards[name] for name in REWARDS]))
        if not np.isnan(mean).all():  # the three need not be measured at the same steps
            made.append(Panel("b_capscore", "b-CapScore of the samples", GREEN, mean))
    made += [
        Panel(key, f"held-out {label_of(key.removeprefix(_HELDOUT))}", ORANGE, series[key])
        for key in heldout
    ]
    made += [Panel(key, key.removesuffix("/mean"), BLUE, series[key]) for key in lengths]
    others = [key for key in series if key not in shown]
    made += [Panel(key, key.replace("_", " "), PURPLE, series[key]) for key in others]
    return made


def stands_still(panel: Panel) -> bool:
    """Whether the whole curve is one number but for rounding, as of what is off in this run; of the
    update's health only, and of more than one step.
    """
    if panel.color != PURPLE or panel.values.size < 2:
        return False
    if panel.key == "learning_rate":  # which is small, and whose every change is meant
        return False
    return _is_constant(panel.values, rounding=1e-4) or bool(np.nanmax(np.abs(panel.values)) < 1e-6)


def _told(still: Sequence[Panel]) -> list[str]:
    """The lines below the panels about those that are not drawn."""
    if not still:
        return []
    named = (f"{panel.title} {float(f'{np.nanmean(panel.values):.3f}'):g}" for panel in still)
    return textwrap.wrap(f"did not change: {', '.join(named)}", width=130)


def _passed_over(key: str) -> bool:
    """Numbers that place a row, or that another panel says better."""
    return key in _NO_PANEL or key.startswith(WALL_CLOCK)


def _reward_name(key: str) -> str | None:
    """The reward whose mean `key` is: any name, one with a slash too."""
    if not (key.startswith(_REWARD) and key.endswith("/mean")):
        return None
    return key.removeprefix(_REWARD).removesuffix("/mean")


def _is_constant(values: Float[np.ndarray, " n"], *, rounding: float = 1e-6) -> bool:
    """Whether they differ by no more than this share of the largest."""
    reach = np.nanmax(values) - np.nanmin(values)
    return bool(reach <= rounding * np.nanmax(np.abs(values)))


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> Float[np.ndarray, " n"] | None:
    """The values of `key`, NaN where null or absent; None for lists and for what has no value."""
    values = [row.get(key) for row in rows]
    if any(isinstance(value, list) for value in values):
        return None
    series = np.array(values, np.float64)  # None becomes NaN
    return None if np.isnan(series).all() else series


def _draw_panel(
    ax: "Axes",
    panel: Panel,
    steps: Num[np.ndarray, " n"],
    *,
    floor: float,
) -> None:
    """`floor`: changes far below this number are drawn as none."""
    measured = ~np.isnan(panel.values)
    ends, steps, values = steps[[0, -1]], steps[measured], panel.values[measured]
    color = panel.color
    ax.plot(steps, values, ".", color=color, alpha=0.35, markersize=5, markeredgewidth=0)
    curve = smooth(values, width=values.size / 30)
    ax.plot(steps, curve, color=color, linewidth=1.8, solid_capstyle="round")
    # A reward may have a name with dollars, and a long one.
    ax.set_title(textwrap.fill(panel.title, 38), parse_math=False)
    ax.update_datalim([(step, values[0]) for step in ends])  # the whole run, also where it is rare
    ax.margins(x=0.02, y=0.1)
    # A number that stays what it was is drawn flat: no axis for the rounding of 1.0000001.
    middle, reach = float(np.mean(values)), float(np.ptp(values)) / 2
    flat = 0.02 * max(abs(middle), floor)
    if reach < flat / 20:
        ax.set_ylim(middle - flat, middle + flat)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.locator_params(axis="both", nbins=5)


def _shade_band(ax: "Axes", band: tuple[float, float], *, horizontal: bool) -> None:
    """The range that the length mask keeps, without stretching the axis to show all of it."""
    limits = ax.get_ylim()
    span = ax.axhspan if horizontal else ax.axvspan
    span(*band, color=ORANGE, alpha=0.08, linewidth=0, label=None if horizontal else "kept by mask")
    if horizontal:
        ax.set_ylim(limits)


def save_figure(figure: "Figure", path: AnyPath) -> None:
    """Writes a PNG, whole or not at all."""
    with disk_errors(path), written_locally(path) as local, warnings.catch_warnings():
        # Words may be of any script; what the font lacks is a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        beside = local.with_name(f".{local.name}.new")
        figure.savefig(beside, format="png", dpi=130, facecolor="white")
        beside.replace(local)
