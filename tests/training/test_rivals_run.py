"""Runs on rewards of other methods: beside others, resumed, and with a judge that fails."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from judge_server import JudgeServer
from small_run import params_of, small

from balcap_jax.config.base import merged
from balcap_jax.errors import UserError
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock
from balcap_jax.training.trainer import train


def settings(out: Path, **changes):
    plain = {
        "reward.names": ["precision", "recall", "linguistic"],
        "reward.rivals": ["qa_utility"],
        "reward.weights": [1, 1, 1, 0],
    }
    return merged(small(out, steps=1, sample_every=1), plain | changes)


def asked(server, out: Path, **changes):
    """Utility alone, by a judge behind an endpoint."""
    given = {
        "kind": "llm", "model": "m", "base_url": server.url, "cache": out / "cache.sqlite",
        "backoff": 0.002, "retries": 1, "temperature": 0.6, "max_tokens": 10,
        "completion_price": 1e6, "prompt_price": 1e3,
    }  # fmt: skip
    judge = {f"reward.judge.{name}": value for name, value in given.items()}
    alone = {"reward.names": [], "reward.weights": [], "rl.advantage": "rloo"}
    return settings(out, **(alone | judge | changes))


def letter(body) -> str:
    """A function of the question and the caption alone."""
    return "ABCD"[sum(map(ord, body["messages"][-1]["content"])) % 4]


def rows_of(run: Path) -> list[dict]:
    return [without_wall_clock(row) for row in read_jsonl(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def server():
    with JudgeServer(answer=letter) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_faults(server):
    server.fault = lambda _: None


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Nothing here depends on the mesh."""


def test_a_watched_reward_is_shown_and_teaches_nothing(tmp_path):
    watched = train(settings(tmp_path / "a"))
    rows = rows_of(watched)
    for row in rows:
        assert row["balance/qa_utility"] == 0.0
        assert 0 <= row["reward/qa_utility/mean"] <= 1
    sample = read_jsonl(watched / "samples.jsonl")[0]
    assert len(sample["extra"]["qa_answers"]) == 8
    right = sample["extra"]["qa_answers"].count("1")
    assert sample["rewards"]["qa_utility"] == right / 8
    summary = json.loads((watched / "summary.json").read_text())
    assert summary["rivals"] == {"qa_utility": "1"}
    assert {"qa_utility", "b_capscore"} <= summary["after"].keys()
    # Without it the policy is the same.
    without = {"reward.rivals": [], "reward.weights": []}
    tiny.assert_equal_trees(
        params_of(watched), params_of(train(settings(tmp_path / "b", **without)))
    )


@pytest.mark.slow
@pytest.mark.long
def test_a_resumed_run_draws_the_same_questions(server, tmp_path):
    ahead = {"rollout.overlap_steps": 1}
    whole = train(asked(server, tmp_path / "whole", steps=3, **ahead))
    half = train(asked(server, tmp_path / "half", steps=1, **ahead))
    calls = server.calls
    train(asked(server, tmp_path / "half", steps=3, **ahead), resume=half)
    assert rows_of(half) == rows_of(whole)
    tiny.assert_equal_trees(params_of(half), params_of(whole))
    # What waited when it stopped was paid for; two steps of 6 captions and the 3 held out are not.
    assert server.calls - calls <= 8 * (2 * 6 + 3)
    rows = read_jsonl(whole / "metrics.jsonl")
    for row in rows:
        assert row["judge/calls"] + row["judge/cache_hits"] >= 48
        spent = row["judge/completion_tokens"] + 1e-3 * row["judge/prompt_tokens"]
        assert row["judge/price"] == pytest.approx(spent)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["judge"]["price"] >= sum(row["judge/price"] for row in rows)
    assert "precision" not in summary["after"]
    # 3 steps of 6 captions, and 3 held out before and after.
    assert summary["judge"]["captions"] == 3 * 6 + 2 * 3
    per_1000 = 1000 * summary["judge"]["price"] / 24
    assert summary["judge"]["price_per_1000"] == pytest.approx(per_1000)
    assert rows[-1]["judge/price_per_1000"] == pytest.approx(
        1000 * rows[-1]["judge/price_total"] / (3 * 6 + 3)
    )


def test_a_judge_that_stopped_responding_stops_the_run_which_is_saved(server, tmp_path):
    config = asked(server, tmp_path, steps=2)
    start = server.calls
    server.fault = lambda number: "drop" if number >= start + 24 + 48 + 8 else None
    with pytest.raises(UserError) as stopped:
        train(config)
    said = str(stopped.value)
    assert said.startswith("the judge of qa_utility gave no signal for ")
    assert "of the captions of step 2 (no connection" in said
    server.fault = lambda _: None
    train(config, resume=tmp_path / "balcap")
    assert [row["reward/qa_utility/no_signal"] for row in rows_of(tmp_path / "balcap")] == [0, 0]


@pytest.mark.slow
@pytest.mark.long
def test_zeros_in_place_of_failures_are_for_studies_alone(server, tmp_path):
    """Some calls fail: without signal those captions have no weight, as zeros they do."""
    server.fault = lambda number: "500" if number % 16 < 2 else None
    lenient = {"judge.max_failure_share": 1.0, "reward.judge.retries": 0}
    honest = rows_of(train(asked(server, tmp_path / "a", steps=1, **lenient)))[0]
    assert 0 < honest["reward/qa_utility/no_signal"] < 1
    assert honest["no_signal"] == honest["reward/qa_utility/no_signal"]
    server.fault = lambda number: "500" if number % 16 < 2 else None
    zeros = train(asked(server, tmp_path / "b", steps=1, **lenient, **{"reward.failure": "zero"}))
    (found,) = read_jsonl(zeros / "metrics.jsonl")
    assert found["reward/qa_utility/no_signal"] == 0.0
    assert found["judge/failures"] > 0
    assert np.isfinite(found["reward/qa_utility/mean"])


def test_a_run_goes_on_with_the_version_it_had(server, tmp_path, monkeypatch):
    config = settings(tmp_path)
    run = train(config)
    monkeypatch.setattr("balcap_jax.rewards.rivals.qa.VERSION", "9")
    with pytest.raises(UserError, match="rewarded by qa_utility of version 1, .* has version 9"):
        train(config, resume=run)
