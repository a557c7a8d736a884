"""A command that cannot start leaves no file and no folder behind."""

import json

import pytest
from PIL import Image

from balcap_jax.cli.main import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with a data file and an image."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    row = {"image": "a.png", "caption": "A red star.", "references": ["A star."]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("data recaption data.jsonl new/out.jsonl", "judge.model='' names no model"),
        ("data recaption missing.jsonl new/out.jsonl --judge.model m", "missing.jsonl"),
        ("data units data.jsonl", "judge.model='' names no model"),
        ("score data.jsonl new/out.jsonl --judge llm", "judge.model='' names no model"),
        ("score missing.jsonl new/out.jsonl", "name a .jsonl file as INPUT"),
        ("score data.jsonl new/out.jsonl --judge scene --data missing.jsonl", "missing.jsonl"),
        ("export nowhere new", "nowhere"),
        ("caption missing.png", "missing.png cannot be captioned"),
        ("report nowhere", "nowhere is not a run"),
        ("scenes new --count 0", "count=0 must be at least 1"),
    ],
)
def test_what_cannot_start_leaves_nothing(place, capsys, arguments, said):
    pytest.importorskip("openai", reason="needs the judge extra")
    before = sorted(place.rglob("*"))
    assert main(arguments.split()) == 2
    assert said in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before
