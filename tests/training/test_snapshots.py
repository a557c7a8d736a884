"""Snapshots of the weights alone, and what a save took."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import params_of, small

from balcap_jax.commands.export import export
from balcap_jax.config.commands import ExportConfig
from balcap_jax.config.sections import CheckpointConfig
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.folder import RunLock, read_jsonl
from balcap_jax.training.trainer import train

# A run of its own settings, whose programs no other file has.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    settings = CheckpointConfig(every=1, parameters_every=1, keep=1, keep_best=False)
    return train(small(tmp_path_factory.mktemp("runs"), checkpoint=settings, steps=3))


def flat(params) -> list[np.ndarray]:
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(params)]


def test_a_snapshot_is_the_policy_of_its_step_in_bfloat16(run, tmp_path):
    assert sorted(path.name for path in (run / "parameters").iterdir()) == ["1", "2", "3"]
    with RunLock(run):  # the run may go on
        export(ExportConfig(run=run, out=tmp_path / "third", checkpoint="parameters/3"))
        export(ExportConfig(run=run, out=tmp_path / "first", checkpoint="parameters/1"))
    last = flat(params_of(run))
    third, first = (flat(load_pretrained(tmp_path / name)[1]) for name in ("third", "first"))
    for ours, theirs in zip(third, last, strict=True):
        assert np.array_equal(ours, np.asarray(jnp.asarray(theirs, jnp.bfloat16), np.float32))
    assert any(not np.array_equal(a, b) for a, b in zip(first, third, strict=True))
    sizes = {
        name: sum(f.stat().st_size for f in (run / name / "3").rglob("*") if f.is_file())
        for name in ("parameters", "checkpoints")
    }
    assert sizes["parameters"] < sizes["checkpoints"] / 3


def test_a_snapshot_that_is_not_there_is_a_sentence(run, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint '9'; choose one of 1, 2, 3"):
        export(ExportConfig(run=run, out=tmp_path / "out", checkpoint="parameters/9"))
    with pytest.raises(UserError, match="'parameters/3'"):
        train(small(run.parent, steps=4), resume=run, checkpoint="parameters/3")


def test_a_save_tells_its_time_and_size(run):
    rows = read_jsonl(run / "metrics.jsonl")
    told = [row for row in rows if "save/seconds" in row]
    # The save of the first step was whole before that of the second began.
    assert told[-1]["step"] in (2, 3)
    assert "save/seconds" not in rows[0]
    assert told[-1]["save/held_seconds"] > 0
    assert told[-1]["save/mb"] == pytest.approx(_mb(run), rel=1e-3)


def _mb(run) -> float:
    """Of the arrays that a checkpoint says it holds."""
    record = json.loads((run / "checkpoints" / "3" / "extra" / "metadata").read_text())
    total = 0
    for text in record["leaves"].values():
        name, _, shape = text.partition("[")
        size = np.prod([int(n) for n in shape.rstrip("]").split(",") if n.strip()], initial=1)
        total += int(size) * jnp.dtype(name).itemsize
    return total / 1e6
