"""Two versions of the code made the same cells: what holds in both?

    python examples/evidence/replication.py docs/evidence/cells_first.csv docs/evidence/cells.csv

prints, for each comparison of the required claims, the difference in the first numbers, in the
second and in both together, and the means of each setting over the runs of both, as Markdown
tables. The numbers are those that `balcap reproduce report` writes, of captions drawn at
temperature 1.

Runs of one seed share their scenes, their start and their held-out images, whatever the version;
what else becomes of a seed is luck, since sums that are rounded otherwise soon make other captions.
So the two differences of a seed are averaged, and it counts as one pair: what is left of the
interval is the seeds'.
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from balcap_jax.errors import UserError
from balcap_jax.evidence.claims import Claim, chosen_claims, read_claims, shipped_claims
from balcap_jax.evidence.compare import Difference, difference, verdict
from balcap_jax.evidence.measures import MARGINS, label_of

Numbers = Mapping[tuple[str, str, int], Mapping[str, str]]  # by claim, setting and seed
MEANS = ("b_capscore", "precision", "recall", "linguistic", "words")
HEADER = ("comparison", "of", "first", "second", "both", "seeds", "expected", "verdict of both")


def read_numbers(path: Path) -> Numbers:
    """The rows of a cells.csv.

    Raises:
      UserError: it cannot be read, or is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {
                (row["claim"], row["setting"], int(row["seed"])): row
                for row in csv.DictReader(file)
            }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is no cells.csv of `balcap reproduce report` ({type(error).__name__}: "
            f"{error}); give one of each version."
        ) from error


def after(numbers: Numbers, claim: str, setting: str, measure: str) -> dict[int, float]:
    """A number of the trained policies by seed, of captions drawn at temperature 1."""
    found = {
        seed: row.get(f"after/sampled/{measure}") or "nan"
        for (of_claim, of_setting, seed), row in numbers.items()
        if (of_claim, of_setting) == (claim, setting)
    }
    return {seed: float(text) for seed, text in found.items()}


def averaged(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """The means of both by seed, of the seeds that both have."""
    return {seed: (first[seed] + second[seed]) / 2 for seed in first if seed in second}


def rows_of(claim: Claim, first: Numbers, second: Numbers) -> Iterator[list[str]]:
    """A row per comparison and measure."""
    for comparison in claim.comparisons:
        for measure, expected in comparison.expected.items():
            sides = [
                [after(numbers, claim.name, name, measure) for numbers in (first, second)]
                for name in (comparison.one, comparison.other)
            ]
            versions = [difference(one, other) for one, other in zip(*sides, strict=True)]
            both = difference(*(averaged(*side) for side in sides))
            if both.pairs:
                yield [
                    comparison.title,
                    label_of(measure),
                    *map(_told, (*versions, both)),
                    str(both.pairs),
                    expected,
                    f"**{verdict(both, expected=expected, margin=MARGINS[measure])}**",
                ]


def means_of(claim: Claim, first: Numbers, second: Numbers) -> Iterator[list[str]]:
    """A row per setting: its mean over the runs of both."""
    for setting in claim.settings:
        runs = [
            [
                *after(first, claim.name, setting, measure).values(),
                *after(second, claim.name, setting, measure).values(),
            ]
            for measure in MEANS
        ]
        if runs[0]:
            means = (f"{sum(values) / len(values):.1f}" for values in runs)
            yield [setting, str(len(runs[0])), *means]


def _told(found: Difference) -> str:
    """The mean with Student's interval; a dash where no seed has both sides."""
    if not found.pairs:
        return "-"
    low, high = found.student
    return f"{found.mean:+.1f}" + ("" if math.isnan(low) else f" ({low:+.1f} to {high:+.1f})")


def page(claims: Sequence[Claim], first: Numbers, second: Numbers) -> list[str]:
    """Lines of Markdown."""
    lines = []
    for claim in claims:
        if rows := [*rows_of(claim, first, second)]:
            lines += [f"## {claim.number}. {claim.title}", "", *_table(HEADER, rows), ""]
            header = ("setting", "runs", *map(label_of, MEANS))
            lines += [*_table(header, [*means_of(claim, first, second)]), ""]
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--claims", nargs="*", default=[], help="by number or name")
    flags = parser.parse_args()
    try:
        claims = chosen_claims(read_claims(shipped_claims()), flags.claims)
        if not flags.claims:
            claims = [claim for claim in claims if claim.required]
        lines = page(claims, read_numbers(flags.first), read_numbers(flags.second))
    except UserError as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines).strip())


if __name__ == "__main__":
    main()
