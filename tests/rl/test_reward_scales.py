"""Weights 1 / spread: of the first steps, of the last ones, and over a resume."""

import json

import numpy as np
import pytest

from balcap_jax.rl.reward_scales import RewardScales

SPREADS = np.float32([[0.1, 0.2], [0.3, 0.2], [0.5, 0.8]])
GIVEN = (1.0, 2.0)


def weights(scales, spreads=SPREADS):
    return [scales.weights(GIVEN, spread).tolist() for spread in spreads]


def test_given_weights_stay():
    assert weights(RewardScales("given", steps=1)) == [[1.0, 2.0]] * 3


def test_fixed_weights_are_those_of_the_first_steps():
    # 1 / 0.1 and 2 / 0.2; then means over two steps: 0.2 and 0.2, which stay.
    expected = [[10, 10], [5, 10], [5, 10]]
    np.testing.assert_allclose(weights(RewardScales("fixed", steps=2)), expected, rtol=1e-6)


def test_running_weights_are_those_of_the_last_steps():
    # The last two: 0.4 and 0.5.
    expected = [[10, 10], [5, 10], [2.5, 4]]
    np.testing.assert_allclose(weights(RewardScales("running", steps=2)), expected, rtol=1e-6)


def test_a_step_without_spread_does_not_count_and_a_constant_reward_keeps_its_weight():
    scales = RewardScales("running", steps=3)
    spreads = np.float32([[np.nan, 0.0], [0.5, 0.0]])
    assert weights(scales, spreads) == [[1.0, 2.0], [2.0, 2.0]]


@pytest.mark.parametrize("mode", ["fixed", "running"])
def test_a_resumed_run_weighs_as_if_it_had_never_stopped(mode):
    whole = RewardScales(mode, steps=2)
    generator = np.random.default_rng(0)
    spreads = generator.random((6, 2)).astype(np.float32)
    spreads[1, 0] = np.nan
    expected = weights(whole, spreads)
    first = RewardScales(mode, steps=2)
    weights(first, spreads[:3])
    again = RewardScales(mode, steps=2)
    again.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert weights(again, spreads[3:]) == expected[3:]
