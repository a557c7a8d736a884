"""The training loop with other settings than the default, and with a judge that fails."""

import dataclasses
import json

import numpy as np
import pytest
from small_run import BASE, params_of, small

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import ModelConfig, RLConfig
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.training.failure_window import FailureWindow
from balcap_jax.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {
                "rl": RLConfig(advantage="verl", loss_normaliser="dr_grpo"),
                "reward": RewardConfig(length_control="linear", length_unit="tokens"),
            },
            id="verl-dr_grpo-linear-tokens",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model": ModelConfig(train_vision=True, remat="full")},
            id="vision-remat",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_settings_run_and_learn(changes, tmp_path):
    """See test_wiring.py for what arrives where, and test_experience.py for each advantage."""
    run = train(small(tmp_path, steps=2, **changes))
    rows = read_jsonl(run / "metrics.jsonl")
    assert len(rows) == 2
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    if changes.get("model", ModelConfig()).train_vision:
        before = load_pretrained(BASE)[1]["visual"]["patch_embed"]["proj"]["weight"]
        after = params_of(run)["visual"]["patch_embed"]["proj"]["weight"]
        assert float(np.abs(before - after).max()) > 0


def failing(share: float):
    """A judge that has no verdict for the first `share` of every rollout's captions."""
    from balcap_jax.rewards.scene.judge import SceneJudge

    class Failing(SceneJudge):
        def __call__(self, examples, captions):
            verdicts = super().__call__(examples, captions)
            lost = int(share * len(verdicts)) if len(verdicts) == 6 else 0
            return [None] * lost + verdicts[lost:]

    return Failing


@pytest.mark.slow  # test_wiring.py has captions without a verdict in its run
def test_a_judge_failure_is_no_signal(monkeypatch, tmp_path):
    monkeypatch.setattr("balcap_jax.rewards.judges.SceneJudge", failing(0.5))
    run = train(small(tmp_path, steps=2))
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["no_signal"] for row in rows] == [0.5, 0.5]
    assert [row["reward/precision/no_signal"] for row in rows] == [0.5, 0.5]
    # The tokens of captions without a verdict have no weight: only the other image's are counted.
    samples = [row for row in read_jsonl(run / "samples.jsonl") if row["verdict"] is None]
    assert len(samples) == 3
    assert all(value is None for row in samples for value in row["rewards"].values())


@pytest.mark.slow
def test_a_lost_judge_stops_the_run_and_loses_nothing(monkeypatch, tmp_path):
    config = small(tmp_path, steps=1, judge=JudgeConfig(failure_window=2))
    run = train(config)
    monkeypatch.setattr("balcap_jax.rewards.judges.SceneJudge", failing(1.0))
    config = dataclasses.replace(config, steps=3)
    # Half of the captions of two steps is not too much: the step before the stop is remembered.
    with pytest.raises(UserError, match="no signal for 100% of the captions of step 3, above"):
        train(config, resume=run)
    assert [row["no_signal"] for row in read_jsonl(run / "metrics.jsonl")] == [0, 1]
    monkeypatch.undo()
    train(config, resume=run)
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    # The step that had no judge is made now, as if it had had one.
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["no_signal"] for row in rows] == [0, 1, 0]
    assert [row["grad_norm"] > 0 for row in rows] == [True, False, True]


def test_the_share_of_failures_is_taken_over_the_window(tmp_path):
    watch = FailureWindow(tmp_path, limit=0.5, window=3)
    assert not watch.trips(0.5)
    assert watch.trips(0.6)  # the first step is all there is
    watch.shares.extend([0.0, 0.4])
    assert not watch.trips(1.0)  # 1.4 / 3
    watch.shares.append(1.0)
    assert watch.trips(0.2)  # (0.4 + 1 + 0.2) / 3
    assert not watch.trips(0.1)  # 1.5 / 3


def test_who_gave_no_signal_is_named(tmp_path):
    watch = FailureWindow(tmp_path, limit=0.5, window=1, who="the reward functions a, b")
    said = str(watch.error(1.0, where="step 1", reasons=""))
    assert said.startswith("the reward functions a, b gave no signal for 100% of the captions")
    assert "fix the reward functions a, b, then" in said
