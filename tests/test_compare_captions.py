"""What examples/real_parts/compare_captions.py says of two captioners."""

import json

import compare_captions
import pytest

from balcap_jax.errors import UserError
from balcap_jax.rewards import lexical_precision

REFERENCES = [
    ("A brown dog runs on a beach.", "A dog is running in the sand."),
    ("A girl in a red dress rides a bicycle.", "A child on a bike in a street."),
    ("A white boat on a lake.", "A small boat near the shore of a lake."),
]
GENERAL = ["A person is standing outside."] * 3
OWN = [references[0] for references in REFERENCES]


def _write(path, captions, order=(0, 1, 2)):
    rows = [{"id": f"photo{i}", "caption": captions[i], "references": REFERENCES[i]} for i in order]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_captions_of_their_photos_beside_one_for_all():
    before, after = (compare_captions.scores_of(c, REFERENCES) for c in (GENERAL, OWN))
    assert (before.distinct, after.distinct) == (1, 3)
    found = compare_captions.compare(before, after)
    old, new, low, high = found["own less other precision"]
    assert old == pytest.approx(0, abs=1e-4)
    assert new > 20
    assert low <= new - old <= high
    own = lexical_precision(completions=OWN, references=[list(r) for r in REFERENCES])
    assert found["precision"][1] == pytest.approx(100 * sum(own) / 3, abs=1e-3)
    assert found["own less other recall"][1] > 20
    same = compare_captions.compare(after, after)
    assert all(low == high == 0 for _, _, low, high in same.values())


def test_rows_meet_by_their_ids(tmp_path, monkeypatch, capsys):
    one = _write(tmp_path / "before.jsonl", OWN)
    other = _write(tmp_path / "after.jsonl", OWN, order=(2, 0, 1))
    monkeypatch.setattr("sys.argv", ["compare_captions", str(one), str(other)])
    compare_captions.main()
    said = capsys.readouterr().out
    assert said.startswith("3 photos, distinct captions 3 -> 3")
    assert said.count("+0.0 to +0.0") == 7


def test_captions_of_one_photo_are_refused(tmp_path, monkeypatch):
    files = [_write(tmp_path / f"{name}.jsonl", OWN, order=(1,)) for name in "ab"]
    monkeypatch.setattr("sys.argv", ["compare_captions", *map(str, files)])
    with pytest.raises(UserError, match="share 1 photos"):
        compare_captions.main()
