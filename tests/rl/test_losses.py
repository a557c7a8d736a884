"""The policy objective by hand, masks, micro-batches, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from balcap_jax.errors import UserError
from balcap_jax.rl import losses
from balcap_jax.rl.losses import mean_of, token_weights

# One program each: outside of jit every operation of a shape is one.
kl_k3 = jax.jit(losses.kl_k3)
policy_loss = jax.jit(
    losses.policy_loss,
    static_argnames=(
        "clip_low",
        "clip_high",
        "normaliser",
        "max_length",
        "kl_coefficient",
        "importance_cap",
    ),
)
B, G, T = 4, 3, 5


def weighted(start, old):
    """Settings with importance weights, some of them cut."""
    assert (start - old).max() > np.log(1.2)
    return {"start_logprobs": start, "importance_cap": 1.2}


def objective(loss):
    return mean_of(loss.total, loss.count)


def batch(seed: int = 0):
    """logprobs, old_logprobs, advantages, mask, reference_logprobs of captions of many lengths."""
    generator = np.random.default_rng(seed)
    old = -generator.random((B, G, T), dtype=np.float32) * 3
    logprobs = old + generator.normal(0, 0.3, old.shape).astype(np.float32)
    reference = old + generator.normal(0, 0.3, old.shape).astype(np.float32)
    lengths = generator.integers(1, T + 1, (B, G))
    mask = np.arange(T) < lengths[..., None]
    advantages = generator.normal(size=(B, G)).astype(np.float32)
    return tuple(map(jnp.asarray, (logprobs, old, advantages, mask, reference)))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # A > 0: -min(r, clip(r)); clipped from above only, at 1.2
        (0.5, 1.0, -0.5, -0.5),
        (1.0, 1.0, -1.0, -1.0),
        (1.5, 1.0, -1.2, 0.0),
        # A < 0: -min(-r, -clip(r)) = max(r, clip(r)); clipped from below only, at 0.8
        (0.5, -1.0, 0.8, 0.0),
        (1.0, -1.0, 1.0, 1.0),
        (1.5, -1.0, 1.5, 1.5),
        # Advantage 0: nothing to learn.
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, slope):
    old = jnp.full((1, 1), -2.0)
    mask = jnp.ones((1, 1), bool)

    def value(logprobs):
        return policy_loss(logprobs, old, jnp.array([advantage]), mask).total

    # d r / d logprob = r, so the slope is -A r where it is not clipped, else 0.
    total, gradient = jax.value_and_grad(value)(old + np.log(ratio).astype(np.float32))
    np.testing.assert_allclose(total, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], slope, rtol=1e-6)


def test_bounds_can_differ_and_are_counted():
    ratios = jnp.array([[0.5, 0.75, 1.0, 1.25, 1.5]])
    old = jnp.zeros((1, 5))
    mask = jnp.ones((1, 5), bool)

    def loss(advantage):
        return policy_loss(
            jnp.log(ratios), old, jnp.array([advantage]), mask, clip_low=0.3, clip_high=0.28
        )

    # A = 1: .5 + .75 + 1 + 1.25 + 1.28; A = -1: .7 + .75 + 1 + 1.25 + 1.5
    np.testing.assert_allclose(loss(1.0).total, -4.78, rtol=1e-6)
    np.testing.assert_allclose(loss(-1.0).total, 5.2, rtol=1e-6)
    assert (loss(1.0).clipped_low, loss(1.0).clipped_high) == (0.0, 1.0)
    assert (loss(-1.0).clipped_low, loss(-1.0).clipped_high) == (1.0, 0.0)
    assert loss(1.0).tokens == 5.0


def test_normalisers_by_hand():
    # Two captions of 1 and 3 tokens, ratio 1: each token loses -A.
    mask = jnp.array([[True, False, False], [True, True, True]])
    zeros = jnp.zeros((2, 3))
    advantages = jnp.array([2.0, -1.0])

    def loss(normaliser):
        return policy_loss(zeros, zeros, advantages, mask, normaliser=normaliser, max_length=8)

    # dapo: (-2 + 3 x 1) / 4 tokens; grpo: (-2 + 1) / 2 captions; dr_grpo: (-2 + 3) / (2 x 8)
    np.testing.assert_allclose(objective(loss("dapo")), 1 / 4, rtol=1e-6)
    np.testing.assert_allclose(objective(loss("grpo")), -1 / 2, rtol=1e-6)
    np.testing.assert_allclose(objective(loss("dr_grpo")), 1 / 16, rtol=1e-6)


def test_kl_k3_by_hand():
    # d = ref - policy = log 2: 2 - 1 - log 2 = 0.30685282; d = 0: 0; d = -log 2: 0.5 - 1 + log 2
    policy = jnp.zeros((1, 3))
    reference = jnp.log(jnp.array([[2.0, 1.0, 0.5]]))
    np.testing.assert_allclose(kl_k3(policy, reference), [[0.30685282, 0.0, 0.19314718]], rtol=1e-6)


def test_kl_k3_keeps_small_differences():
    # exp(d) - 1 - d = d^2 / 2 for small d; exp(1e-3) - 1 in float32 has 4 digits left.
    difference = jnp.full((1, 1), 1e-2)
    np.testing.assert_allclose(
        kl_k3(jnp.zeros((1, 1)), difference), 0.5e-4 * (1 + 1e-2 / 3), rtol=1e-4
    )


def test_kl_is_unbiased():
    # Mean of k3 over samples of the policy is the divergence.
    policy = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    reference = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    exact = jnp.sum(jnp.exp(policy) * (policy - reference))
    weighted = jnp.sum(jnp.exp(policy) * kl_k3(policy[None], reference[None])[0])
    np.testing.assert_allclose(weighted, exact, rtol=1e-5)


def test_kl_adds_to_the_loss_and_is_reported():
    logprobs, old, advantages, mask, reference = batch()
    without = policy_loss(logprobs, old, advantages, mask, reference_logprobs=reference)
    penalised = policy_loss(
        logprobs, old, advantages, mask, reference_logprobs=reference, kl_coefficient=0.1
    )
    kl = jnp.sum(jnp.where(mask, kl_k3(logprobs, reference), 0.0))
    np.testing.assert_allclose(without.kl, kl, rtol=1e-6)
    np.testing.assert_allclose(penalised.total - without.total, 0.1 * kl, rtol=1e-4)
    plain = policy_loss(logprobs, old, advantages, mask)
    assert plain.kl == 0.0
    np.testing.assert_allclose(plain.total, without.total, rtol=1e-6)
    drift = jnp.sum(jnp.where(mask, kl_k3(old, logprobs), 0.0))
    np.testing.assert_allclose(plain.drift, drift, rtol=1e-6)


@pytest.mark.parametrize("normaliser", ["dapo", "grpo", "dr_grpo"])
def test_masking_equals_dropping(normaliser):
    logprobs, old, advantages, mask, reference = batch()
    valid = jnp.asarray(np.random.default_rng(1).random((B, G)) < 0.6)
    loss = policy_loss(
        logprobs,
        old,
        advantages,
        mask,
        valid=valid,
        normaliser=normaliser,
        max_length=T,
        reference_logprobs=reference,
        kl_coefficient=0.1,
        **weighted(reference, old),
    )
    assert loss.truncated > 0
    kept = [x[valid] for x in (logprobs, old, advantages, mask, reference)]
    alone = policy_loss(
        *kept[:4],
        normaliser=normaliser,
        max_length=T,
        reference_logprobs=kept[4],
        kl_coefficient=0.1,
        start_logprobs=kept[4],
        importance_cap=1.2,
    )
    for name, one, other in zip(loss._fields, loss, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("normaliser", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_nothing(normaliser, parts):
    logprobs, old, advantages, mask, reference = batch()
    valid = jnp.ones((B, G), bool).at[0].set(False)  # one micro-batch of 4 has no signal at all

    def loss(logprobs, rows):
        return policy_loss(
            logprobs,
            old[rows],
            advantages[rows],
            mask[rows],
            valid=valid[rows],
            normaliser=normaliser,
            max_length=T,
            reference_logprobs=reference[rows],
            kl_coefficient=0.05,
            start_logprobs=reference[rows],
            importance_cap=1.2,
        )

    def total(logprobs, rows):
        result = loss(logprobs, rows)
        return result.total, result

    everything = slice(0, B)
    gradient, whole = jax.grad(total, has_aux=True)(logprobs, everything)
    rows = [slice(i, i + B // parts) for i in range(0, B, B // parts)]
    pieces = [jax.grad(total, has_aux=True)(logprobs[r], r) for r in rows]
    summed = jax.tree.map(lambda *x: sum(x), *[piece for _, piece in pieces])
    for name, one, other in zip(whole._fields, whole, summed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        gradient / whole.count,
        jnp.concatenate([g for g, _ in pieces]) / summed.count,
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_masked_entries_may_hold_anything(garbage):
    logprobs, old, advantages, mask, reference = batch()
    valid = jnp.ones((B, G), bool).at[1, 1].set(False)
    live = mask & valid[..., None]
    advantages = advantages.at[1, 1].set(garbage)

    def value(logprobs, old, reference):
        return policy_loss(
            logprobs,
            old,
            advantages,
            mask,
            valid=valid,
            reference_logprobs=reference,
            kl_coefficient=0.1,
            start_logprobs=reference,
            importance_cap=1.2,
        ).total

    spoiled = [jnp.where(live, x, garbage) for x in (logprobs, old, reference)]
    total, gradient = jax.value_and_grad(value)(*spoiled)
    clean, expected = jax.value_and_grad(value)(logprobs, old, reference)
    np.testing.assert_allclose(total, clean, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert np.all(np.asarray(gradient)[~np.asarray(live)] == 0.0)


def test_gradient_flows_to_the_policy_alone():
    logprobs, old, advantages, mask, reference = batch()

    def value(old, advantages, reference):
        return policy_loss(
            logprobs, old, advantages, mask, reference_logprobs=reference, kl_coefficient=0.1
        ).total

    for gradient in jax.grad(value, argnums=(0, 1, 2))(old, advantages, reference):
        assert np.all(np.asarray(gradient) == 0.0)


def test_on_policy_gradient_is_the_policy_gradient():
    # At ratio 1: d total / d logprob = -A for each token, the REINFORCE gradient.
    _, old, advantages, mask, _ = batch()
    gradient = jax.grad(lambda x: policy_loss(x, old, advantages, mask).total)(old)
    np.testing.assert_allclose(gradient, jnp.where(mask, -advantages[..., None], 0.0), rtol=1e-6)


@pytest.mark.parametrize("normaliser", ["dapo", "grpo", "dr_grpo"])
def test_empty_batch_and_empty_captions(normaliser):
    logprobs, old, advantages, mask, _ = batch()
    nothing = policy_loss(
        logprobs,
        old,
        advantages,
        mask,
        valid=jnp.zeros((B, G), bool),
        normaliser=normaliser,
        max_length=T,
    )
    assert (nothing.total, nothing.count, objective(nothing)) == (0.0, 0.0, 0.0)
    # A caption without tokens is no caption.
    weights, count = token_weights(mask.at[0, 0].set(False), normaliser=normaliser, max_length=T)
    _, others = token_weights(mask, normaliser=normaliser, max_length=T)
    assert np.all(np.isfinite(weights))
    lost = {"dapo": int(mask[0, 0].sum()), "grpo": 1, "dr_grpo": T}[normaliser]
    assert count == others - lost


def test_bfloat16_logprobs_are_summed_in_float32():
    logprobs, old, advantages, mask, _ = batch()
    loss = policy_loss(logprobs.astype(jnp.bfloat16), old, advantages, mask)
    assert {x.dtype for x in loss} == {jnp.dtype(jnp.float32)}


def test_eight_devices_equal_one():
    arrays = [jnp.concatenate([x, x]) for x in batch()[:4]]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(lambda *x: policy_loss(*x, normaliser="grpo"))
    for one, other in zip(step(*arrays), step(*sharded), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 1.0}, "clip_low=1.0"),
        ({"clip_low": -0.1}, "clip_low=-0.1"),
        ({"clip_high": -0.1}, "clip_high=-0.1"),
        ({"normaliser": "mean"}, "'mean' is unknown; set it to one of dapo, grpo, dr_grpo"),
        ({"normaliser": "dr_grpo"}, "max_length=None"),
        ({"kl_coefficient": 0.1}, "reference_logprobs"),
        ({"kl_coefficient": -0.1}, "kl_coefficient=-0.1"),
    ],
)
def test_errors_name_value_and_remedy(options, message):
    logprobs, old, advantages, mask, _ = batch()
    with pytest.raises(UserError, match=message):
        policy_loss(logprobs, old, advantages, mask, **options)


# Importance weights -----------------------------------------------------------------------------


def test_importance_weights_by_hand():
    # Three tokens, advantage 1; the policy before the updates gives them 0.5, 2 and 4 times as much
    # as the one that sampled, the policy now 1, 1 and 1.5 times as much as that before: weights .5,
    # 2 and 3 (cut), ratios 1, 1 and 1.2 (clipped): .5 + 2 + 3 x 1.2 = 6.1
    old = jnp.full((1, 3), -3.0)
    start = old + jnp.log(jnp.array([[0.5, 2.0, 4.0]]))
    now = start + jnp.log(jnp.array([[1.0, 1.0, 1.5]]))
    mask = jnp.ones((1, 3), bool)

    def loss(now, advantage=1.0, **more):
        return policy_loss(now, old, jnp.array([advantage]), mask, importance_cap=3.0, **more)

    found = loss(now, start_logprobs=start)
    np.testing.assert_allclose(found.total, -6.1, rtol=1e-6)
    np.testing.assert_allclose(found.importance, 0.5 + 2.0 + 3.0, rtol=1e-6)
    assert (found.truncated, found.clipped_high, found.tokens) == (1.0, 1.0, 3.0)
    # d r / d logprob = r: the weight times A r where it is not clipped.
    slope = jax.grad(lambda now: loss(now, start_logprobs=start).total)(now)
    np.testing.assert_allclose(slope, [[-0.5, -2.0, 0.0]], rtol=1e-6)
    # Against A = -1 nothing is clipped: .5 + 2 + 3 x 1.5 = 7
    np.testing.assert_allclose(loss(now, -1.0, start_logprobs=start).total, 7.0, rtol=1e-6)
    # Drift and KL stay those to the policy that sampled and to the reference.
    np.testing.assert_allclose(found.drift, jnp.sum(kl_k3(old, now)), rtol=1e-6)


def test_in_the_first_update_the_start_is_the_policy_itself():
    logprobs, old, advantages, mask, _ = batch()

    def total(logprobs, **start):
        return policy_loss(logprobs, old, advantages, mask, importance_cap=1.2, **start).total

    gradient = jax.grad(total)(logprobs)
    given = jax.grad(total)(logprobs, start_logprobs=logprobs)
    np.testing.assert_allclose(gradient, given, rtol=1e-6)
    # -A w: each token once, however often the old policy would have sampled it, up to the cap.
    weights = jnp.minimum(jnp.exp(logprobs - old), 1.2)
    expected = jnp.where(mask, -advantages[..., None] * weights, 0.0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_on_policy_the_weights_are_1_and_change_nothing():
    logprobs, _, advantages, mask, _ = batch()

    def total(logprobs, cap):
        old = jax.lax.stop_gradient(logprobs)
        found = policy_loss(logprobs, old, advantages, mask, importance_cap=cap)
        return found.total, found

    (gradient, found), (plain, without) = (
        jax.grad(total, has_aux=True)(logprobs, cap) for cap in (1.0, 0.0)
    )
    np.testing.assert_array_equal(gradient, plain)
    assert without.importance == without.tokens
    for name, one, other in zip(found._fields, found, without, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_a_token_that_the_old_policy_hardly_knew_gets_the_cap():
    far = jnp.full((1, 1), -1e4)
    mask = jnp.ones((1, 1), bool)

    def total(now):
        return policy_loss(now, far, jnp.ones(1), mask, importance_cap=2.0).total

    value, slope = jax.value_and_grad(total)(jnp.zeros((1, 1)))
    np.testing.assert_allclose(value, -2.0)
    np.testing.assert_allclose(slope, [[-2.0]])


def test_a_cap_below_1_is_refused():
    logprobs, old, advantages, mask, _ = batch()
    with pytest.raises(UserError, match=r"importance_cap=0.5 must be at least 1, or 0"):
        policy_loss(logprobs, old, advantages, mask, importance_cap=0.5)
