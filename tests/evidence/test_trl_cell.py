"""A cell by TRL: the rewards it hands over, and one that is really trained."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_run import SMALL

from balcap_jax.config.base import to_dict
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import MeshConfig, RLConfig
from balcap_jax.config.study import StudyConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.errors import UserError
from balcap_jax.evidence import trl_cell
from balcap_jax.evidence.files import CELLS, RESULT, RUN
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.training import task_run

CONFIG = dataclasses.replace(
    SMALL, steps=2, loggers=(), mesh=MeshConfig(), rl=RLConfig(advantage="trl")
)
EXAMPLES = [SceneSource("train", 2)[i] for i in range(2)]


def test_the_rewards_are_the_exact_ones_with_the_length_control():
    series = {name: [] for name in (*(f"reward/{n}/mean" for n in CONFIG.reward.names), "words")}
    precision, recall, linguistic = trl_cell.reward_functions(CONFIG, EXAMPLES, series)
    whole = [example.reference for example in EXAMPLES]
    first = whole[0].split(".")[0] + "."  # less than half of the reference
    texts = [[{"content": whole[0]}], [{"content": first}], [{"content": whole[1]}]]
    rows = [0, 0, 1]
    assert precision(completions=texts, row=rows, image=None) == [1.0, 1.0, 1.0]
    told = recall(completions=texts, row=rows)
    assert (told[0], told[2]) == (1.0, 1.0)
    assert 0 < told[1] < 1
    assert linguistic(completions=texts, row=rows) == [1.0, 0.0, 1.0]
    assert precision.__name__ == "precision"  # TRL logs it by this name
    # One batch was judged once; the curve has the rewards before the mask, as ours has.
    assert series["reward/recall/mean"] == [pytest.approx(np.mean(told))]
    assert series["reward/linguistic/mean"][0] > 0.9
    assert series["words"] == [
        pytest.approx(np.mean([len(t[0]["content"].split()) for t in texts]))
    ]
    precision(completions=texts[:1], row=[1])  # the caption of another scene
    assert len(series["words"]) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl": RLConfig()}, "has rl.advantage='trl', not 'gdpo'"),
        ({"rl": RLConfig(advantage="trl", kl_coef=0.1)}, "has rl.kl_coef=0.0, not 0.1"),
        ({"study": StudyConfig(noise=("recall=1",))}, "knows no study"),
        ({"reward": RewardConfig(length_unit="tokens")}, "reward.length_unit='words'"),
    ],
)
def test_what_trl_is_not_set_up_for_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        trl_cell._check(dataclasses.replace(CONFIG, **changes))


@pytest.mark.slow
@pytest.mark.torch
def test_a_cell_by_trl(tmp_path, monkeypatch):
    # Slow: it compiles ours and runs torch.
    monkeypatch.setattr(task_run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
    pytest.importorskip("torch", reason="TRL runs on torch")
    pytest.importorskip("trl", reason="the other trainer")
    folder = tmp_path / CELLS / "trl"
    folder.mkdir(parents=True)
    cell = {"kind": "trl", "settings": to_dict(CONFIG)}
    trl_cell.run_with_trl(folder, cell, beside={"date": "today"})
    found = json.loads((folder / RESULT).read_text())
    assert found["date"] == "today"
    assert len(found["series"]["reward/precision/mean"]) == 2
    before, after = found["scores"]["before"], found["scores"]["after"]
    assert before["captions"] == after["captions"] == 3
    # A learning rate of 1e-3 moves a policy of two million parameters in two steps.
    assert {name: before[name] for name in ("words", "precision", "linguistic")} != {
        name: after[name] for name in ("words", "precision", "linguistic")
    }
    assert not (folder / RUN).exists()
