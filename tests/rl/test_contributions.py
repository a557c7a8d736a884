"""What each reward adds to the advantages: by hand, and beside the advantages themselves."""

import numpy as np
import pytest

from balcap_jax.rl.advantages import (
    PRESETS,
    gdpo_advantages,
    grpo_advantages,
    preset_advantages,
    rloo_advantages,
)
from balcap_jax.rl.contributions import balance, contributions, group_spread

NAN = np.nan
WEIGHTS = np.float32([1.0, 2.0, 0.5])


def random_rewards(seed=0):
    generator = np.random.default_rng(seed)
    rewards = generator.random((5, 6, 3), dtype=np.float32) * np.float32([1.0, 0.1, 3.0])
    rewards[generator.random(rewards.shape) < 0.1] = NAN
    rewards[0, 0] = NAN  # a caption without any signal
    return rewards


def test_shares_by_hand():
    # One group of two captions. Under GRPO each reward adds its distance from its mean: 0.4 and
    # 0.1, so 4/5 and 1/5; under GDPO both are +-1/sqrt(2), whatever their scale.
    rewards = np.float32([[[0.9, 0.5], [0.1, 0.7]]])
    ones = np.ones(2, np.float32)
    np.testing.assert_allclose(
        balance(rewards, weights=ones, advantage="grpo"), [0.8, 0.2], rtol=1e-5
    )
    np.testing.assert_allclose(
        balance(rewards, weights=ones, advantage="gdpo", eps=0.0), [0.5, 0.5], rtol=1e-5
    )
    # Weight 8 on the second: 0.4 and 8 x 0.1.
    weights = np.float32([1, 8])
    np.testing.assert_allclose(
        balance(rewards, weights=weights, advantage="grpo"), [1 / 3, 2 / 3], rtol=1e-5
    )
    # The sum of both is 1.4 and 0.8: std 0.3 sqrt(2), so c = +-0.4 and -+0.1 over 0.424264.
    parts = contributions(rewards, weights=ones, advantage="grpo", eps=0.0)
    np.testing.assert_allclose(parts[0, 0], [0.942809, -0.235702], rtol=1e-5)


def test_a_group_counts_by_what_it_adds():
    # GRPO divides by the group's std: the flat group 2 weighs as much as group 1. Without the
    # division its parts are a tenth. Sums by hand: reward 0 adds 2 x 0.4 and 0, reward 1 adds 0 and
    # 2 x 0.04; of the group's std 0.4 sqrt(2) and 0.04 sqrt(2) both groups give sqrt(2).
    rewards = np.float32([[[0.9, 0.5], [0.1, 0.5]], [[0.3, 0.54], [0.3, 0.46]]])
    made_of = {"weights": np.ones(2, np.float32), "advantage": "grpo", "eps": 0.0}
    np.testing.assert_allclose(balance(rewards, **made_of), [0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(
        balance(rewards, scale="none", **made_of), [10 / 11, 1 / 11], rtol=1e-5
    )


@pytest.mark.parametrize("scale", ["group", "batch", "both", "none"])
def test_contributions_sum_to_grpo(scale):
    rewards = random_rewards()
    made_of = {"weights": WEIGHTS, "eps": 1e-4, "ddof": 1, "scale": scale}
    parts = np.asarray(contributions(rewards, advantage="grpo", **made_of)).sum(axis=-1)
    advantages = np.asarray(grpo_advantages(rewards, **made_of))
    common = advantages[1, 1] / parts[1, 1]
    np.testing.assert_allclose(advantages, parts * common, rtol=1e-4, atol=1e-6)
    assert (advantages[0, 0], parts[0, 0]) == (0, 0)


@pytest.mark.parametrize("name", ["gdpo", *PRESETS])
def test_contributions_sum_to_gdpo_and_its_presets(name):
    rewards = random_rewards(1)
    parts = np.asarray(contributions(rewards, weights=WEIGHTS, advantage=name)).sum(axis=-1)
    if name == "gdpo":
        advantages = gdpo_advantages(rewards, weights=WEIGHTS)
    else:
        counts = np.random.default_rng(2).integers(1, 9, rewards.shape[:2])
        advantages = preset_advantages(name, rewards, weights=WEIGHTS, token_counts=counts)
    has = ~np.isnan(rewards).all(axis=-1)
    centred = parts[has] - parts[has].mean()  # presets may centre the batch by other means
    found = np.asarray(advantages)[has]
    found = found - found.mean()
    np.testing.assert_allclose(found / found.std(), centred / centred.std(), rtol=1e-3, atol=1e-4)


def test_contributions_sum_to_rloo():
    rewards = random_rewards()
    parts = np.asarray(contributions(rewards, weights=WEIGHTS, advantage="rloo")).sum(axis=-1)
    np.testing.assert_allclose(rloo_advantages(rewards, weights=WEIGHTS), parts, atol=1e-6)


def test_nothing_to_share_is_nan():
    constant = np.full((2, 3, 2), 0.3, np.float32)
    found = balance(constant, weights=np.ones(2, np.float32), advantage="gdpo")
    assert np.isnan(np.asarray(found)).all()


def test_group_spread_by_hand():
    # Reward 0: groups {0.2, 0.4} and {0.5, 0.5}: unbiased std 0.141421 and 0, mean 0.0707107.
    # Reward 1: one group of one signal, one of {0.1, 0.3, NaN}: the latter alone counts.
    first = [[0.2, 0.9], [0.4, NAN], [NAN, NAN]]
    second = [[0.5, 0.1], [0.5, 0.3], [0.5, NAN]]
    rewards = np.float32([first, second])
    np.testing.assert_allclose(group_spread(rewards), [0.0707107, 0.141421], rtol=1e-5)
    np.testing.assert_allclose(group_spread(rewards, ddof=0), [0.05, 0.1], rtol=1e-5)
    lone = np.asarray(group_spread(np.full((1, 2, 1), NAN, np.float32)))
    assert np.isnan(lone).all()
