"""The training loop as a user runs it."""

import dataclasses
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from small_run import BASE, params_of, small
from traces import names_in, steps_in

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import DataConfig
from balcap_jax.data import photos
from balcap_jax.data.order import step_places
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.scene_source import SceneSource, export
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.plan.programs import Step
from balcap_jax.reporting import report
from balcap_jax.reporting.plots import draw_curves, draw_lengths
from balcap_jax.reporting.sheet import draw_captions
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock
from balcap_jax.runs.trace import traces_in
from balcap_jax.training import task_run, utilisation
from balcap_jax.training.callbacks import Callback
from balcap_jax.training.trainer import Trainer, train

PEAK = 1e9  # operations per second of a device, as if that were known


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """Four steps without a stop, and with their curves; two of them traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curves", draw_curves)
        patch.setattr(report, "draw_lengths", draw_lengths)
        patch.setattr(report, "draw_captions", draw_captions)
        patch.setattr(utilisation, "peak_flops", lambda devices: PEAK * len(devices))
        patch.setattr(task_run, "peak_device_bytes", lambda devices: 3_000_000 + len(devices))
        return train(small(tmp_path_factory.mktemp("unbroken"), profile=(2, 3)))


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
        "captions.png", "captions.html", "captions.jsonl", "evaluation/before.jsonl",
        "evaluation/after.jsonl", "evaluation/images/000.png", "policy/model.safetensors",
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
        "device_idle_share",
    ):  # fmt: skip
        assert rows[0][name] is not None, name
    # The trainer computes again what the sampler drew from.
    assert max(row["logprob_gap"] for row in rows) < 1e-4


def test_every_row_has_times_memory_and_utilisation(unbroken, tmp_path):
    """The flops are those that `balcap plan` counts for this configuration."""
    config, processor = small(tmp_path), Processor.load(BASE)
    example = SceneSource("train", 1)[0]
    text_tokens = int((processor.row(example).tokens != processor.config.image_token_id).sum())
    plan = Step(
        config, processor.config, jax.devices(), image=(112, 112), text_tokens=text_tokens
    )  # fmt: skip
    [shape] = {tuple(shape) for shape in json.loads(
        (unbroken / "summary.json").read_text())["prompt_shapes"]}  # fmt: skip
    assert shape[0] == plan.prompt.tokens.shape[1]
    update, rollout = (
        plan.model_flops("update"),
        plan.model_flops("encode") + plan.model_flops("rollout"),
    )
    rows = read_jsonl(unbroken / "metrics.jsonl")
    for row in rows:
        stages = ("data", "rollout", "judge", "other_hosts", "update")
        assert 0 < sum(row[f"seconds/{stage}"] for stage in stages) <= row["seconds/step"]
        assert row["device_memory_mb"] == 3.000008
        assert row["truncated"] > 0  # so the decode loop ran all its steps
        found = {
            stage: row[f"mfu/{stage}"] * row[f"seconds/{stage}"] * 8 * PEAK
            for stage in ("update", "rollout", "step")
        }
        expected = {"update": update, "rollout": rollout, "step": update + rollout}
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_trace_names_programs_stages_and_steps(unbroken):
    [trace] = traces_in(unbroken / "profile")
    named = names_in(trace)
    assert {"PjitFunction(update)", "PjitFunction(sample)", "PjitFunction(encode_images)"} <= named
    assert {"data", "rollout", "judge", "update", "step"} <= named
    assert steps_in(trace) == {2, 3}


class Ends(Callback):
    """A signal comes while a step is made."""

    def on_step(self, run, step, row):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_is_interrupted_within_a_trace_leaves_it_readable(unbroken, tmp_path, capsys):
    config = small(tmp_path, profile=(2, 4))
    run = Trainer(config, callbacks=[Ends()]).train()
    [trace] = traces_in(run / "profile")
    assert steps_in(trace) == {2}
    assert "PjitFunction(update)" in names_in(trace)
    printed = capsys.readouterr()
    assert f"steps 2 to 2 are traced in {trace}" in " ".join(printed.err.split())
    assert "stopped at step 2 of 4" in printed.out


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
    _, before = load_pretrained(BASE)
    after = params_of(unbroken)
    tiny.assert_equal_trees(before["visual"], after["visual"])
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), before["language_model"], after["language_model"]
    )
    assert max(jax.tree.leaves(moved)) > 1e-4


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
    tiny.assert_equal_trees(params_of(resumed), params_of(unbroken))


@pytest.mark.slow
def test_same_seed_same_run_other_seed_other_run(unbroken, tmp_path):
    again = train(small(tmp_path, steps=1, name="again"))
    other = train(small(tmp_path, steps=1, name="other", seed=1))
    first = without_wall_clock(read_jsonl(unbroken / "metrics.jsonl")[0])
    assert without_wall_clock(read_jsonl(again / "metrics.jsonl")[0]) == first
    assert without_wall_clock(read_jsonl(other / "metrics.jsonl")[0]) != first


@pytest.mark.slow
def test_trains_on_files(tmp_path):
    data = export(tmp_path / "data", split="train", count=8)
    (tmp_path / "data" / "train-0-000002.png").write_bytes(b"not an image")
    config = small(tmp_path, steps=3, data=DataConfig(path=str(data), heldout=2, max_bad_images=1))
    run = train(config)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["after"]["captions"], summary["bad_images"]) == (2, 1)
    strict = dataclasses.replace(
        config, name="strict", data=DataConfig(path=str(data), heldout=2, max_bad_images=0)
    )
    with pytest.raises(UserError, match="train-0-000002"):
        train(strict)


@pytest.mark.slow
def test_a_bad_row_in_a_long_file_saves_the_run_before_it_stops(tmp_path, monkeypatch):
    for name in ("CHECKED", "SAMPLED"):
        monkeypatch.setattr(photos, name, 2)  # long is what has more than 2 rows
    data = export(tmp_path / "data", split="train", count=8)
    whole = data.read_text()
    place = step_places(6, step=2, count=2, seed=1)[0]
    lines = whole.splitlines()
    lines[place] = "{'image'}"
    data.write_text("\n".join(lines))
    # In the plain order, in which the place of a row does not depend on sizes.
    settings = DataConfig(path=str(data), heldout=2, max_bad_images=0, group_by_length=0)
    config = small(tmp_path, seed=1, steps=3, data=settings)
    run = tmp_path / config.name
    with pytest.raises(UserError, match=f"scenes.jsonl, line {place + 1} is not JSON"):
        train(config)
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2]
    assert (run / "checkpoints" / "2").is_dir()
    data.write_text(whole)
    train(config, resume=run)
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3]


def test_the_scene_judge_refuses_photos_without_truth(tmp_path):
    data = export(tmp_path / "data", split="train", count=4)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        del row["scene"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small(
        tmp_path, data=DataConfig(path=str(data), heldout=2), judge=JudgeConfig(kind="scene")
    )
    with pytest.raises(UserError, match="no scene"):
        train(config)
    # The mistake leaves nothing behind, which would refuse the next start under its name.
    assert not (config.out / config.name).exists()


def test_an_existing_run_is_not_overwritten(unbroken):
    before = (unbroken / "summary.json").read_bytes()
    with pytest.raises(UserError, match="--resume"):
        train(small(unbroken.parent))
    assert (unbroken / "summary.json").read_bytes() == before
