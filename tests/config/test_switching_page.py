"""docs/switching.md tells every name of other frameworks that leads to ours, and none besides."""

from pathlib import Path

import pytest

from balcap_jax.config import foreign_names
from balcap_jax.config.commands import TrainConfig

PAGE = (Path(__file__).parents[2] / "docs" / "switching.md").read_text(encoding="utf-8")
TOLD = [row for row in foreign_names.SETTINGS if row.trl or row.verl or row.tunix]


def line(first, row, *last):
    names = [" ".join(f"`{name}`" for name in of.split()) for of in (row.trl, row.verl, row.tunix)]
    return f"| {' | '.join([first, *names, *last])} |"


@pytest.mark.parametrize(
    ("title", "end", "lines"),
    [
        (
            "## Names",
            "## What is not here",
            [line(f"`{row.ours}`", row, foreign_names.NOTES.get(row.ours, "")) for row in TOLD],
        ),
        ("## What is not here", None, [line(row.ours, row) for row in foreign_names.ABSENT]),
    ],
)
def test_its_tables_are_those_of_the_code(title, end, lines):
    section = PAGE.partition(title)[2]
    section = section.partition(end)[0] if end else section
    _, _, *rows = [row for row in section.splitlines() if row.startswith("|")]
    assert rows == lines, "\n".join(lines)  # to be copied


def test_its_settings_are_taken():
    code = PAGE.partition("bj.TrainConfig.of(")[2].partition("),\n    model=")[0]
    config = TrainConfig.of(eval(code.strip()))  # noqa: S307 - our own page
    assert (config.steps, config.rl.advantage, config.rl.kl_coef) == (200, "trl", 0)
