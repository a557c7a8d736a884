"""A supervised run on data in a bucket, written to the bucket, equals one on a disk."""

import json
import signal
from pathlib import Path

import pytest
import tiny
from PIL import Image

from balcap_jax.config.commands import SFTConfig
from balcap_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    OptimConfig,
)
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.fields import without_wall_clock
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.storage.local import fetched
from balcap_jax.storage.paths import as_path
from balcap_jax.training.sft import SupervisedRun, sft

# Two runs that compile programs of their own.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


def config_of(out, data: str) -> SFTConfig:
    return SFTConfig(
        out=out,
        steps=4,
        batch_size=2,
        max_new_tokens=16,
        log_every=1,
        sample_every=2,
        data=DataConfig(path=data, heldout=4),
        checkpoint=CheckpointConfig(every=9),
        evaluation=EvaluationConfig(every=2, batch_size=2),
        mesh=MeshConfig(),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=1),
        save_dtype="float32",
    )


def write_rows(folder: Path) -> None:
    colours = ("red", "green", "blue", "grey")
    rows = []
    for number in range(10):
        name, colour = f"{number}.png", colours[number % 4]
        Image.new("RGB", (56, 56), colour).save(folder / name)
        rows.append({"id": f"{number}", "image": name, "captions": [f"a {colour} square ."]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stopped_in_an_evaluation(config: SFTConfig, monkeypatch) -> int:
    """SIGTERM before the first batch of the evaluation after step 2; how many batches followed."""
    batches, asked, after = SupervisedRun._heldout_batches, 0, 0

    def heldout_batches(self):
        nonlocal asked, after
        asked += 1
        if asked == 2:
            signal.raise_signal(signal.SIGTERM)
        for batch in batches(self):
            after += asked == 2
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedRun, "_heldout_batches", heldout_batches)
        sft(config)
    return after


@pytest.mark.long  # test_bucket_preemption has a run on rewards
def test_it_is_preempted_and_goes_on_to_the_same_bits(bucket, tmp_path, monkeypatch, capsys):
    local = tmp_path / "data"
    local.mkdir()
    write_rows(local)
    bucket.put_folder(local, "data")
    expected = sft(config_of(tmp_path, str(local / "rows.jsonl")))

    monkeypatch.chdir(tmp_path)
    out = as_path(bucket.url) / "runs"
    config = config_of(out, f"{bucket.url}/data/rows.jsonl")
    capsys.readouterr()
    assert stopped_in_an_evaluation(config, monkeypatch) == 1
    run = out / config.name
    said = capsys.readouterr().out
    assert "stopped at step 2 of 4, all saved" in said
    assert f"balcap sft --resume {run}" in said or "Trainer" in said
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1]  # 2 is owed its scores
    assert f"runs/{config.name}/.lock" not in bucket.objects

    assert sft(config, resume=run) == run
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows, others = read_jsonl(run / name), read_jsonl(expected / name)
        assert [*map(without_wall_clock, rows)] == [*map(without_wall_clock, others)], name
    tiny.assert_equal_trees(
        load_pretrained(fetched(run / "policy"))[1], load_pretrained(expected / "policy")[1]
    )
    left = {name.split("/")[2] for name in bucket.objects if name.startswith("runs/")}
    assert {"curves.png", "summary.json", "policy"} <= left
    assert [path.name for path in tmp_path.iterdir()] == ["data", expected.name]
