"""What hosts, judge and bucket must supply, by hand: 64 chips, 64 prompts of 8 captions in 8 s."""

import json

import pytest

from balcap_jax.config.commands import TrainConfig
from balcap_jax.plan.supply import needs_of, supply_of

GB = 1e9
ANSWER = {
    "chips": 64,
    "devices_per_chip": 1,
    "mesh": {"data": 1, "fsdp": 16, "tensor": 4},
    "prompts_per_step": 64,
    "group_size": 8,
    "step": {"serial": 8.0},
    "programs": {"update": {"bytes": {"parameters": 0.5 * GB, "optimizer": 1.0 * GB}}},
}


def needs(answer=ANSWER, **settings):
    config = TrainConfig.of({"checkpoint.every": 25, **settings})
    return {need.what.split(",")[0]: need for need in needs_of(config, answer)}


def test_images_and_the_state_by_hand():
    found = needs(**{"data.workers": 2})
    assert set(found) == {"images ready", "bytes to the bucket per host and second"}
    images, state = found["images ready"], found["bytes to the bucket per host and second"]
    assert images.needed == 64 / 8 / 16  # a second, over 16 hosts
    assert images.has == 2 * 22
    # 96 GB from 16 hosts in the 200 s between two saves
    assert state.needed == pytest.approx(96 * GB / 16 / 200)
    assert "96 GB every 25 steps from 16 hosts" in state.what


def test_copies_over_data_are_saved_once():
    copies = ANSWER | {"chips": 256, "mesh": {"data": 4, "fsdp": 16, "tensor": 4}}
    state = needs(copies)["bytes to the bucket per host and second"]
    assert state.needed == pytest.approx(96 * GB / 16 / 200)  # of the 64 hosts 16 hold all of it


def test_a_judge_with_overlap_needs_calls_under_way():
    llm = {"judge.kind": "llm", "judge.model": "m", "rollout.overlap_steps": 1}
    found = needs(**llm, **{"judge.concurrency": 64})
    under_way = found["judge calls under way per host"]
    assert under_way.needed == 64 * 4 / 16  # 64 calls a second of 4 s, over 16 hosts
    assert under_way.share == 0.25
    assert found["judge calls a second"].needed == 64
    assert found["tokens that judges write a second"].needed == 64 * 630
    separate = needs(**llm, **{"judge.concurrency": 64, "judge.calls": "separate"})
    assert separate["judge calls under way per host"].needed == 3 * 16


@pytest.mark.parametrize(
    ("concurrency", "seconds"),
    [(16, 8.0), (8, 16.0), (1000, 4.0)],  # 32 calls a host: two waves, four, one
)
def test_a_judge_without_overlap_is_waited_for(concurrency, seconds):
    found = needs(
        **{"judge.kind": "llm", "judge.model": "m", "judge.concurrency": concurrency},
    )
    waiting = found["seconds of a step that chips wait for the judge"]
    assert waiting.needed == pytest.approx(seconds)
    assert waiting.share == pytest.approx(seconds / 8)
    assert waiting.change == "rollout.overlap_steps"


def test_what_is_short_first_is_named():
    config = TrainConfig.of({"judge.kind": "llm", "judge.model": "m", "judge.concurrency": 1})
    supply = supply_of(config, ANSWER)
    assert supply["first"].startswith("seconds of a step that chips wait for the judge")
    assert supply["change"] == "rollout.overlap_steps"
    # 90,000 / 64 steps of 8 s
    assert supply["epoch_hours"] == pytest.approx(90_000 / 64 * 8 / 3600)
    assert supply["epoch_chip_hours"] == pytest.approx(64 * supply["epoch_hours"])
    assert json.loads(json.dumps(supply)) == supply
