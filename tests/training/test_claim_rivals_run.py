"""A run on rubric, claims and claim_diff alone, of scenes, without an endpoint."""

import json

import pytest
from small_run import small

from balcap_jax.config.base import merged
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.training.trainer import train

NAMES = ("rubric", "claims_precision", "claims_recall", "claim_diff")


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Nothing here depends on the mesh."""


@pytest.mark.slow  # a whole run; its parts are tested in tests/rewards/rivals
def test_scenes_are_trained_on_by_exact_rules(tmp_path):
    run = train(
        merged(
            small(tmp_path, steps=1, sample_every=1),
            {
                "reward.names": [],
                "reward.rivals": ["rubric", "claims", "claim_diff"],
                "reward.claim_diff.mode": "a_only",
                "reward.claim_diff.severity": "judge",
                "reward.weights": [1, 1, 0.5, 1],
            },
        )
    )
    (row,) = read_jsonl(run / "metrics.jsonl")
    for name in NAMES:
        assert row[f"reward/{name}/no_signal"] in (0, 0.5)  # a start that fails nothing has none
        assert f"balance/{name}" in row
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rivals"] == {"rubric": "1", "claims": "1", "claim_diff": "1"}
    assert set(NAMES) <= summary["after"].keys()
    samples = read_jsonl(run / "samples.jsonl")
    for sample in samples:
        correct, _, units = sample["extra"]["claims_correct"].partition(" of ")
        assert sample["rewards"]["claims_recall"] == pytest.approx(float(correct))
        assert sample["rewards"]["claims_precision"] == pytest.approx(
            float(correct) / max(int(units), 1), abs=1e-6
        )
        assert sample["extra"]["claim_diff_counts"].endswith(" differences")
        assert set(sample["extra"]["rubric_marks"]) <= {"0", "1"}
