"""The page of the evidence: tables between two marks of evidence.md, and a picture per claim."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from balcap_jax.evidence.claims import Claim, Comparison, Curves
from balcap_jax.evidence.compare import RULE, Difference, difference, student_interval, verdict
from balcap_jax.evidence.measures import MARGINS, label_of
from balcap_jax.evidence.plots import draw_curves, draw_differences, draw_scatter
from balcap_jax.evidence.results import DECODINGS, WINDOW, Found, facts_of, read_folder
from balcap_jax.runs.folder import write_text_atomic

BEGIN = "<!-- made by `balcap reproduce report`: do not edit between these marks -->"
END = "<!-- end of what `balcap reproduce report` makes -->"
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
    """Writes `docs`/evidence.md, whose text outside of the marks stays, and `docs`/evidence/*.svg.

    Returns:
      The files written.

    Raises:
      UserError: `out` is no folder of `balcap reproduce`, or the disk is full.
    """
    code, found = read_folder(out, claims, seeds=seeds)
    page, pictures = docs / "evidence.md", docs / "evidence"
    lines, made = [*_head(found, code)], []
    for claim in claims:
        of_claim = found[claim.name]
        compared = [*compare(claim, of_claim)]
        lines += _claim(claim, of_claim, compared)
        if any(row.found.pairs > 1 for row in compared):
            picture = pictures / f"{claim.name}.svg"
            draw_differences(compared, picture)
            made.append(picture)
            lines += ["", f"![differences of claim {claim.number}](evidence/{picture.name})"]
        for number, curves in enumerate(claim.curves):
            picture = pictures / f"{claim.name}_curves_{number}.svg"
            if any(len(of_claim[name].results) for name in curves.cells):
                draw_curves(curves, of_claim, picture)
                made.append(picture)
                lines += ["", f"![{curves.title}](evidence/{picture.name})"]
            lines += _overlaps(curves, of_claim)
        for number, scatter in enumerate(claim.scatters):
            if any(_known(cells, scatter.x) for cells in of_claim.values()):
                picture = pictures / f"{claim.name}_scatter_{number}.svg"
                draw_scatter(scatter, of_claim, picture)
                made.append(picture)
                lines += ["", f"![{scatter.title}](evidence/{picture.name})"]
        lines += ["", *_side_by_side(claim, of_claim)]
    old = page.read_text("utf-8") if page.exists() else "# Evidence\n\n" + BEGIN + END + "\n"
    write_text_atomic(page, between_marks(old, "\n".join(lines)))
    return [page, *made]


def between_marks(page: str, text: str) -> str:
    """`page` with `text` between its marks, or with both at its end where it has none."""
    block = f"{BEGIN}\n\n{text.strip()}\n\n{END}"
    if BEGIN not in page or END not in page:
        return f"{page.rstrip()}\n\n{block}\n"
    head, _, rest = page.partition(BEGIN)
    return head + block + rest.partition(END)[2]


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


def _head(found: Mapping[str, Mapping[str, Found]], code: str) -> list[str]:
    facts = facts_of(found)
    if not facts["cells"]:
        return [f"No cell is there yet (code `{code}`).", ""]
    return [
        f"{facts['cells']} cells of the code `{code}`, computed {_range(facts['dates'])} in "
        f"{facts['seconds'] / 3600:.1f} hours of their processes; {'; '.join(facts['versions'])}; "
        f"{'; '.join(facts['devices'])}. Written {time.strftime('%Y-%m-%d')}.",
        "",
        RULE,
        "",
        "Margins: "
        + "; ".join(f"{label_of(name)}: {margin:g}" for name, margin in MARGINS.items())
        + ". Scores are of held-out images by the exact rewards, whatever training saw.",
        "",
    ]


def _claim(claim: Claim, found: Mapping[str, Found], compared: Sequence[Compared]) -> list[str]:
    lines = [
        f"## {claim.number}. {claim.title}",
        "",
        f"{claim.says} It would be refuted: {claim.refuted_by}",
        "",
    ]
    if not any(cells.results for cells in found.values()):
        return [*lines, "No cell is there yet."]
    lines += [
        *_table(
            ["comparison", "of", "captions", "difference", "bootstrap 95 %", "Student 95 %",
             "d_z", "higher in", "expected", "verdict"],
            [_compared_row(row) for row in compared],
        ),
        "",
        *_means(found),
    ]  # fmt: skip
    missing = {name: cells.missing for name, cells in found.items() if cells.missing}
    if missing:
        told = "; ".join(f"{name} seeds {_range(seeds)}" for name, seeds in missing.items())
        lines += ["", f"**Missing cells:** {told}."]
    return lines


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
    """Means over seeds, drawn captions and in brackets the likeliest ones; the start among them."""
    rows = []
    whole = {name: cells for name, cells in found.items() if cells.results}
    some = [m for m in _SOME_HAVE if any(_known(cells, m) for cells in whole.values())]
    measures = (*_MEANS, *some)
    for name, cells in whole.items():
        rows.append([name, str(len(cells.results)), *(_both(cells.after, m) for m in measures)])
    if whole:
        most = max(whole.values(), key=lambda cells: len(cells.results))
        start = ["before training", str(len(most.results))]
        rows.insert(0, [*start, *(_both(most.before, m) for m in measures)])
    return _table(["setting", "seeds", *map(label_of, measures)], rows)


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
        lines += [*_table([f"{first[place]['id']}", "caption"], rows), ""]
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
    return ["", *_table(header, rows)]


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


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["Nothing to show yet."]
    escaped = [[re.sub(r"\|", r"\\|", cell) for cell in row] for row in rows]
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in escaped),
    ]


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
