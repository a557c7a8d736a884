"""Training on the verdicts of a server: with faults, through an outage, ahead of the judge."""

import json
from pathlib import Path

import pytest
import tiny
from judge_server import STALL, JudgeServer, outage, schedule
from small_run import params_of, small

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import RolloutConfig
from balcap_jax.errors import UserError
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock
from balcap_jax.training.judge_load import JudgeLoad
from balcap_jax.training.judge_queue import Coming, JudgeQueue
from balcap_jax.training.trainer import train

KEY = "sk-3f9b-secret-of-the-test"


def asked(server, out: Path, *, overlap: int = 1, steps: int = 4, **judge):
    """A small run whose captions the server judges."""
    given = {
        "kind": "llm", "model": "m", "base_url": server.url, "cache": out / "cache.sqlite",
        "timeout": 60.0, "backoff": 0.002, "retries": 12, "key_env": "TEST_JUDGE_KEY",
        "completion_price": 1e6,
    }  # fmt: skip
    return small(
        out,
        steps=steps,
        rollout=RolloutConfig(group_size=3, max_new_tokens=12, overlap_steps=overlap),
        judge=JudgeConfig(**(given | judge)),
    )


def rows_of(run: Path) -> list[dict]:
    return [without_wall_clock(row) for row in read_jsonl(run / "metrics.jsonl")]


def assert_same_run(a: Path, b: Path) -> None:
    assert rows_of(a) == rows_of(b)
    tiny.assert_equal_trees(params_of(a), params_of(b))


@pytest.fixture(scope="module")
def server():
    with JudgeServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_faults(server):
    server.fault = lambda _: None


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """They take longer than the runs, and other tests look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balcap_jax.training.outcome.report", lambda run, band: [])
        yield


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Nothing here depends on the mesh."""


@pytest.fixture(scope="module")
def ahead(server, tmp_path_factory) -> Path:
    """Four steps without a fault or a stop, sampled ahead of the judge."""
    server.fault = lambda _: None
    return train(asked(server, tmp_path_factory.mktemp("ahead")))


@pytest.fixture(scope="module")
def on_policy(server, tmp_path_factory) -> Path:
    """The same, where each rollout waits for the update before it."""
    server.fault = lambda _: None
    return train(asked(server, tmp_path_factory.mktemp("on_policy"), overlap=0))


def test_metrics_say_what_the_judge_cost(ahead):
    rows = read_jsonl(ahead / "metrics.jsonl")
    summary = json.loads((ahead / "summary.json").read_text())
    assert summary["judge"]["kind"] == "llm"
    assert (summary["judge"]["model"], summary["judge"]["prompts"]) == ("m", "2")
    for row in rows:
        assert row["judge/failures"] == 0
        assert row["judge/calls"] + row["judge/cache_hits"] >= 6
        assert 0 < row["judge/latency_p50"] <= row["judge/latency_p95"]
        assert row["judge/price"] == row["judge/completion_tokens"]
        assert row["seconds/judge"] > 0
    # What the run has spent by a step, and by this rate will have spent at its end.
    third = rows[2]
    assert third["judge/price_projected"] == pytest.approx(third["judge/price_total"] * 4 / 3)
    # The evaluations are paid, too, and appear in the total alone.
    assert summary["judge"]["price"] > sum(row["judge/price"] for row in rows)


def test_overlap_learns_from_the_policy_that_sampled(ahead, on_policy):
    new, old = rows_of(ahead), rows_of(on_policy)
    # The first update is on-policy both times; the second rollout of a run that samples ahead is
    # from the same parameters as the first, so its ratios are not 1 when it is learned from.
    assert new[0]["loss"] == old[0]["loss"]
    assert new[1]["loss"] != old[1]["loss"]
    assert max(row["logprob_gap"] for row in old) < 1e-4
    assert new[0]["logprob_gap"] < 1e-4
    assert min(row["logprob_gap"] for row in new[1:]) > 1e-3


def test_captions_that_leave_as_they_end_are_learned_from_as_a_batch_is(
    server, on_policy, tmp_path, monkeypatch
):
    """In chunks of 4 of 12 tokens; the run beside it hands in whole batches."""
    monkeypatch.setattr("balcap_jax.rollout.rollout._CHUNK", 4)
    told, tell = [], Coming.tell
    monkeypatch.setattr(Coming, "tell", lambda *a: (told.append(a[1]), tell(*a))[1])
    chunked = train(asked(server, tmp_path / "chunked", overlap=0))
    assert len(told) > 4 * 6  # as they end, and once more with their batch
    monkeypatch.setattr(JudgeQueue, "expect", lambda *_: None)
    whole = train(asked(server, tmp_path / "whole", overlap=0))
    assert_same_captions(chunked, whole)
    assert_same_captions(on_policy, whole)


def assert_same_captions(a: Path, b: Path) -> None:
    """Runs of two samplers, whose numbers are the same but for rounding."""
    for one, other in zip(rows_of(a), rows_of(b), strict=True):
        for name in ("reward/precision/mean", "reward/recall/mean", "words", "loss"):
            assert one[name] == pytest.approx(other[name], abs=1e-4)


def test_calls_that_cannot_keep_up_with_the_device_are_said_once(
    server, ahead, tmp_path, monkeypatch, capsys
):
    """All calls of the captions count, beside what the device takes without waiting."""
    seen, add = [], JudgeLoad.add

    def a_quick_device(load, calls, *, device_seconds):
        seen.append((calls["judge.concurrency"], device_seconds))
        return add(load, calls, device_seconds=1e-4)

    monkeypatch.setattr(JudgeLoad, "add", a_quick_device)
    run = train(asked(server, tmp_path, concurrency=2))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the judge holds the device: ") == 1
    assert "and it is 2; set --judge.concurrency" in said
    for row, ((count, seconds), device) in zip(
        read_jsonl(run / "metrics.jsonl"), seen, strict=True
    ):
        assert count == row["judge/calls"]
        assert seconds == row["judge/call_seconds"] > 0
        waited = row["seconds/judge"] + row["seconds/other_hosts"]
        assert device == pytest.approx(row["seconds/step"] - waited)
    assert_same_run(run, ahead)


@pytest.mark.slow
def test_a_run_with_faults_that_is_resumed_while_captions_wait_equals_one_without(
    server, ahead, tmp_path
):
    start = server.calls
    server.faults.clear()
    server.fault = lambda number: schedule(number - start)
    half = train(asked(server, tmp_path, steps=2, timeout=STALL / 2))
    assert server.faults.total() > 8
    server.fault = lambda _: None
    before = server.calls
    assert_same_run(train(asked(server, tmp_path), resume=half), ahead)
    # What the first half paid for is not paid again: two steps, and the evaluation at the end.
    assert server.calls - before <= 2 * 8 + 3


def test_an_outage_stops_the_run_which_then_goes_on_as_if_there_had_been_none(
    server, ahead, tmp_path
):
    # A batch asks for the units of its images and for its captions: 6 calls before the first step,
    # 8 in each step. The server leaves within the third.
    server.fault = outage(server.calls + 25)
    config = asked(server, tmp_path, retries=2)
    with pytest.raises(UserError) as stopped:
        train(config)
    said = str(stopped.value)
    assert "of the captions of step 3 (no connection" in said
    assert f"balcap train --resume {tmp_path / 'balcap'}" in said
    assert "\n" not in said
    assert len(rows_of(tmp_path / "balcap")) == 2

    server.fault = lambda _: None
    run = train(config, resume=tmp_path / "balcap")
    assert_same_run(run, ahead)


def test_a_judge_that_is_not_there_is_said_before_anything_starts(server, tmp_path):
    server.fault = lambda _: "drop"
    with pytest.raises(UserError, match="made no reference units of example .* no connection"):
        train(asked(server, tmp_path, retries=0))
    assert not (tmp_path / "balcap" / "config.json").exists()


def test_the_key_is_sent_and_written_nowhere(server, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    caplog.set_level("INFO")
    start = server.calls
    # A server that repeats what it was sent, in refusals of two kinds.
    server.fault = lambda number: {10: "400", 11: "401"}.get(number - start)
    run = train(asked(server, tmp_path, steps=1, overlap=0))
    assert f"Bearer {KEY}" in server.authorization
    assert "bad Bearer ***" in caplog.text
    server.fault = lambda _: "400"
    with pytest.raises(UserError) as stopped:
        train(asked(server, tmp_path, overlap=0, cache=tmp_path / "other.sqlite"), resume=run)
    said = "".join(capfd.readouterr()) + caplog.text + repr(stopped.value)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 15
    for text in [said.encode(), *(path.read_bytes() for path in files)]:
        assert KEY.encode() not in text
