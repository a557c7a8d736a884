"""The report says what the run's files say; its table, b-CapScore and means by hand."""

import ast
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reported_run import NAMES, caption, judge_again
from rich.console import Console

from balcap_jax.errors import UserError
from balcap_jax.reporting.report import evaluation_summary, report, summary_table
from balcap_jax.reporting.scores import summary_rows
from balcap_jax.runs.folder import write_json_atomic, write_jsonl_atomic

NAN = float("nan")


def test_makes_every_file_again(run):
    made = report(run)
    pictures = ["curves.png", "lengths.png", "captions.png"]
    names = [*pictures, "captions.html", "captions.md", "captions.jsonl"]
    assert [path.name for path in made] == names
    for path in made[:3]:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert image.format == "PNG"
        assert min(pixels.shape) > 300
        assert pixels.std() > 5  # something is drawn
    rows = [json.loads(line) for line in made[5].read_text().splitlines()]
    assert [row["id"] for row in rows] == ["scene-0", "scene-1"]
    assert rows[0]["before"]["caption"] == "A red circle, before."
    assert rows[0]["after"]["caption"] == "A red circle, after."
    before = [path.read_bytes() for path in made[2:]]
    assert [path.read_bytes() for path in report(run)[2:]] == before
    assert not [path for path in run.iterdir() if path.name.endswith(".new")]


def test_one_step_is_enough(run):
    """Also without an evaluation, and with numbers that are null from the start."""
    (run / "evaluation" / "after.jsonl").unlink()
    row = {"step": 1, "words": 3.0, "kl": None, "reward/precision/mean": None}
    write_jsonl_atomic(run / "metrics.jsonl", [row | {"reward/recall/mean": 0.5}])
    assert [path.name for path in report(run)] == ["curves.png"]


def test_what_cannot_be_reported(run, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        report(tmp_path / "missing")
    with pytest.raises(UserError, match=r"it has no metrics\.jsonl"):
        report(run / "evaluation")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has no metrics yet"):
        report(run)


def test_evaluation_summary_by_hand():
    rewards = np.float32([[0.5, 0.2, 1.0], [1.0, 0.4, NAN], [NAN, NAN, NAN], [0.75, 0.6, 0.5]])
    summary = evaluation_summary(
        rewards, np.array([10, 20, 30, 40]), np.array([0.5, 1, 1.5, 2]), names=NAMES
    )
    # means 0.75, 0.4, 0.75 -> 3 / (4/3 + 5/2 + 4/3) = 18/31
    expected = {
        "precision": 75.0,
        "recall": 40.0,
        "linguistic": 75.0,
        "b_capscore": 100 * 18 / 31,
        "words": 25.0,
        "rho": 1.25,
        "captions": 4,
        "no_signal": 2,
    }
    assert summary.keys() == expected.keys()
    np.testing.assert_allclose(list(summary.values()), list(expected.values()), rtol=1e-6)


def test_b_capscore_at_its_edges():
    words, rho = np.array([1, 1]), np.array([1.0, 1.0])
    zero = evaluation_summary(np.float32([[0, 1, 1], [0, 1, 1]]), words, rho, names=NAMES)
    assert zero["b_capscore"] == 0.0
    nothing = evaluation_summary(np.float32([[NAN, 1, 1], [NAN, 1, 1]]), words, rho, names=NAMES)
    assert np.isnan(nothing["precision"])
    assert np.isnan(nothing["b_capscore"])
    assert nothing["recall"] == 100.0
    equal = evaluation_summary(np.full((2, 3), 0.7, np.float32), words, rho, names=NAMES)
    np.testing.assert_allclose(equal["b_capscore"], 70.0, rtol=1e-6)


def test_summary_table_shows_the_change():
    side = {"precision": 60.0, "recall": 40.0, "linguistic": 70.0, "b_capscore": 53.5}
    summary = {
        "before": {**side, "words": 40.25, "rho": 0.95},
        "after": {**side, "precision": 72.26, "recall": 39.0, "linguistic": None, "words": 45.0,
                  "rho": 1.05},
    }  # fmt: skip
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(summary))
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines()
            if "│" in line}  # fmt: skip
    assert list(rows) == ["precision", "recall", "linguistic", "b-CapScore", "words", "rho"]
    cells = {name: line.split("│")[2:-1] for name, line in rows.items()}
    shown = {name: [cell.strip() for cell in row] for name, row in cells.items()}
    assert shown["precision"] == ["60.0", "72.3", "+12.3"]
    assert shown["recall"] == ["40.0", "39.0", "-1.0"]
    assert shown["linguistic"] == ["70.0", "-", "-"]
    assert shown["b-CapScore"] == ["53.5", "53.5", "+0.0"]
    assert shown["rho"] == ["0.95", "1.05", "+0.10"]


@pytest.mark.parametrize("names", [("short",), ("precision", "recall", "short"), ("a", "b")])
def test_without_the_three_there_is_no_b_capscore(names):
    rewards = np.full((2, len(names)), 0.5, np.float32)
    summary = evaluation_summary(rewards, np.array([4, 6]), np.array([1.0, 2.0]), names=names)
    assert list(summary) == [*names, "words", "rho", "captions", "no_signal"]
    assert [row.label for row in summary_rows({"before": summary, "after": summary})] == [
        *names, "words", "rho",
    ]  # fmt: skip


def test_b_capscore_is_of_the_three_alone():
    names = ("short", "linguistic", "recall", "precision")
    rewards = np.float32([[-40.0, 1.0, 0.25, 0.5], [NAN, 1.0, 0.25, 0.5]])
    summary = evaluation_summary(rewards, np.array([1, 1]), np.array([1.0, 1.0]), names=names)
    # 3 / (1/1 + 1/0.25 + 1/0.5) = 3/7
    assert summary["b_capscore"] == pytest.approx(100 * 3 / 7)
    assert summary["short"] == -40.0  # as it is
    assert summary["recall"] == 25.0
    assert summary["no_signal"] == 1


@pytest.mark.parametrize("name", ["words", "rho", "b_capscore", "captions", "no_signal"])
def test_a_reward_cannot_take_the_name_of_another_number(name):
    with pytest.raises(UserError, match=f"reward name '{name}' is that of another number"):
        evaluation_summary(
            np.ones((1, 2), np.float32), np.array([1]), np.array([1.0]), names=("short", name)
        )


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (-0.012345, 0.5, ("-0.0123", "0.500", "+0.512", True)),
        (205.4, -81.64, ("205", "-81.6", "-287", False)),
        (12345.6, 12346.6, ("12346", "12347", "+1", True)),
        (0.5, 0.5 + 1e-12, ("0.500", "0.500", "+0.000", None)),  # no change but rounding
        (0.0, 0.0, ("0.00", "0.00", "+0.00", None)),
        (2e6, 3e6, ("2.00e+06", "3.00e+06", "+1.00e+06", True)),
        (None, 2.0, ("-", "2.00", "-", None)),
        (NAN, NAN, ("-", "-", "-", None)),
    ],
)
def test_a_reward_of_any_size_has_three_digits(before, after, shown):
    (row,) = summary_rows({"before": {"own": before}, "after": {"own": after}})
    assert row == ("own", *shown)


def test_names_are_no_markup_of_the_terminal():
    side = {"loss[red]": 1.0, "[/]": 1.0, "words": 3.0}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table({"before": side, "after": side}))
    text = console.export_text()
    assert "loss[red]" in text
    assert "[/]" in text


def test_a_run_of_own_rewards_is_reported(run):
    """Curves, lengths, gallery and table without precision, recall and linguistic."""
    rows = [{"step": s, "reward/short/mean": s / 3, "reward/short/std": 0.1} for s in (1, 2, 3)]
    write_jsonl_atomic(run / "metrics.jsonl", rows)
    row = caption("x", 0, rewards={"short": 0.25}, verdict=None, units=())
    judge_again(run, [row])
    side = evaluation_summary(
        np.float32([[0.25]]), np.array([5]), np.array([2 / 3]), names=("short",)
    )
    write_json_atomic(run / "summary.json", {"before": side, "after": side})
    assert len(report(run)) == 6
    page = (run / "captions.html").read_text("utf-8")
    for text in ("short", "0.250", "+0.00"):
        assert text in page
    for text in ("b-CapScore", "precision", "no verdict"):
        assert text not in page


def test_the_template_is_shipped():
    """Every file of the package that is not Python is named by setup.py."""
    root = Path(__file__).parents[2]
    calls = ast.walk(ast.parse((root / "setup.py").read_text("utf-8")))
    [data] = [node.value for node in calls
              if isinstance(node, ast.keyword) and node.arg == "package_data"]  # fmt: skip
    package = root / "balcap_jax"
    shipped = {file for glob in ast.literal_eval(data)["balcap_jax"] for file in package.glob(glob)}
    other = {
        file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert package / "reporting" / "gallery.html.jinja" in other
    assert other <= shipped
