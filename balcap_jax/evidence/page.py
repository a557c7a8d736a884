"""The part of evidence.md that a report writes: a section for each claim, between two marks."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

BEGIN = "<!-- made by `balcap reproduce report`: do not edit between these marks -->"
END = "<!-- end of what `balcap reproduce report` makes -->"
_HEADING = re.compile(r"^## (\d+)\. ", re.MULTILINE)  # "## 3. Length control"


def sections_of(page: str) -> dict[int, str]:
    """The sections between the marks by the numbers of their claims; none where no marks are."""
    made = page.partition(BEGIN)[2].partition(END)[0]
    starts = [match.start() for match in _HEADING.finditer(made)]
    parts = [made[i:j].strip() for i, j in pairwise([*starts, len(made)])]
    return {int(_HEADING.match(part)[1]): part for part in parts}


def page_of(old: str, head: Sequence[str], sections: Mapping[int, str]) -> str:
    """The page `old` with a head and these sections, by their numbers, between its marks."""
    parts = ["\n".join(head).strip(), *(sections[number] for number in sorted(sections))]
    return between_marks(old, "\n\n".join(parts))


def between_marks(page: str, text: str) -> str:
    """`page` with `text` between its marks, or with both at its end where it has none."""
    block = f"{BEGIN}\n\n{text.strip()}\n\n{END}"
    if BEGIN not in page or END not in page:
        return f"{page.rstrip()}\n\n{block}\n"
    head, _, rest = page.partition(BEGIN)
    return head + block + rest.partition(END)[2]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, or one that says that there is nothing in it."""
    if not rows:
        return ["Nothing to show yet."]
    escaped = [[re.sub(r"\|", r"\\|", cell) for cell in row] for row in rows]
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in escaped),
    ]
