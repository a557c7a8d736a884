"""A run whose precision is judged by a policy on its own devices, audited by the exact judge."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from small_run import params_of, small

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.judge import AuditConfig, JudgeConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import CheckpointConfig, MeshConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.errors import UserError
from balcap_jax.rewards import judges as judge_of_run
from balcap_jax.rewards.judges import make_judge
from balcap_jax.rewards.model import judge as model_judge
from balcap_jax.rewards.model.calibration import LEAST_AUC
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock
from balcap_jax.training.audit import Audit
from balcap_jax.training.experience import Judged
from balcap_jax.training.model_judge import on_own_captions
from balcap_jax.training.trainer import train

OWN = JudgeConfig(kind="model", model="base", own_policy=True, dtype="float32")


def config(out, **changes) -> TrainConfig:
    changes = {
        "judge": OWN,
        "audit": AuditConfig(every=1, captions=4),
        "mesh": MeshConfig(data=1),
        "steps": 2,
        "checkpoint": CheckpointConfig(every=1),
        **changes,
    }
    return small(out, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    """Judged by the policy it starts from, which the bound on a judge would refuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_judge, "LEAST_AUC", 0.0)
        patch.setattr(judge_of_run, "FITTED_ON", 4)
        yield train(config(tmp_path_factory.mktemp("judged")))


@pytest.mark.slow
def test_metrics_tell_what_was_asked_and_what_the_audit_found(run):
    rows = read_jsonl(run / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        assert 0 < row["judge/questions"] <= row["judge/statements"]
        assert row["judge/failures"] == 0
        assert 0 <= row["audit/precision"] <= 1
        assert row["audit/captions"] == 4
    # Recall and linguistic quality are the exact judge's anyway, precision is not.
    assert any(row["audit/precision"] != row["reward/precision/mean"] for row in rows)


@pytest.mark.slow
def test_the_fit_of_the_judge_is_written_down_and_told(run, one_device, capsys, tmp_path):
    record = json.loads((run / "summary.json").read_text())["judge"]
    assert record["kind"] == "model"
    assert record["model"] == "base"
    fit = record["calibration"]
    assert 0 <= fit["auc"] <= 1
    assert fit["images"] == 4
    samples = read_jsonl(run / "samples.jsonl")
    chances = [a["chance"] for row in samples for a in row["verdict"]["assertions"]]
    assert chances
    assert all(0 <= chance <= 1 for chance in chances)


@pytest.mark.slow
@pytest.mark.long
def test_a_resumed_run_has_the_same_fit_and_the_same_end(run, one_device, tmp_path, monkeypatch):
    copy = tmp_path / "judged"
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").iterdir():
        if folder.name == "2":
            shutil.rmtree(folder)
    shutil.rmtree(copy / "policy")

    def never(*_):
        raise AssertionError("a resumed run fits its judge no more")

    monkeypatch.setattr(model_judge.ModelJudge, "calibrate", never)
    train(dataclasses.replace(config(tmp_path), name="judged"), resume=copy)
    old, new = (
        [without_wall_clock(row) for row in read_jsonl(folder / "metrics.jsonl")]
        for folder in (run, copy)
    )
    assert new == old
    one, other = params_of(run), params_of(copy)
    for a, b in zip(_leaves(one), _leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def _leaves(tree) -> list:
    return [x for v in tree.values() for x in (_leaves(v) if isinstance(v, dict) else [v])]


def test_the_policy_as_its_own_judge_needs_a_flag(tmp_path, one_device):
    own = dataclasses.replace(OWN, own_policy=False)
    with pytest.raises(UserError) as error:
        train(config(tmp_path, judge=own))
    assert "--judge.own-policy true" in str(error.value)


@pytest.mark.slow
def test_a_judge_that_sees_too_little_is_refused(monkeypatch):
    monkeypatch.setattr(judge_of_run, "FITTED_ON", 8)
    monkeypatch.setattr(model_judge, "LEAST_AUC", LEAST_AUC)  # the run above lets it be anything
    judge = make_judge(OWN, data="scenes", example=EXAMPLE)
    with pytest.raises(UserError) as error:
        judge_of_run.fit_judge(judge, SceneSource("train", 10**9))
    assert "where 0.70 is the least" in str(error.value)
    line = on_own_captions(judge, [EXAMPLE], [WORSE[1]])
    assert "on the policy's own captions" in line
    assert on_own_captions(judge, [EXAMPLE._replace(scene=None)], [TRUE]) is None


# ---- the audit alone


def judged(precision: float, caption: str, example: Example) -> Judged:
    rewards = np.array([[[precision]]], np.float32)
    empty = np.zeros((1, 1))
    return Judged(
        [example], [[caption]], [[None]], rewards, rewards, rewards, empty, empty[0], empty,
        empty.astype(int), empty.astype(bool), empty.astype(bool), 1, 0, (True,), {},
    )  # fmt: skip


@pytest.fixture
def audit():
    return Audit(AuditConfig(every=2), SceneJudge(), RewardConfig(names=("precision",)))


EXAMPLE = SceneSource("train", 1)[0]
TRUE = EXAMPLE.reference
# Ever less of it true.
WORSE = [TRUE + " A purple heart is there." * n for n in (0, 1)] + ["A purple heart is there."]


def test_two_judges_that_go_apart_twice_in_a_row_stop_the_run(audit):
    found = [
        audit.look(2 * n, judged(0.5 + 0.1 * n, caption, EXAMPLE))
        for n, caption in enumerate(WORSE)
    ]
    values = [row["audit/audited"] for row in found]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3
    assert [row["audit/apart"] for row in found] == [0, 1, 2]
    assert "is being gamed" in audit.verdict


def test_one_audit_that_agrees_begins_the_count_anew(audit):
    audit.look(2, judged(0.5, WORSE[0], EXAMPLE))
    audit.look(4, judged(0.6, WORSE[1], EXAMPLE))
    audit.look(6, judged(0.5, WORSE[1], EXAMPLE))
    assert audit.apart == 0
    audit.look(8, judged(0.6, WORSE[2], EXAMPLE))
    assert audit.apart == 1
    assert audit.verdict == ""


def test_an_audit_without_signal_is_no_audit(audit):
    audit.look(2, judged(0.5, WORSE[0], EXAMPLE))
    before = audit.state()
    row = audit.look(4, judged(0.9, WORSE[2], EXAMPLE._replace(scene=None)))
    assert np.isnan(row["audit/audited"])
    assert row["audit/captions"] == 0
    assert audit.state() == before
    assert audit.look(5, judged(0.9, WORSE[2], EXAMPLE)) == {}  # none is due


def test_a_resumed_audit_goes_on_counting(audit):
    audit.look(2, judged(0.5, WORSE[0], EXAMPLE))
    audit.look(4, judged(0.6, WORSE[1], EXAMPLE))
    other = Audit(AuditConfig(every=2), SceneJudge(), RewardConfig(names=("precision",)))
    other.restore(json.loads(json.dumps(audit.state())))
    other.look(6, judged(0.7, WORSE[2], EXAMPLE))
    assert other.verdict


def test_settings_of_an_audit_that_could_have_no_effect_are_refused():
    for values, said in (
        ({"audit.kind": "scene"}, "audits nothing"),
        ({"audit.every": 5, "audit.model": "m"}, "has no effect"),
        ({"audit.every": 5, "audit.kind": "model"}, "audit.model"),
        ({"audit.every": -1}, "at least 0"),
    ):
        with pytest.raises(UserError) as error:
            TrainConfig.of(values)
        assert said in str(error.value)
