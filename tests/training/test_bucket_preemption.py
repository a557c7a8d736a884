"""SIGTERM to a run in a bucket at every moment of a step: saved, ended, at most one step lost."""

import time

import pytest
import told_at
from bucket_runs import FLAGS, balcap, committed

from balcap_jax.runs.folder import read_jsonl
from balcap_jax.storage.paths import as_path

GRACE = 30.0  # seconds, of a spot TPU; what was measured is in docs/cloud.md
MANY = 10_000
EXTRA = {
    "save": ("--checkpoint.every", told_at.AT),
    "evaluation": ("--evaluation.every", told_at.AT, "--data.heldout", 6),
}
# A step that is not learned from yet is dropped, and an evaluation is made again.
SAVED = {"rollout": told_at.AT - 1, "judge": told_at.AT - 1}


# Whole processes, that each import, compile and train; all of them take over a minute.
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("moment", [moment.__name__ for moment in told_at.MOMENTS])
def test_sigterm_at_any_moment_loses_one_step_at_most(bucket, tmp_path, moment):
    run = as_path(bucket.url) / "runs" / "balcap"
    flags = (*FLAGS, "--checkpoint.every", 1000, *EXTRA.get(moment, ()))
    train = ("train", *flags, "--out", run.parent, "--steps", MANY)
    process = balcap(*train, cwd=tmp_path, wait=False, program=(told_at.__file__, moment))
    said = process.communicate(timeout=240)[0]
    ended = time.time()
    assert process.returncode == 0, said
    [told] = [line.split() for line in said.splitlines() if line.startswith("told ")]
    assert "a batch more" not in said
    seconds = ended - float(told[2])
    print(f"{moment}: ended {seconds:.1f} s after the signal")
    assert seconds < GRACE
    step = SAVED.get(moment, told_at.AT)
    assert committed(bucket) == step
    assert f"stopped at step {step} of {MANY}, all saved" in said
    # The row of a step that is still to be evaluated is written with its scores, when it goes on.
    rows = step - 1 if moment == "evaluation" else step
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == list(range(1, rows + 1))
    assert "runs/balcap/.lock" not in bucket.objects
    assert not [n for n in bucket.objects if "/checkpoints/" in n and f"/{step}/" not in n]
    balcap("train", "--resume", run, "--steps", step + 1, cwd=tmp_path)
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, step + 2))
