"""Evaluations of models side by side: tables, plots, and what was found of each image, as a page.

What the page looks like is `report.html.jinja`, which escapes all that it is given.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from balcap_jax.errors import UserError
from balcap_jax.evaluation.report_cards import CARDS, number
from balcap_jax.evaluation.results import TITLES, Results, read
from balcap_jax.evaluation.statistics import Interval, paired_interval
from balcap_jax.reporting.pictures import picture_file, picture_uri
from balcap_jax.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from balcap_jax.reporting.templates import template
from balcap_jax.runs.folder import write_text_atomic

if TYPE_CHECKING:
    from rich.table import Table

PAGE = "report.html"
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
_MOST_MODELS = 5  # beside one another on a page
# Fields of items that are of the benchmark's data, by what they are called.
_DATA = {
    "reference": "reference", "list of oracle facts": "oracle",
    "baseline's caption": "baseline_caption",
}  # fmt: skip


class Side(NamedTuple):
    """A model's results of one benchmark."""

    model: str
    results: Results


class Difference(NamedTuple):
    """Of a number, between the first model and another.

    Attributes:
      told: whether the interval leaves out 0, as far as it is printed.
    """

    value: float
    interval: Interval

    @property
    def told(self) -> bool:
        return round(self.interval.low, 2) > 0 or round(self.interval.high, 2) < 0


def compare(folders: Sequence[Path]) -> dict[str, list[Side]]:
    """The results by benchmark, a side for each folder that has them.

    Raises:
      UserError: a folder has no results, or two evaluated other images, or by other data.
    """
    if len(folders) > _MOST_MODELS:
        raise UserError(
            f"A report shows at most {_MOST_MODELS} models beside one another, not "
            f"{len(folders)}; give fewer folders."
        )
    found: dict[str, list[Side]] = {}
    for folder in folders:
        for results in read(folder):
            sides = found.setdefault(results.record["benchmark"], [])
            name = results.record["model"]
            if any(side.model == name for side in sides):
                name = f"{name} ({folder})"
            sides.append(Side(name, results))
    for sides in found.values():
        _check_same_images(sides)
        _check_same_data(sides)
    return {name: found[name] for name in TITLES if name in found}


def _check_same_images(sides: Sequence[Side]) -> None:
    first, *others = sides
    names = {item["id"] for item in first.results.items}
    for other in others:
        theirs = {item["id"] for item in other.results.items}
        if names != theirs:
            apart = sorted(names ^ theirs)
            raise UserError(
                f"{first.results.folder} and {other.results.folder} are of other images: "
                f"{len(apart)}, such as {apart[0]!r}, are in one of them alone, and models are "
                "compared on the same ones; evaluate both on the same images."
            )


def _check_same_data(sides: Sequence[Side]) -> None:
    first, *others = sides
    asked = {item["id"]: _data_of(item) for item in first.results.items}
    for other in others:
        for item in other.results.items:
            ours, theirs = asked[item["id"]], _data_of(item)
            apart = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
            if apart:
                raise UserError(
                    f"{first.results.folder} and {other.results.folder} are of other data: the "
                    f"{apart[0]} of {item['id']!r} differs, and models are compared on the same "
                    "one; evaluate both on the same data."
                )


def _data_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """What the benchmark says of an image, whatever the caption is; by name, where it is there."""
    found = {name: item.get(field) for name, field in _DATA.items() if item.get(field)}
    asked = [[q["question"], q["answer"], q["choices"]] for q in item.get("questions", ())]
    return found | ({"list of questions": asked} if asked else {})


def alone(folders: Sequence[Path]) -> list[str]:
    """The names of the benchmarks that some of the folders lack.

    Raises:
      UserError: as `compare`.
    """
    return [TITLES[name] for name, sides in compare(folders).items() if len(sides) < len(folders)]


def difference(one: Results, other: Results, name: str, *, seed: int) -> Difference | None:
    """How much `other` is above `one` in a number, with its paired interval over images; None where
    judge or prompts of the two differ, so that the numbers cannot be compared.
    """
    if not _comparable(one, other) or name not in one.measures or name not in other.measures:
        return None
    order = {item["id"]: place for place, item in enumerate(one.items)}
    aligned = other._replace(items=sorted(other.items, key=lambda item: order[item["id"]]))
    first, second = one.measures[name], aligned.measures[name]
    return Difference(second.value - first.value, paired_interval(first, second, seed=seed))


def _comparable(one: Results, other: Results) -> bool:
    same = ("title", "judge")
    return all(one.record.get(name) == other.record.get(name) for name in same)


def tables(folders: Sequence[Path], *, seed: int = 0) -> list["Table"]:
    """The numbers for the terminal.

    Raises:
      UserError: as `compare`.
    """
    from rich import box  # noqa: PLC0415  only the command line prints
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    found = []
    for sides in compare(folders).values():
        table = Table(
            title=escape(sides[0].results.record["title"]), box=box.SIMPLE, title_justify="left"
        )
        table.add_column("")
        for side in sides:
            table.add_column(escape(side.model), justify="right", overflow="fold")
        for row in _rows(sides, seed=seed):
            cells = [
                cell["value"] + (f"\n{cell['difference']}" if cell["difference"] else "")
                for cell in row["cells"]
            ]
            table.add_row(row["name"], *map(escape, cells))
        found.append(table)
    return found


def write_report(
    folders: Sequence[Path], *, html: Path | None = None, shown: int = 40, seed: int = 0
) -> Path:
    """Writes a page that needs no other file; pictures are inside it.

    Args:
      html: where; default: report.html in the last folder.
      shown: how many images of each benchmark.

    Raises:
      UserError: as `compare`.
    """
    path = html or folders[-1] / PAGE
    benchmarks = [
        {
            "name": name,
            "titles": _titles(sides),
            "models": [side.model for side in sides],
            "notes": [_notes(side.results.record) for side in sides],
            "rows": _rows(sides, seed=seed),
            "groups": _groups(sides),
            "plot": _plot(sides),
            "cards": _cards(name, sides, shown=shown),
            "total": len(sides[0].results.items),
        }
        for name, sides in compare(folders).items()
    ]
    models = list(dict.fromkeys(model for b in benchmarks for model in b["models"]))
    write_text_atomic(
        path,
        template("balcap_jax.evaluation", "report.html.jinja").render(
            models=models, benchmarks=benchmarks
        ),
    )
    return path


def _titles(sides: Sequence[Side]) -> list[str]:
    """The names of the numbers: one, unless judges or prompts differ."""
    return list(dict.fromkeys(str(side.results.record["title"]) for side in sides))


def _notes(record: Mapping[str, Any]) -> dict[str, Any]:
    counts = [f"{value} {name.replace('_', ' ')}" for name, value in record["counts"].items()]
    judge = record.get("judge", {})
    return {
        "model": record["model"],
        "counts": ", ".join(counts),
        "judge": str(judge.get("model", "")),
        "prompts": str(judge.get("prompts", "")),
        "date": record["date"],
        "words": f"{number(record['words']['split'])} words",
        "between": [number(value) for value in record.get("strict_between", ())],
        "failures": record.get("failures", ""),
        "flips": None if (share := record.get("flip_share")) is None else f"{100 * share:.1f}",
    }


def _rows(sides: Sequence[Side], *, seed: int) -> list[dict[str, Any]]:
    rows = []
    first = sides[0].results
    for name in first.record["values"]:
        cells = []
        for place, side in enumerate(sides):
            value = side.results.record["values"].get(name)
            between = ""
            if value is not None and value["low"] is not None:
                between = f"{number(value['low'])} to {number(value['high'])}"
            apart = difference(first, side.results, name, seed=seed) if place else None
            cells.append(
                {
                    "value": "-" if value is None else number(value["value"]),
                    "interval": between,
                    "difference": "" if apart is None else _apart(apart),
                    "told": apart is not None and apart.told,
                }
            )
        rows.append({"name": name.replace("_", " "), "cells": cells})
    return rows


def _apart(apart: Difference) -> str:
    low, high = (f"{end:+.2f}" for end in apart.interval)
    return f"{apart.value:+.2f} [{low}, {high}]"


def _groups(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Scores of domains and categories, where the benchmark has them."""
    found = []
    for kind in ("domains", "categories"):
        tables = [side.results.record.get(kind) or {} for side in sides]
        rows = [
            {
                "name": name or "(none)",
                "cells": [number(table[name][0]) if name in table else "-" for table in tables],
            }
            for name in dict.fromkeys(name for table in tables for name in table)
        ]
        if rows:
            found.append({"title": kind, "rows": rows})
    return found


def _plot(sides: Sequence[Side]) -> str:
    """Values with their intervals, as a data URI."""
    from matplotlib.figure import Figure  # noqa: PLC0415  half a second, only for reports

    names = [
        name
        for name in sides[0].results.record["values"]
        if all(
            (side.results.record["values"].get(name) or {}).get("value") is not None
            for side in sides
        )
    ]
    figure = Figure(figsize=(6.0, 0.6 + 0.35 * max(1, len(names) * len(sides))))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for k, side in enumerate(sides):
        for row, name in enumerate(names):
            value = side.results.record["values"][name]
            middle = value["value"]
            ends = [
                0.0 if end is None else abs(middle - end) for end in (value["low"], value["high"])
            ]
            place = row + 0.7 * (k - (len(sides) - 1) / 2) / max(len(sides), 1)
            axes.errorbar(
                middle, place, xerr=[[ends[0]], [ends[1]]], fmt="o", capsize=3,
                color=_COLORS[k], label=side.model if row == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.grid(axis="x", color="#E5E7EB")
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    legend = axes.legend(fontsize=8, frameon=False) if names else None
    for text in legend.get_texts() if legend else ():
        text.set_parse_math(False)  # a model may have a name with dollars
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# Cards --------------------------------------------------------------------------------------------


def _cards(name: str, sides: Sequence[Side], *, shown: int) -> list[dict[str, Any]]:
    by_id = [{item["id"]: item for item in side.results.items} for side in sides]
    cards = []
    for item in sides[0].results.items[:shown]:
        pictures = (
            picture_file(side.results.folder, items[item["id"]].get("picture"))
            for side, items in zip(sides, by_id, strict=True)
        )
        picture = next((file for file in pictures if file is not None), None)
        cards.append(
            {
                "id": item["id"],
                "picture": None if picture is None else picture_uri(picture),
                "reference": item.get("reference") or "",
                "sides": [
                    CARDS[name](items[item["id"]])
                    | {"model": side.model, "caption": items[item["id"]]["caption"]}
                    for side, items in zip(sides, by_id, strict=True)
                ],
            }
        )
    return cards
