"""Length control: bounds, modes, NaN, what it does to advantages, 1 device = 8."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from balcap_jax.errors import UserError
from balcap_jax.rl.advantages import gdpo_advantages
from balcap_jax.rl.masking import (
    control_length,
    length_ratio,
    linear_length_penalty,
    mask_by_length,
    out_of_range,
)

NAN = np.nan
# One image, reference of 40 words, captions of rho 0.475, 0.5, 1, 2, 2.025.
LENGTHS = np.array([[19, 20, 40, 80, 81]], np.int32)
REFERENCE = np.array([40], np.int32)
REWARDS = np.array(
    [[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9], [0.3, 0.2, 0.5], [0.6, 0.4, 0.2]]],
    np.float32,
)


def test_bounds_are_inside():
    np.testing.assert_allclose(
        length_ratio(LENGTHS, REFERENCE), [[0.475, 0.5, 1, 2, 2.025]], rtol=1e-6
    )
    np.testing.assert_array_equal(
        out_of_range(LENGTHS, REFERENCE), [[True, False, False, False, True]]
    )


@pytest.mark.parametrize(("mode", "masked"), [("zero", 0.0), ("drop", NAN)])
def test_only_the_indexed_reward_is_masked(mode, masked):
    result = mask_by_length(REWARDS, LENGTHS, REFERENCE, reward_index=2, mode=mode)
    expected = REWARDS.copy()
    expected[0, [0, 4], 2] = masked
    np.testing.assert_array_equal(result, expected)
    first = mask_by_length(REWARDS, LENGTHS, REFERENCE, reward_index=0, mode=mode)
    np.testing.assert_array_equal(first[..., 1:], REWARDS[..., 1:])
    assert np.isnan(first[0, 0, 0]) == np.isnan(masked)


def test_bounds_are_settings():
    # 0.7 and 1.5 of 40 words are 28 and 60; 7 of 10 words is 0.7 itself.
    lengths = np.array([[27, 28, 60, 61], [6, 7, 15, 16]], np.int32)
    outside = out_of_range(lengths, np.array([40, 10], np.int32), lower=0.7, upper=1.5)
    np.testing.assert_array_equal(outside, [[True, False, False, True]] * 2)


def test_a_failed_judge_stays_no_signal_in_mode_zero():
    rewards = REWARDS.copy()
    rewards[0, :, 2] = NAN
    for mode in ("zero", "drop"):
        result = mask_by_length(rewards, LENGTHS, REFERENCE, reward_index=2, mode=mode)
        assert np.all(np.isnan(result[0, :, 2]))
        np.testing.assert_array_equal(result[..., :2], rewards[..., :2])


def test_each_image_has_its_own_reference():
    rewards = np.full((3, 2, 1), 0.5, np.float32)
    lengths = np.full((3, 2), 30, np.int32)
    result = mask_by_length(rewards, lengths, np.array([10, 30, 100], np.int32), reward_index=0)
    # rho 3, 1, 0.3
    np.testing.assert_array_equal(result[..., 0], [[0, 0], [0.5, 0.5], [0, 0]])


def test_empty_caption_and_empty_reference():
    lengths = np.array([[0, 1, 2, 3]], np.int32)
    empty = np.array([0], np.int32)
    # An empty reference counts as one word: 1 and 2 words are in range.
    np.testing.assert_array_equal(out_of_range(lengths, empty), [[True, False, False, True]])
    assert bool(out_of_range(np.zeros((1, 1), np.int32), REFERENCE)[0, 0])


def test_zero_is_a_length_penalty_and_drop_is_not():
    # Equal quality, one caption far too long. Zero: it falls below its group. Drop: no difference.
    rewards = np.full((1, 4, 1), 0.8, np.float32)
    lengths = np.array([[40, 42, 38, 400]], np.int32)

    def advantages(mode):
        masked = mask_by_length(rewards, lengths, REFERENCE, reward_index=0, mode=mode)
        return np.asarray(gdpo_advantages(masked, whiten=False, eps=0.0))[0]

    # 0.8, 0.8, 0.8, 0: mean 0.6, std 0.4 -> 0.5, 0.5, 0.5, -1.5
    np.testing.assert_allclose(advantages("zero"), [0.5, 0.5, 0.5, -1.5], rtol=1e-5)
    np.testing.assert_array_equal(advantages("drop"), np.zeros(4))


def test_a_group_that_is_masked_whole_says_nothing():
    lengths = np.full((1, 5), 400, np.int32)
    for mode in ("zero", "drop"):
        masked = mask_by_length(REWARDS, lengths, REFERENCE, reward_index=2, mode=mode)
        two = gdpo_advantages(REWARDS[..., :2])
        np.testing.assert_allclose(gdpo_advantages(masked), two, atol=1e-6)


def test_linear_penalty_by_hand():
    result = linear_length_penalty(REWARDS, LENGTHS, REFERENCE, reward_index=2, coefficient=0.5)
    # |rho - 1| = .525, .5, 0, 1, 1.025; half of it off .3, .6, .9, .5, .2
    np.testing.assert_allclose(result[0, :, 2], [0.0375, 0.35, 0.9, 0.0, -0.3125], atol=1e-6)
    np.testing.assert_array_equal(result[..., :2], REWARDS[..., :2])
    rewards = np.full_like(REWARDS, NAN)
    assert np.all(np.isnan(linear_length_penalty(rewards, LENGTHS, REFERENCE, reward_index=2)))


def test_control_by_name():
    def control(name):
        return np.asarray(control_length(name, REWARDS, LENGTHS, REFERENCE, reward_index=2))

    np.testing.assert_array_equal(control("none"), REWARDS)
    np.testing.assert_array_equal(
        control("zero"), mask_by_length(REWARDS, LENGTHS, REFERENCE, reward_index=2)
    )
    np.testing.assert_array_equal(
        control("drop"), mask_by_length(REWARDS, LENGTHS, REFERENCE, reward_index=2, mode="drop")
    )
    np.testing.assert_array_equal(
        control("linear"), linear_length_penalty(REWARDS, LENGTHS, REFERENCE, reward_index=2)
    )


@pytest.mark.parametrize("name", ["zero", "drop", "linear"])
def test_eight_devices_equal_one(name):
    generator = np.random.default_rng(0)
    rewards = generator.random((8, 4, 3), dtype=np.float32)
    lengths = generator.integers(0, 100, (8, 4))
    references = generator.integers(20, 60, 8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    arrays = (rewards, lengths.astype(np.int32), references.astype(np.int32))
    sharded = control_length(name, *jax.device_put(arrays, sharding), reward_index=2)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, control_length(name, *arrays, reward_index=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower": 2.0, "upper": 2.0}, "lower=2.0 must be below upper=2.0"),
        ({"lower": 3.0}, "lower=3.0 must be below upper=2.0"),
        ({"lower": NAN}, "must be below"),
        ({"mode": "remove"}, "mode='remove' is unknown"),
        ({"reward_index": 3}, "from 0 to 2"),
        ({"reward_index": -1}, "from 0 to 2"),
    ],
)
def test_errors_name_value_and_remedy(options, message):
    with pytest.raises(UserError, match=message):
        mask_by_length(REWARDS, LENGTHS, REFERENCE, **{"reward_index": 2, **options})


def test_errors_of_the_other_controls():
    with pytest.raises(UserError, match="'mask' is unknown; set it to one of zero, drop, linear"):
        control_length("mask", REWARDS, LENGTHS, REFERENCE, reward_index=2)
    with pytest.raises(UserError, match="coefficient=-1.0"):
        linear_length_penalty(REWARDS, LENGTHS, REFERENCE, reward_index=2, coefficient=-1.0)
