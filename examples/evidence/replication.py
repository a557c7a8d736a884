"""Two versions of the code made the same cells: what holds in both?

    python examples/evidence/replication.py docs/evidence/cells_first.csv docs/evidence/cells.csv

prints, for each comparison of the required claims, the difference in the first numbers, in the
second and in both together, and the means of each setting over the runs of both, as Markdown
tables. The numbers are those that `balcap reproduce report` writes, of captions drawn at
temperature 1 or, with `--decoding greedy`, of the likeliest ones.

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
from balcap_jax.evidence.page import markdown_table
from balcap_jax.evidence.results import DECODINGS

Numbers = Mapping[tuple[str, str], Mapping[int, Mapping[str, str]]]  # by claim and setting, by seed
MEANS = ("b_capscore", "precision", "recall", "linguistic", "words")
HEADER = ("comparison", "of", "first", "second", "both", "seeds", "expected", "verdict of both")


def read_numbers(path: Path) -> Numbers:
    """The rows of a cells.csv.

    Raises:
      UserError: it cannot be read, or is no such table.
    """
    found: dict[tuple[str, str], dict[int, Mapping[str, str]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault((row["claim"], row["setting"]), {})[int(row["seed"])] = row
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is no cells.csv of `balcap reproduce report` ({type(error).__name__}: "
            f"{error}); give one of each version."
        ) from error
    return found


def after(
    numbers: Numbers, claim: str, setting: str, measure: str, decoding: str
) -> dict[int, float]:
    """A number of the trained policies by seed."""
    return {
        seed: float(row.get(f"after/{decoding}/{measure}") or "nan")
        for seed, row in numbers.get((claim, setting), {}).items()
    }


def averaged(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """The means of both by seed, of the seeds that both have."""
    return {seed: (first[seed] + second[seed]) / 2 for seed in first if seed in second}


def rows_of(claim: Claim, first: Numbers, second: Numbers, decoding: str) -> Iterator[list[str]]:
    """A row per comparison and measure."""
    for comparison in claim.comparisons:
        for measure, expected in comparison.expected.items():
            sides = [
                [after(numbers, claim.name, name, measure, decoding) for numbers in (first, second)]
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


def means_of(claim: Claim, first: Numbers, second: Numbers, decoding: str) -> Iterator[list[str]]:
    """A row per setting: its mean over the runs of both."""
    for setting in claim.settings:
        runs = [
            [
                value
                for numbers in (first, second)
                for value in after(numbers, claim.name, setting, measure, decoding).values()
            ]
            for measure in MEANS
        ]
        if runs[0]:
            means = (f"{sum(values) / len(values):.1f}" for values in runs)
            yield [setting, str(len(runs[0])), *means]


def _told(found: Difference) -> str:
    """The mean with Student's interval, which a single pair has not."""
    low, high = found.student
    return f"{found.mean:+.1f}" + ("" if math.isnan(low) else f" ({low:+.1f} to {high:+.1f})")


def page(claims: Sequence[Claim], first: Numbers, second: Numbers, decoding: str) -> list[str]:
    """Lines of Markdown."""
    lines = []
    for claim in claims:
        if rows := [*rows_of(claim, first, second, decoding)]:
            means = [*means_of(claim, first, second, decoding)]
            lines += [f"## {claim.number}. {claim.title}", "", *markdown_table(HEADER, rows), ""]
            lines += [*markdown_table(("setting", "runs", *map(label_of, MEANS)), means), ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--claims", nargs="*", default=[], help="by number or name")
    parser.add_argument("--decoding", choices=DECODINGS, default=DECODINGS[0])
    flags = parser.parse_args()
    try:
        claims = chosen_claims(read_claims(shipped_claims()), flags.claims)
        if not flags.claims:
            claims = [claim for claim in claims if claim.required]
        lines = page(claims, read_numbers(flags.first), read_numbers(flags.second), flags.decoding)
    except UserError as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines).strip())


if __name__ == "__main__":
    main()
