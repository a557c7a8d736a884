"""A row of the wrong shape is one sentence that names its file and line."""

import json

import pytest
from reported_run import caption

from balcap_jax.errors import UserError
from balcap_jax.reporting import row_files
from balcap_jax.reporting.report import report
from balcap_jax.reporting.row_files import read_captions, read_metrics, read_summary
from balcap_jax.runs.folder import write_json_atomic, write_jsonl_atomic

VERDICT = {"assertions": [{"text": "a", "verified": True, "pointable": True}], "units": ["u"],
           "covered": [True]}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"words": "<script>"}, r'has "<script>" as "words", which must be a whole number'),
        ({"words": True}, r'has true as "words"'),
        ({"words": 10**400}, r'as "words", which must be a whole number'),
        ({"rho": "1"}, r'has "1" as "rho", which must be a number or null'),
        ({"id": None}, r'has null as "id", which must be a text'),
        ({"id": ["a"]}, r'has \["a"\] as "id"'),
        ({"caption": 7}, r'has 7 as "caption"'),
        ({"caption": "\ud800"}, r'has "\\ud800" as "caption", which must be a text'),
        ({"references": ["a", 1]}, r'as "references", which must be a list of texts or null'),
        ({"rewards": {"short": "0.5"}}, r'as "rewards", which must be an object of numbers'),
        ({"rewards": [0.5]}, r'as "rewards"'),
        ({"verdict": {}}, r'has {} as "verdict", which must be a verdict or null'),
        ({"verdict": VERDICT | {"covered": []}}, r'as "verdict"'),
        ({"verdict": VERDICT | {"covered": [1]}}, r'as "verdict"'),
        ({"verdict": VERDICT | {"assertions": [{"text": "a"}]}}, r'as "verdict"'),
        ({"image": 3}, r'has 3 as "image", which must be a text or null'),
    ],
)
def test_a_caption_of_the_wrong_shape(run, changes, says):
    path = run / "evaluation" / "after.jsonl"
    rows = [caption("x", 0), caption("x", 1) | changes]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"after\.jsonl, line 2 (has .* )?{says}") as error:
        report(run)
    assert "\n" not in str(error.value)
    assert not (run / "captions.html").exists()


def test_an_image_twice(run):
    path = run / "evaluation" / "after.jsonl"
    first, second = caption("x", 0), caption("x", 1)
    write_jsonl_atomic(path, [first, second, first])
    with pytest.raises(
        UserError, match=r"after\.jsonl has the id '.+' twice, in the lines 1 and 3"
    ):
        report(run)


def test_a_field_that_is_not_there(run):
    path = run / "evaluation" / "before.jsonl"
    row = {name: value for name, value in caption("x", 0).items() if name != "verdict"}
    write_jsonl_atomic(path, [row])
    with pytest.raises(UserError, match=r'before\.jsonl, line 1 has no "verdict"; remove that'):
        read_captions(path)


@pytest.mark.parametrize("read", [read_captions, read_metrics])
def test_a_row_that_is_no_object(tmp_path, monkeypatch, read):
    monkeypatch.setattr(row_files, "read_jsonl", lambda path: [[1, 2]])  # its JSON is fine
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1 is \[1, 2\], not an object"):
        read(tmp_path / "rows.jsonl")


def test_the_sentence_stays_short(run):
    path = run / "metrics.jsonl"
    write_jsonl_atomic(path, [{"step": 1, "kl": "x" * 10_000}])
    with pytest.raises(UserError, match="line 1 has") as error:
        read_metrics(path)
    assert len(str(error.value)) < 300 + len(str(path))


@pytest.mark.parametrize("verdict", [None, VERDICT])
def test_a_row_as_runs_write_it_is_read(run, verdict):
    row = caption("x", 0) | {"verdict": verdict, "rewards": {"short": -3.5, "own": None}}
    write_jsonl_atomic(run / "evaluation" / "after.jsonl", [row])
    assert read_captions(run / "evaluation" / "after.jsonl") == [row]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"words": 1.0}', r'has no "step"'),
        ('{"step": "1"}', r'has "1" as "step", which must be a whole number'),
        ('{"step": 2, "kl": "x"}', r'has "x" as "kl", which must be a number, null or a list'),
        ('{"step": 2, "kl": NaN}', r'has NaN as "kl"'),
        ('{"step": 2, "kl": 1e999}', r'has Infinity as "kl"'),
        ('{"step": 2, "rho/hist": [1, null]}', r'has \[1, null\] as "rho/hist"'),
    ],
)
def test_metrics_of_the_wrong_shape(run, row, says):
    (run / "metrics.jsonl").write_text('{"step": 1, "kl": null, "rho/hist": [1]}\n' + row + "\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl, line 2 {says}"):
        report(run)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object"),
        ('{"before": {"recall": "<b>"}, "after": {}}', r'has {"recall": "<b>"} as "before", which'),
        ('{"before": {}, "after": 3}', r'has 3 as "after"'),
    ],
)
def test_a_summary_of_the_wrong_shape(run, text, says):
    (run / "summary.json").write_text(text)
    with pytest.raises(UserError, match=rf"summary\.json {says}.*; restore the file, or remove"):
        report(run)


def test_a_summary_without_both_sides_is_none(run):
    path = run / "summary.json"
    write_json_atomic(path, {"before": {"recall": 1.0}, "seconds": 3.0})
    assert read_summary(path) is None
    path.unlink()
    assert read_summary(path) is None
    assert len(report(run)) == 6
