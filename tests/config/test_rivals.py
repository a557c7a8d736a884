"""Settings of rewards of other methods: what is unknown, unfit or read by nobody is refused."""

import pytest

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import load_toml
from balcap_jax.errors import UserError

QA = {"reward.rivals": ["qa_utility"]}
ASKED = QA | {"reward.judge.kind": "llm", "reward.judge.model": "m"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reward.rivals": ["qa_utilty"]}, "unknown reward 'qa_utilty', known are qa_utility"),
        ({"reward.rivals": ["qa_utility"] * 2}, "names a reward twice"),
        ({"reward.qa.draws": 4}, "reward.qa.draws=4 has no effect without qa_utility"),
        (QA | {"reward.qa_length.full": 9}, "reward.qa_length.full=9 has no effect without qa_ut"),
        ({"reward.judge.kind": "scene"}, "reward.judge.kind='scene' has no effect without"),
        ({"reward.failure": "zero"}, "reward.failure='zero' has no effect without reward.rivals"),
        (QA | {"reward.judge.kind": "lexical"}, "kind='lexical' cannot judge qa_utility"),
        (QA | {"reward.judge.kind": "llm"}, "reward.judge.model='' names no model to ask"),
        (QA | {"reward.judge.model": "m"}, "has no effect with reward.judge.kind='auto'"),
        (ASKED | {"reward.judge.calls": "separate"}, "no effect on a reward of reward.rivals"),
        (ASKED | {"reward.judge.max_failure_share": 0.1}, "no effect on a reward of reward.riv"),
        (QA | {"reward.qa.draws": 0}, "reward.qa.draws=0 must be at least 1"),
        (QA | {"reward.qa.scale": 0}, "reward.qa.scale=0.0 must be above 0"),
        (QA | {"reward.weights": [1, 1, 1]}, "must have one weight for each of the 4 rewards"),
        (QA | {"reward.functions": ["a.py:qa_utility"]}, "names a reward twice"),
        (
            {"reward.rivals": ["qa_utility_length"], "reward.qa_length.full": 3072},
            "reward.qa_length.full=3072 must be below reward.qa_length.zero=3072",
        ),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(values, said):
    with pytest.raises(UserError) as error:
        TrainConfig.of(values)
    assert said in str(error.value)
    assert str(error.value).count("; ") == 1
    assert str(error.value).endswith((".", "?"))


def test_a_preset_with_a_setting_that_its_reward_does_not_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[reward]\nrivals = ["qa_utility"]\n[reward.qa_length]\nweight = 0.3\n')
    with pytest.raises(UserError, match="mine.toml: reward.qa_length.weight=0.3 has no effect"):
        load_toml(TrainConfig, path)


def test_rewards_stand_in_the_order_of_their_weights():
    reward = TrainConfig.of(
        {
            "reward.names": ["recall"],
            "reward.rivals": ["qa_utility_length", "qa_utility"],
            "reward.functions": ["mine.py:short"],
            "reward.weights": [1, 2, 0, 4],
        }
    ).reward
    assert reward.all_names == ("recall", "qa_utility_length", "qa_utility", "short")
    assert reward.all_weights == (1.0, 2.0, 0.0, 4.0)
    assert reward.control == "none"
