"""The table of what two versions of the code found, by hand."""

import csv
import importlib.util
from pathlib import Path

import pytest

from balcap_jax.errors import UserError
from balcap_jax.evidence.claims import read_claims, shipped_claims

SCRIPT = Path(__file__).parents[2] / "examples" / "evidence" / "replication.py"


@pytest.fixture(scope="module")
def replication():
    spec = importlib.util.spec_from_file_location("replication", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(path: Path, scores: dict[str, dict[int, float]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["claim", "setting", "seed", "after/sampled/b_capscore"])
        for setting, by_seed in scores.items():
            writer.writerows(["spreads", setting, seed, value] for seed, value in by_seed.items())
    return path


def test_a_seed_is_a_pair_whatever_the_number_of_versions(replication, tmp_path):
    """Differences 1, 2, 3 and 3, 4, 5 of three seeds: 2, 3, 4 in both; t of 2 degrees 4.303."""
    first = written(
        tmp_path / "first.csv",
        {"gdpo": {0: 81, 1: 82, 2: 83, 3: 99}, "grpo": {0: 80, 1: 80, 2: 80, 3: 10}},
    )
    second = written(
        tmp_path / "second.csv", {"gdpo": {0: 83, 1: 84, 2: 85}, "grpo": {0: 80, 1: 80, 2: 80}}
    )
    claims = [claim for claim in read_claims(shipped_claims()) if claim.name == "spreads"]
    first, second = map(replication.read_numbers, (first, second))
    title, _, header, _, row, *rest = replication.page(claims, first, second, "sampled")
    assert title.startswith("## 1. ")
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["| comparison"] == "| rewards as they are"
    assert cells["of"] == "b-CapScore"
    assert cells["second"] == "+4.0 (+1.5 to +6.5)"  # 4.303 / sqrt(3) = 2.48
    assert cells["both"] == "+3.0 (+0.5 to +5.5)"
    assert cells["seeds"] == "3"  # the fourth is not in both
    assert "unequal" in row
    # 81, 82, 83 and 99 of the first, 83, 84 and 85 of the second; the file has no other scores
    assert "| gdpo | 7 | 85.3 | nan | nan | nan | nan |" in rest
    assert replication.page(claims, first, second, "greedy") == []  # nor likeliest captions


def test_another_file_is_one_sentence(replication, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name in ("none.csv", "other.csv"):
        with pytest.raises(UserError, match=f"{name} is no cells.csv .*give one of each version"):
            replication.read_numbers(tmp_path / name)
