"""A few captions before and after training beside their images, in one picture to hand around."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from balcap_jax.reporting.pairs import KINDS, Finding, findings
from balcap_jax.reporting.pictures import picture_file
from balcap_jax.reporting.plots import GREEN, GREY, ORANGE, save_figure
from balcap_jax.reporting.scores import caption_score
from balcap_jax.storage.paths import AnyPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"true": GREEN, "false": ORANGE, "vague": GREY}
_FAULTS_FIRST = ("false", "vague", "true")
_WIDTH, _NARROW = 76, 40  # characters of a line of a caption, and of a statement
_COLUMNS, _LINES = 2, 9  # of statements below a caption
_LINE = 0.068  # of the height of a cell


def draw_captions(
    run: AnyPath, pairs: Sequence[Mapping[str, Any]], path: AnyPath, *, count: int = 4
) -> None:
    """A row per image: the image, its caption before and after, and what each of them states, true,
    false or not pointable, faults first.

    Args:
      run: the run's folder, which the paths of the pictures are relative to; no other is read.
      pairs: made by `pair_captions`; the first `count` are shown.
      path: of the PNG.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  half a second, only for reports

    shown = pairs[:count]
    figure = Figure(figsize=(13.0, 2.9 * max(1, len(shown)) + 0.5), layout="constrained")
    grid = figure.subplots(max(1, len(shown)), 3, squeeze=False, width_ratios=[2.4, 5.2, 5.2])
    for ax in grid.ravel():
        ax.set_axis_off()
    for row, pair in zip(grid, shown, strict=False):
        _draw_image(row[0], run, pair)
        for ax, when in zip(row[1:], ("before", "after"), strict=True):
            _draw_side(ax, when, pair[when])
    legend = "     ".join(f"{mark} {meaning}" for mark, meaning in KINDS.values())
    figure.supxlabel(legend, fontsize=9, color=GREY)
    save_figure(figure, path)


def _draw_image(ax: "Axes", run: AnyPath, pair: Mapping[str, Any]) -> None:
    file = picture_file(run, pair["image"])
    if file is None:
        return
    with file.open("rb") as stream, Image.open(stream) as picture:
        ax.imshow(picture.convert("RGB"), interpolation="nearest")


def _draw_side(ax: "Axes", when: str, side: Mapping[str, Any]) -> None:
    scores = ", ".join(f"{name} {caption_score(name, x)}" for name, x in side["rewards"].items())
    _write(ax, 0.0, 1.0, [f"{when}: {scores}"], color=GREY, size=8.0)
    caption = textwrap.wrap(_clean(side["caption"]), _WIDTH, max_lines=6, placeholder=" ...")
    _write(ax, 0.0, 1.0 - _LINE * 1.3, caption or ["(nothing)"], color="black", size=9.0)
    top = 1.0 - _LINE * (1.9 + 0.96 * max(1, len(caption)))
    found = [finding for finding in findings(side) if finding.kind in KINDS]
    found.sort(key=lambda finding: _FAULTS_FIRST.index(finding.kind))
    for place, (text, color) in enumerate(_lines(found)):
        column, line = divmod(place, _LINES)
        _write(ax, column / _COLUMNS, top - line * _LINE * 0.92, [text], color=color, size=7.5)


def _lines(found: Sequence[Finding]) -> list[tuple[str, str]]:
    """(text, colour) of as many as there is room for; the last says how many more there are."""
    room = _COLUMNS * _LINES
    shown = found if len(found) <= room else found[: room - 1]
    lines = [
        (
            textwrap.shorten(f"{x.mark} {_clean(x.text)}", _NARROW, placeholder=" ..."),
            _COLORS[x.kind],
        )
        for x in shown
    ]
    rest = len(found) - len(shown)
    return [*lines, (f"and {rest} more", GREY)] if rest else lines


def _clean(text: str) -> str:
    """On one line, what can be printed."""
    return "".join(x for x in " ".join(text.split()) if x.isprintable())


def _write(
    ax: "Axes", x: float, y: float, lines: Sequence[str], *, color: str, size: float
) -> None:
    ax.text(
        x,
        y,
        "\n".join(lines),
        color=color,
        fontsize=size,
        verticalalignment="top",
        transform=ax.transAxes,
        parse_math=False,  # a caption may have dollars
    )
