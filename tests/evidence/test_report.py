"""The page of the evidence, of results made by hand."""

import csv
import json

import pytest

from balcap_jax.cli import main as cli
from balcap_jax.errors import UserError
from balcap_jax.evidence.claims import read_claim
from balcap_jax.evidence.compare import difference
from balcap_jax.evidence.files import CELLS, RESULT
from balcap_jax.evidence.page import BEGIN, END, between_marks, sections_of
from balcap_jax.evidence.plots import _span
from balcap_jax.evidence.report import Compared, report
from balcap_jax.evidence.runner import open_folder

CLAIM = """
number = 1
name = "first"
title = "One beside another"
says = "They differ."
refuted_by = "They do not."
required = true
captions = 1

[cells.gdpo]

[cells.grpo]
rl.advantage = "grpo"

[[comparisons]]
title = "as they are"
one = "gdpo"
other = "grpo"
expected = {b_capscore = "higher", words = "equal"}

[[curves]]
title = "length"
cells = ["gdpo", "grpo"]
series = ["words"]

[[scatters]]
title = "length and score"
x = "words"
y = "b_capscore"
size = "rho"
"""


@pytest.fixture
def claim(tmp_path):
    path = tmp_path / "claim.toml"
    path.write_text(CLAIM)
    return read_claim(path)


def result(cell, score, words):
    scores = {"b_capscore": score, "words": words, "rho": 1.0}
    both = scores | {f"greedy/{name}": value + 1 for name, value in scores.items()}
    return {
        "cell": {"kind": "train", "settings": {"seed": cell.seed, "rl": cell.config.rl.advantage}},
        "date": "2026-11-26",
        "versions": {"jax": "0.10.2"},
        "device": "cpu",
        "cores": 2,
        "scores": {"before": both | {"b_capscore": 60.0}, "after": both},
        "captions": [
            {"id": f"heldout-{i}", "reference": "A | b.", "caption": f"{score} of {i}."}
            for i in range(2)
        ],
        "series": {"step": list(range(10)), "words": [words] * 10},
        "steps": 10,
        "seconds": 360.0,
    }


@pytest.fixture
def out(tmp_path, claim):
    folder = tmp_path / "out"
    open_folder(folder, code="x")
    # Differences 2, 1 and 4; the lengths are the same.
    for name, scores in (("gdpo", (81, 80, 84)), ("grpo", (79, 79, 80))):
        for seed, score in enumerate(scores):
            cell = claim.cell(name, seed)
            place = folder / CELLS / cell.key("x")
            place.mkdir()
            (place / RESULT).write_text(json.dumps(result(cell, score, 50.0 + seed)))
    return folder


def rows_of(page, start):
    return [line.split(" | ") for line in page.splitlines() if line.startswith(f"| {start} |")]


def test_differences_intervals_and_verdicts_are_those_of_the_cells(out, claim):
    page, _, *pictures = report(out, [claim], docs=out, seeds=4)
    text = page.read_text()
    score, greedy, words, _ = rows_of(text, "as they are")
    # As in test_compare: mean 7/3, resampled means from 1 to 4, Student's half-width 3.79.
    assert score[1:] == [
        "b-CapScore", "sampled", "+2.33", "+1.00 ... +4.00", "-1.46 ... +6.13", "+1.53", "3 of 3",
        "higher", "**not shown** |",
    ]  # fmt: skip
    assert greedy[2:4] == ["greedy", "+2.33"]
    assert words[3] == "+0.00"
    assert words[-1] == "**equal** |"
    assert rows_of(text, "before training")[0][2] == "60.0 (82.7)"  # greedy stayed in both
    assert rows_of(text, "gdpo")[0][1:3] == ["3", "81.7 (82.7)"]
    assert "**Missing cells:** gdpo seeds 3; grpo seeds 3." in text
    assert "6 cells of the code `x`, computed 2026-11-26 in 0.6 hours" in text
    assert rows_of(text, "words")[0][1:] == ["3 and 3", "2", "100 |"]
    names = ["first.svg", "first_curves_0.svg", "first_scatter_0.svg"]
    assert [picture.name for picture in pictures] == names
    assert "length and score" in pictures[-1].read_text()
    assert all(picture.read_text().startswith("<?xml") for picture in pictures)


def test_each_policy_that_settings_start_from_is_shown(out, claim):
    for path in (out / CELLS).glob(f"*/{RESULT}"):
        told = json.loads(path.read_text())
        if told["cell"]["settings"]["rl"] == "grpo":
            told["scores"]["before"]["b_capscore"] = 20.0 + told["cell"]["settings"]["seed"]
            path.write_text(json.dumps(told))
    text = report(out, [claim], docs=out, seeds=3)[0].read_text()
    assert rows_of(text, "before training of gdpo")[0][1:3] == ["3", "60.0 (82.7)"]
    assert rows_of(text, "before training of grpo")[0][1:3] == ["3", "21.0 (80.3)"]
    assert not rows_of(text, "before training")


def test_captions_of_the_same_images_stand_side_by_side(out, claim):
    text = report(out, [claim], docs=out, seeds=3)[0].read_text()
    table = text.partition("Captions of seed 0")[2]
    assert "| heldout-0 | caption |" in table
    assert "| reference | A \\| b. |" in table
    assert "| gdpo | 81 of 0. |\n| grpo | 79 of 0. |" in table
    assert "heldout-1" not in table  # one image, as the claim says


def test_text_outside_of_the_marks_stays_and_the_report_repeats(out, claim):
    page = out / "evidence.md"
    page.write_text(f"# Evidence\n\nBefore.\n\n{BEGIN}old{END}\n\nAfter.\n")
    report(out, [claim], docs=out, seeds=3)
    text, picture = page.read_text(), (out / "evidence" / "first.svg").read_bytes()
    assert text.startswith(f"# Evidence\n\nBefore.\n\n{BEGIN}")
    assert text.endswith(f"{END}\n\nAfter.\n")
    assert "old" not in text.partition("hours")[0].rpartition("Before.")[2]
    assert "Missing" not in text
    report(out, [claim], docs=out, seeds=3)
    assert page.read_text() == text
    assert (out / "evidence" / "first.svg").read_bytes() == picture


def test_a_page_without_marks_gets_them_at_its_end():
    assert between_marks("# Words\n", "table") == f"# Words\n\n{BEGIN}\n\ntable\n\n{END}\n"


def test_the_numbers_of_each_cell_stand_beside_the_page(out, claim):
    _, path, *_ = report(out, [claim], docs=out, seeds=4)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    told = [(row["claim"], row["setting"], row["seed"], row["code"]) for row in rows]
    assert told == [("first", name, str(s), "x") for name in ("gdpo", "grpo") for s in range(3)]
    scores = [row["after/sampled/b_capscore"] for row in rows]
    assert scores == ["81", "80", "84", "79", "79", "80"]
    assert {row["before/sampled/b_capscore"] for row in rows} == {"60"}
    assert rows[0]["after/greedy/words"] == "51"
    assert rows[0]["after/sampled/recall"] == "nan"  # what a result does not have
    assert (rows[0]["versions"], rows[0]["seconds"]) == ("jax 0.10.2", "360")


def test_claims_without_a_cell_keep_what_an_earlier_report_says_of_them(out, claim, tmp_path):
    kept = "## 3. Another\n\nIts table."
    page = out / "evidence.md"
    page.write_text(f"# Evidence\n\n{BEGIN}\nOld head.\n\n## 1. Old\n\nOld.\n\n{kept}\n\n{END}\n")
    (out / "evidence").mkdir()
    (out / "evidence" / "cells.csv").write_text(
        "claim,setting,seed,code\nthird,gdpo,0,y\nfirst,gdpo,9,y\n"
    )
    (tmp_path / "third.toml").write_text(
        CLAIM.replace("number = 1", "number = 3")
        .replace('"first"', '"third"')
        # Cells of its own, of which none is there.
        .replace("[cells.gdpo]", "[base]\nsteps = 4\n\n[cells.gdpo]")
    )
    third = read_claim(tmp_path / "third.toml")
    page, numbers, *_ = report(out, [claim, third], docs=out, seeds=3)
    text = page.read_text()
    sections = sections_of(text)
    assert list(sections) == [1, 3]
    assert sections[3] == kept
    assert "Old" not in text
    rows = list(csv.DictReader(numbers.read_text().splitlines()))
    assert [row["seed"] for row in rows if row["claim"] == "third"] == ["0"]
    assert [row["seed"] for row in rows if row["claim"] == "first"] == ["0", "1", "2"] * 2


def test_a_claim_that_only_shares_cells_stays_as_it_is(out, tmp_path, capsys):
    """Its section may be of a folder that has all of its cells."""
    docs, shared = tmp_path / "docs", tmp_path / "shared.toml"
    shared.write_text(CLAIM.replace("number = 1", "number = 3").replace('"first"', '"third"'))
    files = ["--claims", str(tmp_path / "claim.toml"), str(shared), "--docs", str(docs)]
    command = ["reproduce", "report", str(out), *files, "--seeds", "3"]
    assert cli.main(command) == 0
    page, numbers = docs / "evidence.md", docs / "evidence" / "cells.csv"
    text, rows = page.read_text(), numbers.read_text()
    page.write_text(text.replace("## 1.", "## 1. Old:").replace("## 3.", "## 3. Old:"))
    numbers.write_text(rows.replace("first,gdpo", "first,old").replace("third,gdpo", "third,old"))
    assert cli.main([*command, "--only", "first"]) == 0
    assert page.read_text() == text.replace("## 3.", "## 3. Old:")
    expected = rows.replace("third,gdpo", "third,old")
    assert sorted(numbers.read_text().splitlines()) == sorted(expected.splitlines())
    assert cli.main([*command, "--only", "second"]) == 2
    assert "there is no claim 'second'" in capsys.readouterr().err


def test_nothing_computed_is_said(tmp_path, claim):
    folder = tmp_path / "empty"
    open_folder(folder, code="x")
    page, _, *pictures = report(folder, [claim], docs=folder, seeds=2)
    text = page.read_text()
    assert text.count("No cell is there yet") == 1
    assert claim.says in text
    assert "|" not in text  # no table of nothing
    assert pictures == []


def test_another_folder_is_refused(tmp_path, claim):
    with pytest.raises(UserError, match="is no folder of `balcap reproduce`"):
        report(tmp_path, [claim], docs=tmp_path, seeds=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["spread"], "there is no claim 'spread', known are 1 (spreads), "),
        (["spread"], "did you mean spreads?"),
        (["1", "--budget", "0h"], "budget='0h' must be above 0"),
        (["--budget", "soon"], "budget='soon' is no time"),
        (["--jobs", "0"], "jobs=0 must be at least 1"),
        (["--job", "2"], "has no flag --job; did you mean --jobs?"),
    ],
)
def test_mistakes_of_the_command_are_one_sentence(arguments, said, tmp_path, capsys):
    out = tmp_path / "new"
    assert cli.main(["reproduce", *arguments, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_the_command_reports_a_folder(out, tmp_path, capsys):
    claims = ["--claims", str(tmp_path / "claim.toml"), "--docs", str(tmp_path / "docs")]
    assert cli.main(["reproduce", "report", str(out), *claims, "--seeds", "3"]) == 0
    assert str(tmp_path / "docs" / "evidence.md") in capsys.readouterr().out


def test_the_axis_of_differences_holds_all_seeds_and_not_intervals_of_few(claim):
    def row(*values):
        found = difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
        return Compared(claim.comparisons[0], "words", "sampled", "equal", found, "")

    low, high = _span([[row(3.0, 8.0)], [row(-1.0)]], margin=2.0)
    assert (low, high) == (-2 - 3, 8 + 3)  # 0.3 of 10 on both sides
    assert row(3.0, 8.0).found.student[1] > 30
