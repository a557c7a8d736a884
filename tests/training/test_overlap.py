"""Batches that wait for the judge while the device goes on: what is sampled, saved and resumed."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from small_run import params_of, small

from balcap_jax.config.files import load_run
from balcap_jax.config.sections import (
    CheckpointConfig,
    EvaluationConfig,
    RLConfig,
    RolloutConfig,
)
from balcap_jax.errors import UserError
from balcap_jax.rollout.decoding import Rollout
from balcap_jax.runs.fields import without_wall_clock
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.training import programs
from balcap_jax.training.checkpoint import Checkpoints
from balcap_jax.training.loop import TrainingLoop
from balcap_jax.training.rollout_queue import RolloutQueue
from balcap_jax.training.trainer import train

pytestmark = pytest.mark.slow  # runs of several steps

OVERLAP, STEPS = 4, 7


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Nothing here depends on the mesh."""


def config_of(out: Path, *, overlap: int = OVERLAP, steps: int = STEPS, **changes):
    return small(
        out,
        steps=steps,
        sample_every=1,
        rollout=RolloutConfig(group_size=2, max_new_tokens=6, overlap_steps=overlap),
        checkpoint=CheckpointConfig(every=1, keep=9, keep_best=False),
        evaluation=EvaluationConfig(batch_size=3),
        **{"rl": RLConfig(packing=False), **changes},  # one program
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that never stopped, with all its checkpoints."""
    return train(config_of(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(whole, tmp_path / whole.name)
    return tmp_path / whole.name


def resume(run: Path, *, steps: int = STEPS, overlap: int | None = None, **options) -> Path:
    config = dataclasses.replace(load_run(run), out=run.parent, name=run.name, steps=steps)
    if overlap is not None:
        rollout = dataclasses.replace(config.rollout, overlap_steps=overlap)
        config = dataclasses.replace(config, rollout=rollout)
    return train(config, resume=run, **options)


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        one, other = ([*map(without_wall_clock, read_jsonl(run / name))] for run in (a, b))
        assert one == other, name
    tiny.assert_equal_trees(params_of(a), params_of(b))


def rows_of(run: Path) -> list[dict]:
    return read_jsonl(run / "metrics.jsonl")


def test_the_policy_moves_on_by_as_many_updates_as_the_row_says(whole):
    rows = rows_of(whole)
    assert [row["staleness"] for row in rows] == [0, 1, 2, 3, 4, 4, 4]
    assert rows[0]["logprob_gap"] < 1e-4  # by the policy that sampled, but for rounding
    assert min(row["logprob_gap"] for row in rows[1:]) > 1e-3


def test_weights_of_several_updates_are_those_of_the_policy_before_them(tmp_path, monkeypatch):
    """The staleness counts each update, and the start of the weights stays where it was."""
    batches, make_update = [], programs.make_update

    def make_recording_update(*args, **options):
        update = make_update(*args, **options)

        def recording_update(state, batch, room):
            batches.append(jax.device_get(batch))
            return update(state, batch, room)

        return recording_update

    monkeypatch.setattr(programs, "make_update", make_recording_update)
    rl = RLConfig(updates_per_rollout=2, importance_cap=1.01, packing=False)
    rows = rows_of(train(config_of(tmp_path, overlap=1, steps=2, rl=rl)))
    assert [row["staleness"] for row in rows] == [0, 2]
    gaps = []
    for batch in batches:
        live = batch.mask & batch.valid[..., None]
        gaps.append(np.abs(batch.start_logprobs - batch.old_logprobs)[live].max())
    assert gaps[0] == gaps[1] < 1e-4  # by the policy that sampled
    assert gaps[2] == gaps[3] > 1e-3
    assert rows[0]["importance_mean"] == pytest.approx(1, abs=1e-4)
    assert rows[0]["importance_truncated"] == 0
    assert rows[1]["importance_truncated"] > 0


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_goes_on_to_the_same_bits_from_any_checkpoint(whole, run, step):
    """As after a kill; after step 2 batches of the start wait, after 5 each has its own policy."""
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.steps() == [*range(1, STEPS + 1)]
    assert_same_run(resume(run, checkpoint=str(step)), whole)


def test_a_longer_run_is_one_that_was_made_at_once(whole, tmp_path):
    """Also where it first ended before the judge saw what waits."""
    short = train(config_of(tmp_path, steps=3))
    assert_same_run(resume(short), whole)


@pytest.mark.long
def test_a_step_that_failed_is_made_again(whole, tmp_path, monkeypatch):
    """It is saved while the rollout of its own is among those that wait."""

    def fails(loop, *_):
        if loop.step == 5:
            loop._save_and_wait()
            raise UserError("the judge stopped responding")

    config = config_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_check_signal", fails)
        with pytest.raises(UserError, match="stopped responding"):
            train(config)
    assert len(rows_of(tmp_path / "balcap")) == 5
    assert_same_run(resume(tmp_path / "balcap"), whole)


@pytest.mark.long
def test_a_checkpoint_of_before_there_were_several_goes_on(tmp_path, monkeypatch):
    """It holds one rollout, bare, and does not say what that was sampled with."""
    expected = train(config_of(tmp_path / "new", overlap=1, steps=4))
    extra = TrainingLoop._extra

    def old_extra(loop):
        return {name: value for name, value in extra(loop).items() if name != "sampled_at"}

    saved = []

    def old_to_save(queue):
        saved.append(queue._waiting[0].generation.rollout)
        return saved[-1]

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_extra", old_extra)
        patch.setattr(RolloutQueue, "to_save", old_to_save)
        old = train(config_of(tmp_path / "old", overlap=1, steps=2))
    assert all(isinstance(rollout, Rollout) for rollout in saved)
    assert_same_run(resume(old, steps=4), expected)


@pytest.mark.parametrize(
    ("before", "after", "staleness"),
    [
        # What waits is learned from first; then what was sampled since, as far ahead as asked.
        (4, 1, [2, 3, 4, 4, 1]),
        (1, 3, [1, 1, 2, 3, 3]),
        (2, 0, [0, 0, 0, 0, 0]),  # strictly on-policy: nothing that is old
        (0, 2, [0, 1, 2, 2, 2]),
    ],
)
def test_another_overlap_is_taken_knowingly(run, tmp_path, before, after, staleness):
    if before != OVERLAP:
        shutil.rmtree(run)
        run = train(config_of(tmp_path, overlap=before, steps=2))
    with pytest.raises(UserError, match="rollout.overlap_steps"):
        resume(run, overlap=after, checkpoint="2")
    resume(run, overlap=after, checkpoint="2", resume_anyway=True)
    assert [row["staleness"] for row in rows_of(run)][2:] == staleness


@pytest.mark.parametrize(("step", "sampled_at"), [(1, [0, 0, 0, 0]), (7, [3, 4, 5, 6])])
def test_a_checkpoint_holds_what_waits_and_no_more(whole, step, sampled_at):
    record = json.loads((whole / "checkpoints" / str(step) / "extra" / "metadata").read_text())
    assert record["extra"]["sampled_at"] == sampled_at
    assert len(record["pending_sums"]) == OVERLAP * len(Rollout._fields)
