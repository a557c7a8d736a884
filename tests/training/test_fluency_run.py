"""A run whose linguistic reward is a language model's as well: the policy that it starts from."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from small_run import BASE, SMALL

import balcap_jax as bj
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import PROMPT, MeshConfig
from balcap_jax.data.lessons import corpus_captions
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rewards.lexical.judge import LexicalJudge
from balcap_jax.rewards.model.fluency import FluentJudge
from balcap_jax.rewards.model.text_scorer import TextScorer
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock
from balcap_jax.scenes.captions import FaultRates

pytestmark = pytest.mark.slow  # its parts are in test_fluency and test_text_scorer

SCENES = [SceneSource("train", 9)[i] for i in range(9)]
ROWS = [
    {"id": e.id, "image": e.image, "captions": corpus_captions(e, "test", 4, FaultRates())}
    for e in SCENES
]
CONFIG = dataclasses.replace(
    SMALL,
    mesh=MeshConfig(data=1),
    judge=JudgeConfig(kind="lexical", fluency="policy", dtype="float32"),
)


def trainer(out, **changes):
    return bj.Trainer(
        dataclasses.replace(CONFIG, out=out, **changes),
        model="base",
        train_dataset=ROWS[:6],
        eval_dataset=ROWS[6:],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    made = trainer(tmp_path_factory.mktemp("fluent"))
    made.train()
    return made.run


def test_linguistic_quality_is_the_rules_times_the_fluency(run, one_device):
    record = json.loads((run / "summary.json").read_text())["judge"]
    assert record["kind"] == "lexical"
    assert record["fluency"]["references"] >= 20
    mesh = make_mesh(devices=jax.devices()[:1])
    scorer = TextScorer.load(BASE, mesh=mesh, dtype="float32", prompt=PROMPT)
    judge = FluentJudge(LexicalJudge(), scorer, name="the start policy")
    judge.restore(record["fluency"])
    rows = read_jsonl(run / "samples.jsonl")
    assert len(rows) >= 6
    below = 0
    for row in rows:
        example = next(e for e in SCENES if e.id == row["id"])._replace(
            reference=row["reference"], references=tuple(row["references"]), scene=None
        )
        [verdict], [rules] = (j([example], [row["caption"]]) for j in (judge, LexicalJudge()))
        for part in ("clarity", "fluency", "coherency"):
            assert row["verdict"][part] == pytest.approx(getattr(verdict, part), abs=1e-4)
        below += verdict.fluency < rules.fluency
    assert below  # some captions of 12 tokens are less likely than what people write


def test_a_resumed_run_judges_by_the_same_fit(run, one_device, tmp_path, monkeypatch):
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "4")
    shutil.rmtree(copy / "policy")
    monkeypatch.setattr(FluentJudge, "fit", None)
    bj.Trainer(
        dataclasses.replace(CONFIG, out=tmp_path), model="base", train_dataset=ROWS[:6],
        eval_dataset=ROWS[6:], resume=copy,
    ).train()  # fmt: skip
    old, new = (
        [without_wall_clock(row) for row in read_jsonl(folder / "metrics.jsonl")]
        for folder in (run, copy)
    )
    for ours, theirs in zip(new, old, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(np.array(ours[name]), np.array(theirs[name]))
