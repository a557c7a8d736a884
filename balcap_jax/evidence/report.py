"""The page of the evidence: of each claim its tables, pictures and captions."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from balcap_jax.evidence.claims import Claim, Comparison, Curves
from balcap_jax.evidence.compare import RULE, Difference, difference, student_interval, verdict
from balcap_jax.evidence.measures import MARGINS, label_of
from balcap_jax.evidence.numbers import NUMBERS, write_numbers
from balcap_jax.evidence.page import markdown_table, page_of, sections_of
from balcap_jax.evidence.plots import draw_curves, draw_differences, draw_scatter
from balcap_jax.evidence.results import DECODINGS, WINDOW, Found, facts_of, read_folder
from balcap_jax.runs.folder import write_text_atomic

_MEANS = (
    "b_capscore", "precision", "recall", "linguistic", "words", "rho", "commentary", "invented",
    "rho_low", "rho_high",
)  # fmt: skip
_SOME_HAVE = ("qa_utility",)  # columns where a cell has them
_DIGITS = {"rho": 2, "qa_utility": 3}


class Compared(NamedTuple):
    """One measure of one comparison, captions written in one way."""

    comparison: Comparison
    measure: str
    decoding: str
    expected: str
    found: Difference
    verdict: str


def report(out: Path, claims: Sequence[Claim], *, docs: Path, seeds: int) -> list[Path]:
    """Writes `docs`/evidence.md, whose text outside of the marks stays, with its pictures and
    numbers under `docs`/evidence. What is there of other claims, and of claims without a cell in
    `out`, stays, too.

    Returns:
      The files written.

    Raises:
      UserError: `out` is no folder of `balcap reproduce`, or the disk is full.
    """
    code, found = read_folder(out, claims, seeds=seeds)
    page, folder = docs / "evidence.md", docs / "evidence"
    old = page.read_text("utf-8") if page.exists() else "# Evidence\n"
    sections, made = sections_of(old), []
    for claim in claims:
        if any(cells.results for cells in found[claim.name].values()):
            lines, pictures = _claim(claim, found[claim.name], folder, code=code)
            sections[claim.number] = "\n".join(lines).strip()
            made += pictures
        else:
            nothing = [*_title(claim), "No cell is there yet."]
            sections.setdefault(claim.number, "\n".join(nothing))
    numbers = folder / NUMBERS
    write_numbers(numbers, found, code=code)
    write_text_atomic(page, page_of(old, _head(), sections))
    return [page, numbers, *made]


def compare(claim: Claim, found: Mapping[str, Found]) -> Iterator[Compared]:
    """All that the claim compares, in its order; drawn captions before likeliest ones."""
    for comparison in claim.comparisons:
        for measure, expected in comparison.expected.items():
            for decoding in DECODINGS:
                one, other = (
                    found[name].after(measure, decoding)
                    for name in (comparison.one, comparison.other)
                )
                made = difference(one, other)
                said = verdict(made, expected=expected, margin=MARGINS[measure])
                yield Compared(comparison, measure, decoding, expected, made, said)


def _head() -> list[str]:
    margins = "; ".join(f"{label_of(name)}: {margin:g}" for name, margin in MARGINS.items())
    return [
        RULE,
        "",
        f"Margins: {margins}. Scores are of held-out images by the exact rewards, whatever "
        f"training saw. The numbers of every cell are in [{NUMBERS}](evidence/{NUMBERS}).",
    ]


def _title(claim: Claim) -> list[str]:
    return [
        f"## {claim.number}. {claim.title}",
        "",
        f"{claim.says} It would be refuted: {claim.refuted_by}",
        "",
    ]


def _claim(
    claim: Claim, found: Mapping[str, Found], folder: Path, *, code: str
) -> tuple[list[str], list[Path]]:
    """The section of a claim that has cells, and the pictures in it, which are drawn."""
    compared, pictures = [*compare(claim, found)], []

    def picture(name: str, title: str) -> Path:
        pictures.append(folder / f"{claim.name}{name}.svg")
        lines.extend(["", f"![{title}](evidence/{pictures[-1].name})"])
        return pictures[-1]

    lines = [
        *_title(claim),
        *_facts(found, code),
        "",
        *markdown_table(
            ["comparison", "of", "captions", "difference", "bootstrap 95 %", "Student 95 %",
             "d_z", "higher in", "expected", "verdict"],
            [_compared_row(row) for row in compared if row.found.pairs],
        ),
        "",
        *_means(found),
    ]  # fmt: skip
    missing = {name: cells.missing for name, cells in found.items() if cells.missing}
    if missing:
        told = "; ".join(f"{name} seeds {_range(seeds)}" for name, seeds in missing.items())
        lines += ["", f"**Missing cells:** {told}."]
    if any(row.found.pairs > 1 for row in compared):
        draw_differences(compared, picture("", f"differences of claim {claim.number}"))
    for number, curves in enumerate(claim.curves):
        if any(len(found[name].results) for name in curves.cells):
            draw_curves(curves, found, picture(f"_curves_{number}", curves.title))
        lines += _overlaps(curves, found)
    for number, scatter in enumerate(claim.scatters):
        if any(_known(cells, scatter.x) for cells in found.values()):
            draw_scatter(scatter, found, picture(f"_scatter_{number}", scatter.title))
    return [*lines, "", *_side_by_side(claim, found)], pictures


def _facts(found: Mapping[str, Found], code: str) -> list[str]:
    facts = facts_of(found)
    return [
        f"{facts['cells']} cells of the code `{code}`, computed {_range(facts['dates'])} in "
        f"{facts['seconds'] / 3600:.1f} hours of their processes; {'; '.join(facts['versions'])}; "
        f"{'; '.join(facts['devices'])}."
    ]


def _compared_row(row: Compared) -> list[str]:
    found = row.found
    higher = sum(value > 0 for value in found.values)
    return [
        row.comparison.title,
        label_of(row.measure),
        row.decoding,
        _signed(found.mean),
        _interval(found.bootstrap),
        _interval(found.student),
        _signed(found.effect),
        f"{higher} of {found.pairs}",
        row.expected,
        f"**{row.verdict}**",
    ]


def _means(found: Mapping[str, Found]) -> list[str]:
    """Means over seeds, drawn captions and in brackets the likeliest ones; first of the policies
    that they started from.
    """
    rows = []
    whole = {name: cells for name, cells in found.items() if cells.results}
    some = [m for m in _SOME_HAVE if any(_known(cells, m) for cells in whole.values())]
    measures = (*_MEANS, *some)
    for name, cells in whole.items():
        rows.append([name, str(len(cells.results)), *(_both(cells.after, m) for m in measures)])
    starts = _starts(whole)
    before = []
    for names in starts:
        most = max((whole[name] for name in names), key=lambda cells: len(cells.results))
        of = f" of {', '.join(names)}" if len(starts) > 1 else ""
        label = [f"before training{of}", str(len(most.results))]
        before.append([*label, *(_both(most.before, m) for m in measures)])
    return markdown_table(["setting", "seeds", *map(label_of, measures)], [*before, *rows])


def _starts(found: Mapping[str, Found]) -> list[list[str]]:
    """Settings whose policies had the same scores before training, seed by seed, together."""
    starts: list[list[str]] = []
    for name, cells in found.items():
        own = cells.before("b_capscore", DECODINGS[0])
        for names in starts:
            other = found[names[0]].before("b_capscore", DECODINGS[0])
            both = [(own[seed], other[seed]) for seed in own.keys() & other.keys()]
            if np.array_equal(*np.array(both).reshape(-1, 2).T, equal_nan=True):
                names.append(name)
                break
        else:
            starts.append([name])
    return starts


def _known(cells: Found, measure: str) -> bool:
    """Whether held-out captions of these cells have a measure."""
    return not all(np.isnan(value) for value in cells.after(measure, DECODINGS[0]).values())


def _side_by_side(claim: Claim, found: Mapping[str, Found]) -> list[str]:
    """Captions of the same held-out images by all settings, by the likeliest tokens."""
    seeds = [set(cells.results) for cells in found.values() if cells.results]
    common = set.intersection(*seeds) if seeds else set()
    if not claim.captions or not common:
        return []
    shown = {
        name: cells.results[min(common)]["captions"]
        for name, cells in found.items()
        if cells.results
    }
    lines = [f"Captions of seed {min(common)}, written by the likeliest tokens:", ""]
    first = next(iter(shown.values()))
    for place in range(min(claim.captions, len(first))):
        rows = [["reference", first[place]["reference"]]]
        rows += [[name, captions[place]["caption"]] for name, captions in shown.items()]
        lines += [*markdown_table([f"{first[place]['id']}", "caption"], rows), ""]
    return lines


def _both(numbers, measure: str) -> str:
    drawn, likeliest = (_mean(numbers(measure, decoding)) for decoding in DECODINGS)
    digits = _DIGITS.get(measure, 1)
    return f"{_plain(drawn, digits)} ({_plain(likeliest, digits)})"


def _overlaps(curves: Curves, found: Mapping[str, Found]) -> list[str]:
    """Of two cells: how often each mean lies in the other's interval."""
    if len(curves.cells) != 2 or not all(found[cell].results for cell in curves.cells):
        return []
    rows = []
    for name in curves.series:
        one, other = (found[cell].curve(name) for cell in curves.cells)
        share, points = inside_each_other(one, other)
        rows.append([name, f"{len(one)} and {len(other)}", str(points), _plain(100 * share, 0)])
    header = [
        "series",
        "seeds",
        f"points of {WINDOW} steps",
        "inside each other's 95 %, % of points",
    ]
    return ["", *markdown_table(header, rows)]


def inside_each_other(one: np.ndarray, other: np.ndarray) -> tuple[float, int]:
    """(share, number) of the points at which the mean of each lies in Student's 95 % interval of
    the other; NaN with fewer than two seeds on a side.

    Args:
      one, other: [s, w], a row per seed.
    """
    points = min(one.shape[1], other.shape[1])
    if min(len(one), len(other)) < 2 or not points:
        return float("nan"), 0
    inside = 0
    for place in range(points):
        a, b = one[:, place], other[:, place]
        low, high = student_interval(b)
        back_low, back_high = student_interval(a)
        inside += low <= a.mean() <= high and back_low <= b.mean() <= back_high
    return inside / points, points


def _mean(numbers: Mapping[int, float]) -> float:
    known = [value for value in numbers.values() if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _plain(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.2f}"


def _interval(ends: tuple[float, float]) -> str:
    return "-" if np.isnan(ends[0]) else f"{ends[0]:+.2f} ... {ends[1]:+.2f}"


def _range(values: Sequence) -> str:
    return ", ".join(map(str, values))
