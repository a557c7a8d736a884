"""A run goes on only as the run it was: data, settings, last step, checkpoint."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from images import red
from PIL import Image
from small_run import params_of, small

from balcap_jax.commands.caption import caption
from balcap_jax.commands.export import export as export_policy
from balcap_jax.config.commands import CaptionConfig, ExportConfig
from balcap_jax.config.files import load_run
from balcap_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    RolloutConfig,
)
from balcap_jax.data.scene_source import export
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.training.checkpoint import Checkpoints
from balcap_jax.training.loop import TrainingLoop
from balcap_jax.training.other_files import PROCESSOR
from balcap_jax.training.trainer import Trainer, train


def tiny_run(out: Path, **changes):
    changes = {
        "steps": 3,
        "rollout": RolloutConfig(group_size=2, max_new_tokens=6),
        "prompts_per_step": 8,
        "checkpoint": CheckpointConfig(every=1, keep=9),
        **changes,
    }
    return small(out, **changes)


@pytest.fixture(scope="module", autouse=True)
def _one_device(one_device):
    """Nothing here depends on the mesh; test_meshes.py resumes on another one."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Three steps on a file, held-out scores after each, all checkpoints kept."""
    folder = tmp_path_factory.mktemp("finished")
    data = export(folder / "data", split="train", count=14)
    config = tiny_run(
        folder,
        data=DataConfig(path=str(data), heldout=3),
        evaluation=EvaluationConfig(every=1, batch_size=3),
    )
    return train(config)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it, with data of its own."""
    shutil.copytree(finished.parent, tmp_path / "copy")
    run = tmp_path / "copy" / finished.name
    path = run / "config.json"
    path.write_text(path.read_text().replace(str(finished.parent), str(tmp_path / "copy")))
    for record in run.glob("checkpoints/*/extra/metadata"):
        edit(record, lambda values: None, before=str(finished.parent), after=str(tmp_path / "copy"))
    return run


def edit(record: Path, change, *, before: str = "", after: str = "") -> None:
    """Changes a checkpoint's record, its digest included."""
    from balcap_jax.training.checkpoint_record import digest_of

    values = json.loads(record.read_text().replace(before, after) if before else record.read_text())
    values.pop("digest")
    change(values)
    record.write_text(json.dumps({**values, "digest": digest_of(values)}))


def resume(run: Path, *, steps: int = 4, **options) -> Path:
    config = dataclasses.replace(load_run(run), out=run.parent, name=run.name, steps=steps)
    return train(config, resume=run, **options)


def rows_of(run: Path) -> list[Path]:
    return [run.parent / "data" / "scenes.jsonl"]


def grow(path: Path) -> None:
    lines = path.read_text().splitlines()
    row = json.loads(lines[-1])
    row["id"] = "one-more"
    path.write_text("\n".join([*lines, json.dumps(row)]) + "\n")


def cut(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def swap(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")


def reword(path: Path) -> None:
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    row["caption"] = row["caption"].swapcase()
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (grow, ("training rows (11 -> 12)", "ids of held-out rows", "bytes of data.path")),
        (cut, ("training rows (11 -> 10)", "ids of held-out rows")),
        (swap, ("ids of training rows", "content of data.path")),
        (reword, ("texts of training rows",)),
    ],
)
def test_other_data_are_refused_and_taken_knowingly(run, capsys, change, told):
    [data] = rows_of(run)
    change(data)
    with pytest.raises(UserError, match="--resume-anyway") as refused:
        resume(run)
    for part in told:
        assert part in str(refused.value)
    if change is grow:
        resume(run, resume_anyway=True)
        assert "going on although these differ: " in capsys.readouterr().err.replace("\n", " ")
        assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4]
        resume(run, steps=5)  # the new data are those of the run now


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 7), ("rollout.group_size", 4), ("rl.eps", 0.5), ("reward.tau_u", 3.0)],
)
def test_an_edited_config_is_noticed(run, name, value):
    path = run / "config.json"
    values = json.loads(path.read_text())
    room, _, last = name.rpartition(".")
    (values[room] if room else values)[last] = value
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"differ in {name.replace('.', '[.]')} [(].* -> {value}"):
        resume(run)


def test_another_processor_is_noticed(run):
    def other(values):
        values["extra"]["data"][PROCESSOR] = "another"

    def older(values):
        del values["extra"]["data"][PROCESSOR]

    for change in (older, other):
        for record in run.glob("checkpoints/*/extra/metadata"):
            edit(record, change)
        if change is older:
            resume(run, steps=3)
    with pytest.raises(UserError, match=f"differ in {PROCESSOR};"):
        resume(run)


def test_a_run_past_the_last_step_is_refused_and_can_go_back(run, capsys):
    before = (run / "summary.json").read_bytes()
    with pytest.raises(UserError, match=r"step 3, which is past .* steps=2; give --steps 3 or mo"):
        resume(run, steps=2)
    assert (run / "summary.json").read_bytes() == before
    assert load_run(run).steps == 3  # what was refused has not changed the run
    resume(run, steps=3, checkpoint="2")
    assert "the checkpoints after step 2 are now aside-3" in capsys.readouterr().err
    again = Checkpoints(run, read_only=True)
    assert again.steps()[-1] == 3
    with pytest.raises(UserError, match=r"no checkpoint '9'; choose one of .*3 with --checkpoint"):
        resume(run, checkpoint="9")


@pytest.mark.slow
def test_lost_metrics_and_foreign_rows_are_told(run, capsys):
    path = run / "metrics.jsonl"
    whole = path.read_text()
    path.unlink()
    resume(run)
    assert "holds 0 of the 3 rows up to step 3" in capsys.readouterr().err.replace("\n", " ")
    for foreign in ('{"loss": 1}', "[1]", '{"step": "3"}', '{"step": true}', "3", '{"step": null}'):
        path.write_text(whole + foreign + "\n")
        with pytest.raises(UserError, match=r"metrics.jsonl, row 4 is no row of a run"):
            resume(run)
    for broken in ("[" * 100_000, '{"step": ' + "9" * 5000 + "}"):
        path.write_text(whole + broken + "\n")
        with pytest.raises(UserError, match=r"metrics.jsonl, line 4 is not JSON"):
            resume(run)


def test_a_damaged_checkpoint_makes_the_one_before_be_taken(run, finished, capsys):
    biggest = max(
        (run / "checkpoints" / "3").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    biggest.write_bytes(data)
    resume(run, steps=3)
    told = " ".join(capsys.readouterr().err.split())
    assert "the checkpoint of step 3 (" in told
    assert "is not intact going on from step 2, the newest that is intact" in told
    tiny.assert_equal_trees(params_of(run), params_of(finished))


@pytest.mark.slow
def test_an_old_checkpoint_goes_on_and_says_what_is_not_checked(run, capsys):
    for record in run.glob("checkpoints/*/extra/metadata"):
        values = json.loads(record.read_text())
        old = {"leaves": values["leaves"], "extra": values["extra"]}
        for name in ("settings", "data", "logged", "best", "owed"):
            del old["extra"][name]
        record.write_text(json.dumps(old))
    resume(run)
    told = " ".join(capsys.readouterr().err.split())
    assert "its checksums and settings and data cannot be checked" in told


def test_a_policy_that_is_older_than_its_run_is_told(run, tmp_path, monkeypatch, capsys):
    def no_weights(folder, **_):
        raise UserError("read no further")

    monkeypatch.setattr("balcap_jax.commands.caption.load_pretrained", no_weights)
    config = CaptionConfig(images=(red(tmp_path),), model=str(run))
    summary = run / "summary.json"
    for steps, told in ((3, False), (2, True)):
        summary.write_text(json.dumps({**json.loads(summary.read_text()), "steps": steps}))
        with pytest.raises(UserError, match="read no further"):
            list(caption(config))
        said = " ".join(capsys.readouterr().err.split())
        assert ("has gone on since it wrote its policy" in said) == told
    assert "its newest checkpoint is of step 3" in said


def test_the_best_checkpoint_is_that_of_the_best_held_out_score(run, tmp_path):
    rows = read_jsonl(run / "metrics.jsonl")
    scores = {row["step"]: row["heldout/b_capscore"] for row in rows}
    best = max(scores, key=lambda step: (scores[step], -step))
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.best_step() == best
        assert checkpoints.steps() == [1, 2, 3]
    out = tmp_path / "out"
    for which in ("best", str(best)):
        shutil.rmtree(out, ignore_errors=True)
        taken = export_policy(ExportConfig(run=run, out=out, checkpoint=which))
        assert taken == f"its checkpoint of step {best}"
    other = next(step for step in (1, 2) if step != best)
    export_policy(ExportConfig(run=run, out=tmp_path / "other", checkpoint=str(other)))
    moved = np.abs(
        load_pretrained(out)[1]["language_model"]["norm"]["scale"]
        - load_pretrained(tmp_path / "other")[1]["language_model"]["norm"]["scale"]
    )
    assert moved.max() > 0
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    config = CaptionConfig(images=(tmp_path / "red.png",), model=str(run), checkpoint="best")
    [(_, text)] = caption(config)
    assert isinstance(text, str)
    with pytest.raises(UserError, match="choose one of 1, 2, 3 with --checkpoint"):
        list(caption(dataclasses.replace(config, checkpoint="latest")))


@pytest.mark.slow
def test_keep_best_keeps_by_held_out_scores_alone(tmp_path, monkeypatch, capsys):
    """A good training batch is not what is kept; and without evaluations nothing is."""
    scores = iter([10.0, 30.0, 20.0, float("nan"), 5.0])
    monkeypatch.setattr(
        TrainingLoop,
        "_evaluate_in_between",
        lambda loop: {"heldout/b_capscore": next(scores)} if loop.config.evaluation.every else {},
    )
    config = tiny_run(
        tmp_path,
        steps=5,
        checkpoint=CheckpointConfig(every=4, keep=1),
        evaluation=EvaluationConfig(every=1, batch_size=3),
    )
    run = train(config)
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 5]
        assert checkpoints.best_step() == 2
    assert "no best checkpoint is kept" not in capsys.readouterr().err
    run = train(dataclasses.replace(config, name="none", evaluation=EvaluationConfig(batch_size=3)))
    assert capsys.readouterr().err.count("no best checkpoint is kept") == 1
    with pytest.raises(UserError, match="no best checkpoint, which needs"):
        train(load_run(run), resume=run, checkpoint="best")


@pytest.mark.slow
def test_rows_in_memory_are_recorded_too(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": rng.integers(0, 255, (56, 56, 3), dtype=np.uint8),
            "caption": f"A photo of number {i} on a table.",
            "answer": i,
        }
        for i in range(12)
    ]

    def length(completions, answer, **_):
        return [float(len(text)) for text in completions]

    options = {"reward_funcs": length, "train_dataset": rows}
    config = tiny_run(tmp_path, steps=1, data=DataConfig(heldout=2, path="memory"))
    run = Trainer(config, **options).train()
    for changed in (
        [*rows, rows[0]],
        rows[::-1],
        [{**rows[0], "answer": 99}, *rows[1:]],
        [{**rows[0], "image": 255 - rows[0]["image"]}, *rows[1:]],
        [{**rows[0], "caption": "Another one."}, *rows[1:]],
        [{**rows[0], "image": Image.fromarray(rows[0]["image"])}, *rows[1:]],
    ):
        again = Trainer(resume=run, reward_funcs=length, train_dataset=changed)
        with pytest.raises(UserError, match="training rows"):
            again.train()
    Trainer(resume=run, **options).train()
    with pytest.raises(UserError, match="resume_anyway is for a run to go on with"):
        Trainer(config, resume_anyway=True, **options)
