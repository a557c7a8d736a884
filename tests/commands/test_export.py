"""`balcap export`: what a run has learned, as a folder that loads again."""

import json
import os

import pytest
import tiny
import tiny_llava

from balcap_jax.commands.export import export
from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import ExportConfig, TrainConfig
from balcap_jax.config.sections import ModelConfig
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import COMPANIONS, load_pretrained, save_pretrained
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rl.train_state import init_state, make_optimizer
from balcap_jax.runs.folder import RunLock, written_beside
from balcap_jax.training.checkpoint import Checkpoints


@pytest.fixture
def start(tmp_path):
    """The folder that the run started from."""
    tiny_llava.write_processor(tmp_path / "start")
    policy, params = tiny_llava.policy()
    save_pretrained(tmp_path / "start", policy, params)
    return tmp_path / "start"


@pytest.fixture
def run(start, tmp_path):
    """A run without checkpoints."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    config = TrainConfig(model=ModelConfig(path=str(start)))
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


OPTIMIZER = make_optimizer(
    learning_rate=1e-3, warmup_steps=2, total_steps=9, schedule="cosine", weight_decay=0.1
)


def save_checkpoint(run, step, *, seed):
    """A checkpoint as the trainer writes it, with a schedule and spread over devices."""
    policy, params = tiny_llava.policy(seed=seed)
    state = init_state(
        make_mesh(data=2, fsdp=2, tensor=2), params, OPTIMIZER, trained=policy.parts["decoder"]
    )
    with Checkpoints(run) as checkpoints:
        checkpoints.save(step, state, {"step": step, "summary": {}, "seconds": 1.0})
    return params


def write_policy(run, *, seed, dtype=None, steps=None):
    """What a run leaves at its end; a supervised run has no summary."""
    policy, params = tiny_llava.policy(seed=seed)
    save_pretrained(run / "policy", policy, params, dtype=dtype, source=run.parent / "start")
    if steps is not None:
        (run / "summary.json").write_text(json.dumps({"steps": steps}))
    return params


def test_last_checkpoint_of_an_unfinished_run(run, start, tmp_path):
    save_checkpoint(run, 2, seed=1)
    params = save_checkpoint(run, 3, seed=2)
    out = tmp_path / "deep" / "out"
    assert export(ExportConfig(run=run, out=out)) == "its checkpoint of step 3"
    policy, exported = load_pretrained(out)
    assert policy == load_pretrained(start)[0]
    tiny.assert_equal_trees(exported, params)
    for name in COMPANIONS:
        assert (out / name).is_file() == (start / name).is_file(), name
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_the_start_had_goes_along(run, start, tmp_path):
    """Into the finished policy, into an unfinished run's, and so on from each."""
    (start / "LICENSE").write_text("a licence")
    (start / "mine.py").write_text("raise SystemExit")
    config = json.loads((start / "config.json").read_text())
    config["vision_config"] |= {"tokens_per_second": 2}
    config["text_config"] |= {"attention_dropout": 0.25, "bos_token_id": 4}
    (start / "config.json").write_text(json.dumps(config))
    save_checkpoint(run, 3, seed=1)
    export(ExportConfig(run=run, out=tmp_path / "unfinished"))
    policy, params = load_pretrained(start)
    save_pretrained(run / "policy", policy, params, source=start)
    (run / "summary.json").write_text(json.dumps({"steps": 3}))
    export(ExportConfig(run=run, out=tmp_path / "finished"))
    for out in ("unfinished", "finished"):
        assert json.loads((tmp_path / out / "config.json").read_text()) == config
        assert (tmp_path / out / "LICENSE").read_text() == "a licence"
        assert not (tmp_path / out / "mine.py").exists()


def test_what_a_killed_export_left_goes_with_the_next_one(run, tmp_path):
    write_policy(run, seed=1)
    for name in (".out.123.partial", ".other.123.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with written_beside(tmp_path / "out") as living:  # of another process, by its lock
        assert living.name == f".out.{os.getpid()}.partial"
        living.rename(tmp_path / ".out.456.partial")
        export(ExportConfig(run=run, out=tmp_path / "out"))
        found = {path.name for path in tmp_path.iterdir()} - {"run", "start"}
        assert found == {"out", ".other.123.partial", ".out.456.partial"}
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_finished_policy_with_its_own_dtype(run, tmp_path):
    save_checkpoint(run, 3, seed=1)
    write_policy(run, seed=2, dtype="float16", steps=3)
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    assert export(ExportConfig(run=run, out=out)) == "its finished policy"
    weights = [folder / "model.safetensors" for folder in (run / "policy", out)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (out / "tokenizer.json").is_file()


def test_a_run_that_went_on_after_its_end_is_unfinished(run, tmp_path):
    write_policy(run, seed=1, steps=3)
    params = save_checkpoint(run, 5, seed=2)
    assert export(ExportConfig(run=run, out=tmp_path / "out")) == "its checkpoint of step 5"
    tiny.assert_equal_trees(load_pretrained(tmp_path / "out")[1], params)


def test_a_supervised_run_has_a_policy_only(run, tmp_path):
    params = write_policy(run, seed=1)
    assert export(ExportConfig(run=run, out=tmp_path / "out")) == "its finished policy"
    tiny.assert_equal_trees(load_pretrained(tmp_path / "out")[1], params)


def no_run(run):
    for path in (run / "config.json", run / "checkpoints"):
        path.rename(run.parent / path.name)


def truncated(run):
    write_policy(run, seed=1)
    weights = run / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])


def no_start(run):
    (run.parent / "start").rename(run.parent / "gone")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_run, "is not a run that can be used here, it has no checkpoints"),
        (lambda run: run.rename(run.parent / "moved"), "is not a folder"),
        (lambda run: None, "holds no checkpoint to restore"),
        (lambda run: (run / "config.json").unlink(), "config.json cannot be read"),
        (no_start, "start' is not a folder"),
        (truncated, "is not a whole safetensors file"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(run, tmp_path, spoil, message):
    spoil(run)
    with pytest.raises(UserError, match=message) as error:
        export(ExportConfig(run=run, out=tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run, tmp_path):
    write_policy(run, seed=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("out", "file"):
        with pytest.raises(UserError, match="nothing is overwritten"):
            export(ExportConfig(run=run, out=tmp_path / name))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_is_being_written_is_left_alone(run, tmp_path):
    save_checkpoint(run, 3, seed=1)
    with RunLock(run), pytest.raises(UserError, match="only one process may"):
        export(ExportConfig(run=run, out=tmp_path / "out"))
