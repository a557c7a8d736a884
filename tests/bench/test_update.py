"""`balcap bench update` in a small run: both sides learn the same."""

import json

import pytest

from balcap_jax.bench import update
from balcap_jax.cli import main as cli
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import RolloutConfig
from balcap_jax.models.packing import Room
from balcap_jax.training import learner

SMALL = TrainConfig(prompts_per_step=2, rollout=RolloutConfig(group_size=2, max_new_tokens=16))


@pytest.mark.slow  # it compiles the programs of the base policy
def test_both_sides_learn_the_same(monkeypatch, capsys):
    monkeypatch.setattr(update, "TrainConfig", lambda: SMALL)
    monkeypatch.setattr(learner, "least_room", lambda *_, **__: Room(64, 128))
    assert cli.main(["bench", "update", "--steps", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    padded, packed = (report["sides"][name] for name in update.SIDES)
    assert (padded["programs"], packed["programs"]) == (1, 1)
    assert len(padded["seconds"]) == len(packed["seconds"]) == 2
    assert report["ratio"] == pytest.approx(padded["median"] / packed["median"])
    assert 0 < packed["real_share"] < 1
    checksum = report["checksum"]
    assert checksum["first loss, padded"] != 0
    assert checksum["largest difference of losses"] < 1e-4
