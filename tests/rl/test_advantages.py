"""GDPO, GRPO and the presets: hand-computed cases, TRL's own code, invariants, 1 device = 8."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from balcap_jax.bench import trl_formula
from balcap_jax.errors import UserError
from balcap_jax.rl.advantages import (
    PRESETS,
    gdpo_advantages,
    grpo_advantages,
    preset_advantages,
    reward_statistics,
    rloo_advantages,
)

NAN = np.nan
SHAPE = (6, 8, 3)


def random_rewards(seed: int, *, shape=SHAPE, missing: float = 0.15) -> np.ndarray:
    """Uniform rewards, some without signal; every group keeps at least two signals per reward."""
    generator = np.random.default_rng(seed)
    rewards = generator.random(shape, dtype=np.float32)
    hidden = generator.random(shape) < missing
    hidden[:, :2] = False
    hidden[:, -1] |= generator.random((shape[0], 1)) < missing  # all signals of a caption
    rewards[hidden] = NAN
    return rewards


def gdpo64(rewards, *, weights=None, eps=1e-4, ddof=1) -> np.ndarray:
    """The three lines of the formula, loop by loop, in float64."""
    rewards = np.asarray(rewards, np.float64)
    batch, group, count = rewards.shape
    weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    summed = np.zeros((batch, group))
    for i in range(batch):
        for k in range(count):
            seen = ~np.isnan(rewards[i, :, k])
            values = rewards[i, seen, k]
            if len(values) > 1 and values.max() > values.min():
                z = (values - values.mean()) / (values.std(ddof=ddof) + eps)
                summed[i, seen] += weights[k] * z
    valid = ~np.isnan(rewards).all(axis=-1)
    spread = summed[valid]
    advantages = (summed - spread.mean()) / (spread.std(ddof=ddof) + eps)
    return np.where(valid, advantages, 0.0)


def column(*values) -> np.ndarray:
    """One group of one reward: [1, G, 1]."""
    return np.asarray(values, np.float32)[None, :, None]


# By hand.


def test_gdpo_by_hand():
    # One group, two rewards, ddof 1, eps 0:
    #   R_1 = 1, 2, 3: mean 2, std 1          -> z_1 = -1, 0, 1
    #   R_2 = 0, 4, 2: mean 2, std 2          -> z_2 = -1, 1, 0
    #   S = -2, 1, 1; sum of squares 6, / (3 - 1) = 3 -> std sqrt(3)
    #   A = -2 / 1.7320508, 1 / 1.7320508, 1 / 1.7320508
    rewards = np.array([[[1, 0], [2, 4], [3, 2]]], np.float32)
    np.testing.assert_allclose(
        gdpo_advantages(rewards, eps=0.0), [[-1.1547005, 0.5773503, 0.5773503]], rtol=1e-6
    )
    np.testing.assert_allclose(
        gdpo_advantages(rewards, eps=0, whiten=False), [[-2, 1, 1]], rtol=1e-6
    )
    # weights 1, 3: S = -1 - 3, 0 + 3, 1 + 0
    np.testing.assert_allclose(
        gdpo_advantages(rewards, eps=0.0, weights=[1, 3], whiten=False), [[-4, 3, 1]]
    )


def test_gdpo_ddof_and_eps_by_hand():
    # 0, 2: mean 1, population std 1 (unbiased: sqrt 2); eps 1 -> z = -1 / 2, 1 / 2
    rewards = column(0, 2)
    np.testing.assert_allclose(
        gdpo_advantages(rewards, ddof=0, eps=1.0, whiten=False), [[-0.5, 0.5]]
    )
    # z = -1/sqrt 2, 1/sqrt 2 with ddof 1: S^2 sums to 1, / (2 - 1) -> std 1
    np.testing.assert_allclose(
        gdpo_advantages(rewards, eps=0.0), [[-0.70710678, 0.70710678]], rtol=1e-6
    )


def test_grpo_by_hand():
    # sums 1, 6, 5: mean 4, deviations -3, 2, 1, variance 14 / 2 = 7
    rewards = np.array([[[1, 0], [2, 4], [3, 2]]], np.float32)
    np.testing.assert_allclose(
        grpo_advantages(rewards, eps=0.0), [[-1.1338934, 0.7559289, 0.3779645]], rtol=1e-6
    )
    np.testing.assert_allclose(grpo_advantages(rewards, scale="none"), [[-3, 2, 1]], rtol=1e-6)
    # A second group 5, 5, 5 has no spread; over the batch the sums 1, 6, 5, 5, 5, 5 have
    # mean 4.5 and squares 12.25 + 2.25 + 4 x 0.25 = 15.5, / 5 = 3.1
    both = np.concatenate([rewards, np.full((1, 3, 2), 2.5, np.float32)])
    expected = np.array([[-3, 2, 1], [0, 0, 0]]) / np.sqrt(3.1)
    np.testing.assert_allclose(grpo_advantages(both, scale="batch", eps=0.0), expected, rtol=1e-6)


def test_grpo_whitened_over_the_batch_by_hand():
    # z of 1, 2, 3 is -1, 0, 1; the constant group gives 0. Squares sum to 2, over 6 - 1: the std of
    # the batch is sqrt(0.4), so that the group that says something weighs more.
    rewards = np.float32([[[1], [2], [3]], [[5], [5], [5]]])
    expected = np.array([[-1, 0, 1], [0, 0, 0]]) / np.sqrt(0.4)
    np.testing.assert_allclose(
        grpo_advantages(rewards, scale="both", eps=0.0), expected, rtol=1e-6, atol=1e-7
    )


def test_rloo_by_hand():
    # R = 1, 2, 6: the others' means are 4, 3.5, 1.5 -> A = -3, -1.5, 4.5
    np.testing.assert_allclose(rloo_advantages(column(1, 2, 6)), [[-3, -1.5, 4.5]], rtol=1e-6)
    # Without the third: 1 - 2, 2 - 1; it has 0, and so has one that is alone.
    np.testing.assert_allclose(rloo_advantages(column(1, 2, NAN)), [[-1, 1, 0]], rtol=1e-6)
    assert np.all(np.asarray(rloo_advantages(column(1, NAN, NAN))) == 0.0)
    # A second reward of weight 2, which the first caption lacks: 4 - 8 and 8 - 4 for the others.
    rewards = np.array([[[1, NAN], [2, 4], [6, 8]]], np.float32)
    found = rloo_advantages(rewards, weights=[1, 2])
    np.testing.assert_allclose(found, [[-3, -1.5 - 8, 4.5 + 8]], rtol=1e-6)


def test_gdpo_keeps_apart_what_grpo_merges():
    # The sums are 1.0 for every caption: GRPO has nothing to say. In GDPO the first reward varies
    # as much as the second, so they cancel, until the second is given more weight.
    rewards = np.array([[[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]], np.float32)
    assert np.all(np.abs(grpo_advantages(rewards)) < 1e-2)
    np.testing.assert_allclose(
        gdpo_advantages(rewards, weights=[1, 2], eps=0.0), [[-1, 0, 1]], atol=1e-6
    )


# Constant groups, precision, sparse batches.


def test_constant_groups_are_exactly_zero():
    # A plain float32 sum of equal numbers, divided by their count, often misses them by a bit;
    # with a small eps the others turn that bit into an advantage of up to 0.9.
    constants = np.linspace(0.05, 0.95, 91, dtype=np.float32)
    rewards = np.tile(constants[:, None, None], (1, 5, 1))
    rewards[0] = np.linspace(0, 1, 5)[:, None]  # one informative group
    for eps in (0.0, 1e-8, 1e-6, 1e-4):
        for advantages in (
            gdpo_advantages(rewards, eps=eps),
            grpo_advantages(rewards, eps=eps),
            grpo_advantages(rewards, eps=eps, scale="batch"),
            grpo_advantages(rewards, eps=eps, scale="both"),
            grpo_advantages(rewards, eps=eps, scale="none"),
        ):
            assert np.all(np.asarray(advantages[1:]) == 0.0)
            assert np.ptp(advantages[0]) > 0.5


def test_constant_reward_says_nothing_about_its_group():
    rewards = random_rewards(3, missing=0.0)
    rewards[:, :, 1] = 0.85
    without = np.delete(rewards, 1, axis=2)
    np.testing.assert_allclose(
        gdpo_advantages(rewards, eps=1e-8), gdpo_advantages(without, eps=1e-8), atol=1e-6
    )


def test_a_batch_of_constants_is_zero_everywhere():
    rewards = np.full(SHAPE, 0.85, np.float32)
    assert np.all(gdpo_advantages(rewards, eps=0.0) == 0.0)
    assert np.all(grpo_advantages(rewards, eps=0.0, scale="batch") == 0.0)


@pytest.mark.parametrize("sigma", [1e-3, 3e-4, 1e-4])
def test_variance_is_two_pass(sigma):
    # E[x^2] - E[x]^2 in float32 is below zero for many of these groups.
    noise = np.random.default_rng(0).normal(0.85, sigma, (32, 8, 1)).astype(np.float32)
    moments = np.mean(noise**2, axis=1) - np.mean(noise, axis=1) ** 2
    exact = noise.astype(np.float64).var(axis=1)
    assert np.max(np.abs(moments / exact - 1)) > 1e-2
    np.testing.assert_allclose(gdpo_advantages(noise, eps=1e-8), gdpo64(noise, eps=1e-8), atol=1e-5)


def test_large_offset_keeps_its_digits():
    # 1000 + {0, 1, 2, 3}: the shift by the smallest value is exact.
    rewards = np.stack([column(0, 1, 2, 3)[0], column(3, 1, 0, 5)[0]])
    np.testing.assert_allclose(gdpo_advantages(rewards + 1000), gdpo_advantages(rewards), rtol=1e-6)


@pytest.mark.parametrize(("informative", "rms"), [(16, 2.0), (4, 4.0), (1, 8.0)])
def test_whitening_amplifies_a_sparse_batch(informative, rms):
    # 64 groups, N of them informative: the batch's std shrinks by sqrt(N / 64). GRPO does not.
    rewards = np.full((64, 8, 3), 0.5, np.float32)
    rewards[:informative] = random_rewards(0, shape=(informative, 8, 3), missing=0.0)
    advantages = np.asarray(gdpo_advantages(rewards))[:informative]
    np.testing.assert_allclose(np.sqrt(np.mean(advantages**2)), rms, rtol=2e-3)
    grpo = np.asarray(grpo_advantages(rewards))[:informative]
    # ddof 1: sqrt(7 / 8) = 0.9354
    np.testing.assert_allclose(np.sqrt(np.mean(grpo**2)), 0.9354, rtol=1e-3)
    constant = reward_statistics(rewards).constant
    np.testing.assert_allclose(constant, np.full(3, 1 - informative / 64), rtol=1e-6)


def test_whitening_a_micro_batch_is_another_algorithm():
    rewards = random_rewards(1)

    def in_parts(**options):
        return np.concatenate(
            [gdpo_advantages(rewards[i : i + 2], **options) for i in range(0, len(rewards), 2)]
        )

    assert np.abs(np.asarray(gdpo_advantages(rewards)) - in_parts()).max() > 0.05
    # Without whitening the groups are independent, bit for bit.
    np.testing.assert_array_equal(gdpo_advantages(rewards, whiten=False), in_parts(whiten=False))


def test_batch_is_white():
    rewards = random_rewards(2)
    advantages = np.asarray(gdpo_advantages(rewards))
    valid = ~np.isnan(rewards).all(axis=-1)
    assert abs(advantages[valid].mean()) < 1e-6
    np.testing.assert_allclose(advantages[valid].std(ddof=1), 1.0, rtol=1e-3)


# No signal.


def test_mask_to_zero_and_drop_are_two_algorithms():
    # L = .8 .85 .9 .75 .8 .85 and two captions out of range. As zeros: mean .61875, std .38446,
    # so z = -1.61 for the two, and the others rise to +.34 ... +.73, close together. Dropped:
    # mean .825, std .05244, the two get 0 and the others spread over -1.43 ... +1.43.
    kept = (0.8, 0.85, 0.9, 0.75, 0.8, 0.85)
    zero = np.asarray(gdpo_advantages(column(*kept, 0, 0), whiten=False))[0]
    drop = np.asarray(gdpo_advantages(column(*kept, NAN, NAN), whiten=False))[0]
    np.testing.assert_allclose(zero[6:], [-1.61, -1.61], atol=0.005)
    np.testing.assert_allclose([zero[:6].min(), zero[:6].max()], [0.34, 0.73], atol=0.005)
    assert np.all(drop[6:] == 0.0)
    np.testing.assert_allclose([drop[:6].min(), drop[:6].max()], [-1.43, 1.43], atol=0.005)


def test_dropped_reward_equals_its_removal_from_the_group():
    rewards = random_rewards(4, missing=0.0)
    rewards[:, 5, 2] = NAN
    dropped = np.asarray(gdpo_advantages(rewards, whiten=False))
    alone = np.asarray(gdpo_advantages(np.delete(rewards, 5, axis=1), whiten=False))
    two = np.asarray(gdpo_advantages(rewards[:, :, :2], whiten=False))
    # The others: as if the caption were not there, in that reward only.
    third = gdpo_advantages(np.delete(rewards, 5, axis=1)[:, :, 2:], whiten=False)
    np.testing.assert_allclose(
        np.delete(dropped, 5, axis=1), np.delete(two, 5, axis=1) + third, atol=1e-5
    )
    # The caption itself: as if the reward did not exist.
    np.testing.assert_allclose(dropped[:, 5], two[:, 5], atol=1e-6)
    # Dropped in all rewards: as if the caption did not exist at all.
    rewards[:, 5] = NAN
    gone = np.asarray(gdpo_advantages(rewards, whiten=False))
    np.testing.assert_allclose(np.delete(gone, 5, axis=1), alone, atol=1e-6)
    assert np.all(gone[:, 5] == 0.0)


@pytest.mark.parametrize("advantages", [gdpo_advantages, grpo_advantages, rloo_advantages])
def test_caption_without_signal_enters_no_statistic(advantages):
    rewards = random_rewards(5, missing=0.0)
    rewards[:, -1] = NAN
    result = np.asarray(advantages(rewards))
    assert np.all(result[:, -1] == 0.0)
    np.testing.assert_allclose(result[:, :-1], advantages(rewards[:, :-1]), atol=1e-5)
    # A whole image that the judge failed on: the batch is as without it.
    rewards[2] = NAN
    result = np.asarray(advantages(rewards))
    assert np.all(result[2] == 0.0)
    np.testing.assert_allclose(
        np.delete(result, 2, axis=0), advantages(np.delete(rewards, 2, axis=0)), atol=1e-5
    )


@pytest.mark.parametrize("advantages", [gdpo_advantages, grpo_advantages])
@pytest.mark.parametrize("value", [NAN, np.inf, -np.inf, 3e38, -3e38, 1e-45])
def test_result_is_finite(advantages, value):
    rewards = random_rewards(6)
    rewards[0] = value
    rewards[1, 0, 0] = value
    rewards[2, :, 1] = value
    rewards[3, ::2] = value
    for eps in (0.0, 1e-4):
        assert np.all(np.isfinite(advantages(rewards, eps=eps)))
    everywhere = np.full(SHAPE, value, np.float32)
    assert np.all(np.asarray(advantages(everywhere)) == 0.0)


def test_infinite_reward_is_no_signal():
    rewards = random_rewards(7)
    infinite = np.where(np.isnan(rewards), np.inf, rewards)
    np.testing.assert_array_equal(gdpo_advantages(infinite), gdpo_advantages(rewards))


def test_lone_signal_of_a_group_is_zero():
    # One caption of the group has the reward: nothing to compare it with.
    assert np.all(np.asarray(gdpo_advantages(column(0.3, NAN, NAN))) == 0.0)
    assert np.all(np.asarray(grpo_advantages(column(0.3, NAN, NAN))) == 0.0)
    assert np.all(np.asarray(gdpo_advantages(np.ones((1, 1, 3), np.float32))) == 0.0)


# Invariants.


def permuted(rewards, seed):
    order = np.random.default_rng(seed).permuted(
        np.tile(np.arange(rewards.shape[1]), (len(rewards), 1)), axis=1
    )
    return order, np.take_along_axis(rewards, order[..., None], axis=1)


@pytest.mark.parametrize("advantages", [gdpo_advantages, grpo_advantages, rloo_advantages])
def test_permuting_a_group_permutes_its_advantages(advantages):
    rewards = random_rewards(8)
    order, shuffled = permuted(rewards, 0)
    np.testing.assert_allclose(
        advantages(shuffled), np.take_along_axis(advantages(rewards), order, axis=1), atol=2e-6
    )


@pytest.mark.parametrize("reward", [0, 1, 2])
def test_adding_a_constant_to_a_reward_changes_nothing(reward):
    rewards = random_rewards(9)
    shifted = rewards.copy()
    shifted[..., reward] += 0.5
    np.testing.assert_allclose(gdpo_advantages(shifted), gdpo_advantages(rewards), atol=5e-6)


@pytest.mark.parametrize("factor", [0.25, 3.0, 100.0])
def test_scaling_a_reward_changes_eps_terms_only(factor):
    rewards = random_rewards(10)
    scaled = rewards.copy()
    scaled[..., 1] *= factor
    np.testing.assert_allclose(
        gdpo_advantages(scaled, eps=0.0), gdpo_advantages(rewards, eps=0.0), atol=5e-6
    )
    # eps 1e-4 against a std of about 0.3, or of 0.07 after the division by 4
    np.testing.assert_allclose(gdpo_advantages(scaled), gdpo_advantages(rewards), atol=5e-3)


def test_scaling_all_weights_changes_nothing_once_white():
    rewards = random_rewards(11)
    np.testing.assert_allclose(
        gdpo_advantages(rewards, weights=[2, 4, 6], eps=0.0),
        gdpo_advantages(rewards, weights=(1.0, 2.0, 3.0), eps=0.0),
        atol=5e-6,
    )


def test_zero_weight_equals_no_such_reward():
    rewards = random_rewards(12, missing=0.0)
    np.testing.assert_allclose(
        gdpo_advantages(rewards, weights=[1.0, 0.0, 1.0]),
        gdpo_advantages(np.delete(rewards, 1, axis=2)),
        atol=2e-6,
    )


@pytest.mark.parametrize("group", [2, 3, 7, 13])
def test_every_group_size(group):
    # The reduction over the group folds halves: odd sizes must lose nobody.
    rewards = random_rewards(13, shape=(4, group, 2), missing=0.2)
    np.testing.assert_allclose(gdpo_advantages(rewards), gdpo64(rewards), atol=1e-5)


def test_float32_out_for_any_float_in():
    rewards = random_rewards(14)
    for dtype in (np.float64, jnp.bfloat16):
        result = gdpo_advantages(rewards.astype(dtype))
        assert result.dtype == jnp.float32
        rounded = rewards.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(result, gdpo_advantages(rounded))


# Devices and jit.


@pytest.mark.parametrize(
    "advantages",
    [
        gdpo_advantages,
        lambda r: grpo_advantages(r, scale="batch"),
        lambda r: preset_advantages("nemo", r),
    ],
    ids=["gdpo", "grpo", "nemo"],
)
def test_eight_devices_equal_one(advantages):
    rewards = random_rewards(15, shape=(16, 8, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put(rewards, sharding)
    assert len(sharded.addressable_shards) == 8
    assert sharded.addressable_shards[0].data.shape == (2, 8, 3)
    run = jax.jit(advantages, in_shardings=sharding, out_shardings=sharding)
    np.testing.assert_allclose(run(sharded), advantages(rewards), atol=1e-6)


def test_group_statistics_do_not_depend_on_devices():
    # Before whitening nothing crosses a device; machines differ in the order of a group's sum.
    rewards = random_rewards(16, shape=(16, 8, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(rewards, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(
        gdpo_advantages(sharded, whiten=False), gdpo_advantages(rewards, whiten=False), atol=1e-6
    )


def test_inside_an_outer_jit_with_traced_weights():
    rewards = random_rewards(17)
    traced = jax.jit(lambda r, w: gdpo_advantages(r, weights=w))
    np.testing.assert_allclose(
        traced(rewards, jnp.array([1.0, 2.0, 3.0])),
        gdpo_advantages(rewards, weights=[1, 2, 3]),
        atol=1e-6,
    )


def test_import_touches_no_device():
    code = (
        "import balcap_jax.rl.advantages, balcap_jax.rl.masking, balcap_jax.rl.losses\n"
        "from jax._src import xla_bridge\n"
        "import sys\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# TRL's own code.

needs_trl = pytest.mark.skipif(
    not trl_formula.installed(), reason="needs the test extra: pip install 'balcap_jax[test]'"
)
GOLDEN = np.load(__file__.rsplit("/", 2)[0] + "/golden/trl_advantages.npz")


def test_gdpo_equals_trl_stored():
    # 1,000 arrays of many shapes with NaN; answers by TRL's code, made by golden/make_trl.py.
    worst = 0.0
    for group in (2, 5, 8):
        rewards, expected = GOLDEN[f"rewards_{group}"], GOLDEN[f"gdpo_{group}"]
        ours = np.asarray(jax.vmap(gdpo_advantages)(rewards))
        worst = max(worst, np.abs(ours - expected).max())
    assert worst < 1e-5, worst


def test_grpo_equals_trl_stored():
    for group in (2, 5, 8):
        rewards, expected = GOLDEN[f"rewards_{group}"], GOLDEN[f"grpo_{group}"]
        ours = np.asarray(jax.vmap(grpo_advantages)(rewards))
        # One caption of a pair may lack rewards; sums close together amplify float32 rounding.
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)


def test_rloo_equals_trl_stored():
    for group in (2, 5, 8):
        rewards, expected = GOLDEN[f"rewards_{group}"], GOLDEN[f"rloo_{group}"]
        rewards = np.where(np.isnan(rewards).any(axis=-1, keepdims=True), NAN, rewards)
        ours = np.asarray(jax.vmap(rloo_advantages)(np.float32(rewards)))
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.torch
@needs_trl
def test_rloo_equals_trl_live():
    import torch

    formula = trl_formula.load_rloo(weights=(0.5, 1.0, 2.0))
    for seed in range(20):
        rewards = random_rewards(seed, missing=0.0)
        rewards[seed % 6, :2] = NAN  # two captions without any signal
        ours = rloo_advantages(rewards, weights=(0.5, 1.0, 2.0))
        np.testing.assert_allclose(ours, formula(torch.from_numpy(rewards)), atol=1e-5)


@pytest.mark.torch
@needs_trl
@pytest.mark.parametrize("group", [5, 8])
def test_gdpo_equals_trl_live(group):
    import torch

    weights = (0.5, 1.0, 2.0)
    formula = trl_formula.load("normalize_then_sum", weights=weights)
    for seed in range(20):
        rewards = random_rewards(seed, shape=(6, group, 3), missing=0.2)
        # Of rewards 1e-3 apart TRL's float32 mean loses digits that ours keeps, hence float64.
        expected = formula(torch.from_numpy(rewards.astype(np.float64))).numpy()
        ours = np.asarray(gdpo_advantages(rewards, weights=weights))
        assert np.abs(ours - expected).max() < 1e-5
        np.testing.assert_allclose(ours, formula(torch.from_numpy(rewards)), atol=2e-4)


@pytest.mark.torch
@needs_trl
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_grpo_equals_trl_live(scale):
    import torch

    formula = trl_formula.load("sum_then_normalize", weights=(0.5, 1.0, 2.0), scale=scale)
    for seed in range(20):
        rewards = random_rewards(seed)
        ours = grpo_advantages(rewards, weights=(0.5, 1.0, 2.0), scale=scale)
        np.testing.assert_allclose(ours, formula(torch.from_numpy(rewards)), atol=1e-5)


@pytest.mark.torch
@needs_trl
def test_constant_groups_where_trl_rounds():
    # In float32 TRL makes something of a constant group; in float64 it agrees with our zero.
    import torch

    formula = trl_formula.load("normalize_then_sum", weights=(1.0, 1.0, 1.0))
    rewards = random_rewards(18, shape=(40, 5, 3), missing=0.0)
    rewards[1:] = np.linspace(0.05, 0.95, 39, dtype=np.float32)[:, None, None]
    ours = np.asarray(gdpo_advantages(rewards))
    single = formula(torch.from_numpy(rewards)).numpy()
    double = formula(torch.from_numpy(rewards.astype(np.float64))).numpy()
    assert np.all(ours[1:] == 0.0)
    assert np.abs(single[1:]).max() > 1e-5
    np.testing.assert_allclose(ours, double, atol=1e-5)


# Presets.


def reference_preset(name, rewards, weights, token_counts) -> np.ndarray:
    """The table of published conventions in float64, caption by caption. No missing rewards."""
    rewards = np.asarray(rewards, np.float64)
    eps = {"trl": 1e-4, "nvlabs": 1e-4, "verl": 1e-6, "nemo": 1e-6, "swift": 1e-8}[name]
    summed = np.zeros(rewards.shape[:2])
    for (i, j), _ in np.ndenumerate(summed):
        for k, weight in enumerate(weights):
            values = rewards[i, :, k]
            seen = np.delete(values, j) if name == "nemo" else values
            std = seen.std(ddof=1) if len(seen) > 1 and np.ptp(seen) > 0 else 0.0
            z = values[j] - seen.mean()
            summed[i, j] += weight * (z / (std + eps) if std > 0 or name != "nemo" else z)
    flat = summed.reshape(-1)
    if name == "verl":
        tokens = np.repeat(flat, token_counts.reshape(-1))
        return (summed - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    final = {"trl": 1e-4, "nvlabs": 1e-4, "nemo": 0.0, "swift": 1e-8}[name]
    return (summed - flat.mean()) / (flat.std(ddof=1) + final)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_equal_their_formulas(name):
    rewards = random_rewards(19, missing=0.0)
    tokens = np.random.default_rng(0).integers(5, 60, SHAPE[:2])
    weights = np.array([0.5, 1.0, 2.0])
    ours = preset_advantages(name, rewards, weights=weights, token_counts=tokens)
    np.testing.assert_allclose(ours, reference_preset(name, rewards, weights, tokens), atol=1e-5)


def test_nvlabs_scores_a_missing_reward_zero_and_others_do_not():
    rewards = random_rewards(20)
    zeroed = np.nan_to_num(rewards)
    np.testing.assert_allclose(
        preset_advantages("nvlabs", rewards), gdpo_advantages(zeroed), atol=2e-6
    )
    assert np.abs(np.asarray(gdpo_advantages(rewards)) - gdpo_advantages(zeroed)).max() > 0.1
    # The caption that nobody judged is pushed down, hard.
    unjudged = np.isnan(rewards).all(axis=-1)
    assert np.all(np.asarray(preset_advantages("nvlabs", rewards))[unjudged] < -0.5)


def test_verl_weighs_captions_by_their_tokens():
    rewards = random_rewards(21, missing=0.0)
    alike = np.full(SHAPE[:2], 40)
    # Equal lengths: only eps differs (and n against 40 n in the unbiased variance, 1 %).
    np.testing.assert_allclose(
        preset_advantages("verl", rewards, token_counts=alike), gdpo_advantages(rewards), atol=0.05
    )
    # Long captions that do well pull the mean up: the mean over captions is no longer 0.
    longer = np.where(np.asarray(gdpo_advantages(rewards)) > 0, 80, 20)
    advantages = np.asarray(preset_advantages("verl", rewards, token_counts=longer))
    assert advantages.mean() < -0.2
    # A group of one: verl's mean 0 and std 1 keep the raw score; here 1, 3 -> -1, 1 over sqrt 2.
    single = np.array([[[1.0]], [[3.0]]], np.float32)
    ones = np.ones((2, 1), np.int32)
    np.testing.assert_allclose(
        preset_advantages("verl", single, token_counts=ones),
        [[-0.70710678], [0.70710678]],
        rtol=1e-5,
    )


def test_nemo_leave_one_out_flips_signs():
    # The std of the others shrinks when the caption itself is the outlier: captions trade places.
    rewards = random_rewards(22, shape=(64, 8, 3), missing=0.0)
    mean = np.asarray(gdpo_advantages(rewards))
    others = np.asarray(preset_advantages("nemo", rewards))
    correlation = np.corrcoef(mean.ravel(), others.ravel())[0, 1]
    flips = np.mean(np.sign(mean) != np.sign(others))
    assert 0.5 < correlation < 0.99
    assert 0.01 < flips < 0.25


def test_nemo_one_against_equal_others_by_hand():
    # 0.35 seven times and 0: the others of the 0 are all equal, std exactly 0, so it keeps its
    # raw difference -0.35. Each 0.35 sees six of them and the 0: mean 0.3, variance
    # (6 x 0.05^2 + 0.3^2) / 6 = 0.0175, std 0.13228757, z = 0.05 / 0.132289 = 0.3779616.
    rewards = column(*[0.35] * 7, 0.0)
    z = np.array([0.3779616] * 7 + [-0.35])
    expected = (z - z.mean()) / z.std(ddof=1)
    np.testing.assert_allclose(preset_advantages("nemo", rewards)[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_finite_and_zero_on_constants(name):
    tokens = np.full(SHAPE[:2], 7)
    constant = np.full(SHAPE, 0.85, np.float32)
    assert np.all(np.asarray(preset_advantages(name, constant, token_counts=tokens)) == 0.0)
    rewards = random_rewards(23)
    rewards[0] = NAN
    rewards[1, 1:] = NAN
    assert np.all(np.isfinite(preset_advantages(name, rewards, token_counts=tokens)))


def test_nemo_pair_keeps_its_difference():
    # One other caption has no std: the difference stays as it is. .2 and .6 -> -.4, .4; the batch
    # std is .4 sqrt 2, so A = -1 / sqrt 2, 1 / sqrt 2.
    np.testing.assert_allclose(
        preset_advantages("nemo", column(0.2, 0.6)), [[-0.70710678, 0.70710678]], rtol=1e-5
    )


# Statistics and errors.


def test_reward_statistics_by_hand():
    rewards = np.array(
        [
            [[0.0, 0.5, NAN], [1.0, 0.5, NAN]],
            [[0.5, NAN, NAN], [0.5, 0.25, NAN]],
        ],
        np.float32,
    )
    statistics = reward_statistics(rewards)
    # First: 0, 1, .5, .5: mean .5, population variance (.25 + .25) / 4 = .125.
    # Second: .5, .5, .25: mean 1.25 / 3, variance 2/9 x .0625. Third: nothing.
    np.testing.assert_allclose(statistics.mean, [0.5, 1.25 / 3, NAN], rtol=1e-6)
    np.testing.assert_allclose(statistics.std, [0.125**0.5, 0.25 * (2 / 9) ** 0.5, NAN], rtol=1e-5)
    np.testing.assert_allclose(statistics.missing, [0.0, 0.25, 1.0], rtol=1e-6)
    np.testing.assert_allclose(statistics.constant, [0.5, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: gdpo_advantages(r, weights=[1, 2]), "3 rewards"),
        (lambda r: gdpo_advantages(r, weights=[1, 2, NAN]), "finite"),
        (lambda r: gdpo_advantages(r, eps=-1.0), "eps=-1.0"),
        (lambda r: gdpo_advantages(r, ddof=2), "ddof=2"),
        (lambda r: grpo_advantages(r, scale="global"), "scale='global' is unknown"),
        (lambda r: preset_advantages("rloo", r), "set it to one of trl"),
        (lambda r: preset_advantages("verl", r), "pass token_counts"),
    ],
)
def test_errors_name_value_and_remedy(call, message):
    with pytest.raises(UserError, match=message):
        call(random_rewards(0))
