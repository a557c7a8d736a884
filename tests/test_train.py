"""The training loop as a user runs it, on the packaged policy with very few tokens."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from balcap_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    TrainConfig,
)
from balcap_jax.data.scenes import export
from balcap_jax.errors import UserError
from balcap_jax.metrics import without_wall_clock
from balcap_jax.models.hf_weights import load_pretrained
from balcap_jax.runs import read_jsonl
from balcap_jax.train import train

SMALL = TrainConfig(
    steps=4,
    prompts_per_step=2,
    sample_every=2,
    data=DataConfig(heldout=3),
    rollout=RolloutConfig(group_size=3, max_new_tokens=12),
    mesh=MeshConfig(data=1, fsdp=2, tensor=4),
    optim=OptimConfig(learning_rate=1e-3, warmup_steps=1),
    checkpoint=CheckpointConfig(every=2),
    evaluation=EvaluationConfig(batch_size=3),
)


def small(out: Path, **changes) -> TrainConfig:
    return dataclasses.replace(SMALL, out=out, **changes)


def params_of(run: Path) -> dict:
    return load_pretrained(run / "policy")[1]


def assert_equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """Four steps without a stop."""
    return train(small(tmp_path_factory.mktemp("unbroken")))


def test_run_leaves_everything_it_promises(unbroken):
    summary = json.loads((unbroken / "summary.json").read_text())
    for when in ("before", "after"):
        assert set(summary[when]) >= {
            "precision", "recall", "linguistic", "b_capscore", "words", "rho",
        }  # fmt: skip
        assert 0 <= summary[when]["b_capscore"] <= 100
    assert summary["steps"] == 4
    assert summary["seconds"] > 0
    assert 0 < summary["peak_memory_mb"] < 100_000
    for name in (
        "config.json", "metrics.jsonl", "samples.jsonl", "curves.png", "lengths.png",
        "captions.html", "captions.jsonl", "evaluation/before.jsonl", "evaluation/after.jsonl",
        "evaluation/images/000.png", "policy/model.safetensors",
    ):  # fmt: skip
        assert (unbroken / name).stat().st_size > 0, name
    assert list((unbroken / "tensorboard").iterdir())


def test_metrics_rows_are_complete(unbroken):
    rows = read_jsonl(unbroken / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name in ("precision", "recall", "linguistic"):
        for part in ("mean", "std", "constant_groups", "masked", "no_signal"):
            assert f"reward/{name}/{part}" in rows[0]
    for name in (
        "words", "rho/mean", "rho/hist", "truncated", "entropy", "clip_low", "clip_high", "kl",
        "grad_norm", "tokens_per_second", "seconds/rollout", "seconds/judge", "seconds/update",
        "skipped", "no_signal", "logprob_gap",
    ):  # fmt: skip
        assert rows[0][name] is not None, name
    # The trainer computes again what the sampler drew from.
    assert max(row["logprob_gap"] for row in rows) < 1e-4


def test_samples_carry_verdicts(unbroken):
    rows = read_jsonl(unbroken / "samples.jsonl")
    assert {row["step"] for row in rows} == {2, 4}
    assert len(rows) == 2 * 2 * 3  # two steps, two images, groups of three
    for row in rows:
        verdict = row["verdict"]
        assert len(verdict["units"]) == len(verdict["covered"]) > 0
        counted = [a["verified"] and a["pointable"] for a in verdict["assertions"]]
        expected = sum(counted) / len(counted) if counted else 0.0
        assert row["rewards"]["precision"] == pytest.approx(expected, abs=1e-6)


def test_training_changes_the_decoder_and_leaves_the_frozen_tower(unbroken):
    _, before = load_pretrained(Path(SMALL_BASE))
    after = params_of(unbroken)
    assert_equal_trees(before["visual"], after["visual"])
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), before["language_model"], after["language_model"]
    )
    assert max(jax.tree.leaves(moved)) > 1e-4


SMALL_BASE = Path(__file__).parents[1] / "balcap_jax" / "assets" / "base"


def test_resumed_run_equals_the_unbroken_one(unbroken, tmp_path):
    half = train(small(tmp_path, steps=2))
    # As a killed run is left: steps after the last save are in the log and must be forgotten.
    with (half / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    resumed = train(small(tmp_path), resume=half)
    for file in ("metrics.jsonl", "samples.jsonl"):
        rows, expected = read_jsonl(resumed / file), read_jsonl(unbroken / file)
        assert [without_wall_clock(row) for row in rows] == [
            without_wall_clock(row) for row in expected
        ]
    assert_equal_trees(params_of(resumed), params_of(unbroken))


def test_same_seed_same_run_other_seed_other_run(unbroken, tmp_path):
    again = train(small(tmp_path, steps=1, name="again"))
    other = train(small(tmp_path, steps=1, name="other", seed=1))
    first = without_wall_clock(read_jsonl(unbroken / "metrics.jsonl")[0])
    assert without_wall_clock(read_jsonl(again / "metrics.jsonl")[0]) == first
    assert without_wall_clock(read_jsonl(other / "metrics.jsonl")[0]) != first


@pytest.mark.parametrize(
    "changes",
    [
        {"rl": RLConfig(advantage="grpo")},
        {
            "rl": RLConfig(advantage="verl", kl_coef=0.1, updates_per_rollout=2, micro_batches=2),
            "prompts_per_step": 4,  # two micro-batches, each over two data shards
        },
        {"reward": RewardConfig(length_control="linear", length_unit="tokens")},
        {
            "reward": RewardConfig(
                names=("recall", "precision"), weights=(1.0, 2.0), length_control="none"
            )
        },
        {"model": ModelConfig(train_vision=True, remat=True)},
    ],
    ids=["grpo", "verl-kl-updates", "linear-tokens", "two-rewards", "vision-remat"],
)
def test_other_settings_run_and_learn(changes, tmp_path):
    run = train(small(tmp_path, steps=2, **changes))
    rows = read_jsonl(run / "metrics.jsonl")
    assert len(rows) == 2
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    rl = changes.get("rl", RLConfig())
    if rl.kl_coef:
        # k3 against the start: moved after the first of two updates, so above 0 at the second
        assert rows[0]["kl"] > 0
    if changes.get("model", ModelConfig()).train_vision:
        before = load_pretrained(SMALL_BASE)[1]["visual"]["patch_embed"]["proj"]["kernel"]
        after = params_of(run)["visual"]["patch_embed"]["proj"]["kernel"]
        assert float(np.abs(before - after).max()) > 0


def test_trains_on_files(tmp_path):
    data = export(tmp_path / "data", split="train", count=8)
    (tmp_path / "data" / "train-0-000002.png").write_bytes(b"not an image")
    config = small(tmp_path, steps=3, data=DataConfig(path=str(data), heldout=2, max_bad_images=1))
    run = train(config)
    assert json.loads((run / "summary.json").read_text())["after"]["captions"] == 2
    strict = dataclasses.replace(
        config, name="strict", data=DataConfig(path=str(data), heldout=2, max_bad_images=0)
    )
    with pytest.raises(UserError, match="train-0-000002"):
        train(strict)


def test_photos_without_truth_are_refused(tmp_path):
    data = export(tmp_path / "data", split="train", count=4)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        del row["scene"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="no scene"):
        train(small(tmp_path, data=DataConfig(path=str(data), heldout=2)))


def test_an_existing_run_is_not_overwritten(unbroken):
    before = (unbroken / "summary.json").read_bytes()
    with pytest.raises(UserError, match="--resume"):
        train(small(unbroken.parent))
    assert (unbroken / "summary.json").read_bytes() == before


def failing(share: float):
    """A judge that has no verdict for the first `share` of every batch of captions."""
    from balcap_jax.rewards.scene_judge import SceneJudge

    class Failing(SceneJudge):
        def __call__(self, examples, captions):
            verdicts = super().__call__(examples, captions)
            lost = int(share * len(verdicts))
            return [None] * lost + verdicts[lost:]

    return Failing


def test_a_judge_failure_is_no_signal(monkeypatch, tmp_path):
    monkeypatch.setattr("balcap_jax.train.SceneJudge", failing(0.5))
    run = train(small(tmp_path, steps=2))
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["no_signal"] for row in rows] == [0.5, 0.5]
    assert [row["reward/precision/no_signal"] for row in rows] == [0.5, 0.5]
    # The tokens of captions without a verdict have no weight: only the other image's are counted.
    samples = [row for row in read_jsonl(run / "samples.jsonl") if row["verdict"] is None]
    assert len(samples) == 3
    assert all(value is None for row in samples for value in row["rewards"].values())


def test_a_lost_judge_stops_the_run_and_loses_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("balcap_jax.train.SceneJudge", failing(1.0))
    config = small(tmp_path, steps=2, data=DataConfig(heldout=3))
    with pytest.raises(UserError, match="no signal for 100%"):
        train(config)
    monkeypatch.undo()
    run = train(config, resume=tmp_path / config.name)
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
    # Nothing was learned from the step without a judge.
    first = read_jsonl(run / "metrics.jsonl")[0]
    assert first["grad_norm"] == 0
    assert first["loss"] == 0


# As a process ------------------------------------------------------------------------------------

COMMAND = (
    sys.executable, "-m", "balcap_jax", "train", "--prompts-per-step", "2", "--data.heldout", "2",
    "--rollout.group-size", "2", "--rollout.max-new-tokens", "8", "--checkpoint.every", "1",
)  # fmt: skip


def start(out: Path, *flags: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_for_rows(run: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError("no metrics after four minutes")


@pytest.mark.slow
def test_sigterm_saves_and_kill_loses_only_unsaved_steps(tmp_path):
    run = tmp_path / "balcap"
    process = start(tmp_path, "--steps", "100000")
    wait_for_rows(run, 2, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert f"balcap train --resume {run}" in said
    saved = len(read_jsonl(run / "metrics.jsonl"))

    process = start(tmp_path, "--steps", "100000")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2  # the folder holds a run
    assert said.count("\n") == 1
    assert "--resume" in said

    process = subprocess.Popen([sys.executable, "-m", "balcap_jax", "train", "--resume", str(run)])
    wait_for_rows(run, saved + 2, process)
    process.kill()
    process.wait()
    killed = len(read_jsonl(run / "metrics.jsonl"))
    assert killed >= saved + 2

    done = subprocess.run(
        [sys.executable, "-m", "balcap_jax", "train", "--resume", str(run), "--steps", str(killed)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, killed + 1))
