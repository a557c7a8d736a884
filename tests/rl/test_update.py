"""One update: the same on any mesh and any split, and it does what the objective says."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny_update import (
    BANNED,
    ONE,
    PARAMS,
    POLICY,
    B,
    C,
    G,
    assert_trees_close,
    exact_logprobs,
    make_batch,
    optimizer,
)

from balcap_jax.errors import UserError
from balcap_jax.models.selection import EVERYTHING, leaf_paths
from balcap_jax.parallel.sharding import (
    make_mesh,
    param_shardings,
    path_name,
    replicated,
    shard_batch,
)
from balcap_jax.plan.costs import costs_of
from balcap_jax.plan.hlo import Program
from balcap_jax.rl.train_state import decays, init_state, make_optimizer, make_schedule
from balcap_jax.rl.update import (
    Batch,
    join_micro_batches,
    make_reference_logprobs,
    make_update,
    split_micro_batches,
)
from balcap_jax.rollout.sampling import caption_keys, sample

# A second set of options, shared by tests: each set is a compilation of seconds.
OTHER = {"loss_normaliser": "grpo", "clip_low": 0.1, "clip_high": 0.6, "temperature": 0.7}


@cache
def updater(mesh=ONE, **options):
    return make_update(POLICY, optimizer(), mesh, banned_tokens=BANNED, chunk=3, **options)


def run(batch: Batch, mesh=ONE, *, params=PARAMS, **options):
    trained = options.get("trained", POLICY.parts["decoder"])
    state = init_state(mesh, params, optimizer(), trained=trained)
    return updater(mesh, **options)(state, shard_batch(mesh, batch))


def moved_of(new, old):
    """Whether each array is another."""
    return jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), new, old)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch()


@pytest.fixture(scope="module")
def reference(batch):
    """State and metrics of one update on one device in one micro-batch."""
    return run(batch)


@jax.jit
def _stepped(gradients, trainable):
    """The gradients' norm and the parameters after the first step along them."""
    updates, _ = optimizer().update(gradients, optimizer().init(trainable), trainable)
    return optax.tree.norm(gradients), optax.apply_updates(trainable, updates)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(OTHER, marks=pytest.mark.one_jax),
        pytest.param({"loss_normaliser": "dr_grpo", "temperature": 1.4}, marks=pytest.mark.one_jax),
    ],
    ids=["dapo", "grpo", "dr_grpo"],
)
def test_the_gradient_is_that_of_the_plain_objective(batch, options):
    """Without micro-batches, chunks or library losses: the formula, differentiated."""
    temperature = options.get("temperature", 1.0)
    low, high = 1 - options.get("clip_low", 0.2), 1 + options.get("clip_high", 0.2)
    live = batch.mask & batch.valid[..., None]
    lengths = jnp.sum(live, axis=-1)
    share = {  # of a token in the objective
        "dapo": jnp.full((B, G), 1 / jnp.sum(lengths)),
        "grpo": 1 / (jnp.maximum(lengths, 1) * jnp.sum(lengths > 0)),
        "dr_grpo": jnp.full((B, G), 1 / (jnp.sum(lengths > 0) * C)),
    }[options.get("loss_normaliser", "dapo")]

    def objective(language_model):
        params = {**PARAMS, "language_model": language_model}
        logprobs = exact_logprobs(
            params, batch.prompts, batch.features, batch.tokens, temperature=temperature
        )
        ratio = jnp.exp(logprobs - batch.old_logprobs)
        advantage = batch.advantages[..., None]
        loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, low, high) * advantage)
        return jnp.sum(jnp.where(live, loss * share[..., None], 0.0))

    loss, gradient = jax.jit(jax.value_and_grad(objective))(PARAMS["language_model"])
    state, metrics = run(batch, **options)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    trainable = {"language_model": PARAMS["language_model"]}
    norm, expected = _stepped({"language_model": gradient}, trainable)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert_trees_close({"language_model": state.params["language_model"]}, expected, atol=1e-6)


def test_metrics(batch, reference):
    _, metrics = reference
    live = np.asarray(batch.mask & batch.valid[..., None])
    logprobs = exact_logprobs(PARAMS, batch.prompts, batch.features, batch.tokens)
    gap = np.asarray(logprobs - batch.old_logprobs)[live]
    advantage = np.broadcast_to(np.asarray(batch.advantages)[..., None], live.shape)[live]
    ratio = np.exp(gap)
    expected = {
        "tokens": live.sum(),
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "logprob_gap": np.abs(gap).mean(),
        "clip_low": ((ratio < 0.8) & (advantage < 0)).mean(),
        "clip_high": ((ratio > 1.2) & (advantage > 0)).mean(),
        "drift": (ratio - 1 - gap).mean(),  # k3, samples from the old policy
        "kl": 0.0,
        "skipped": 0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert 0.05 < expected["clip_low"] < 0.5
    assert 0 < metrics["entropy"] < np.log(48)
    assert all(value.shape == () for value in metrics.values())


def test_the_split_into_micro_batches_changes_nothing(batch):
    """Of means over captions, each micro-batch's other in number of tokens."""
    whole_state, whole = run(batch, **OTHER)
    state, metrics = run(batch, micro_batches=4, **OTHER)
    assert_trees_close(state.params, whole_state.params, atol=1e-6)
    assert_trees_close(metrics, whole, rtol=1e-5, atol=1e-6)


def test_splitting_is_undone_by_joining():
    x = jnp.arange(12).reshape(6, 2)
    parts = split_micro_batches(x, 3)
    np.testing.assert_array_equal(parts[1], [[2, 3], [8, 9]])  # prompts 1 and 4
    np.testing.assert_array_equal(join_micro_batches(parts), x)


def test_a_mesh_changes_neither_update_nor_captions(batch, reference):
    """One of the splits; tests/training/test_meshes.py has all of them, of both families."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    state, metrics = run(batch, mesh)
    assert_trees_close(state.params, reference[0].params, atol=1e-5)
    assert_trees_close(metrics, reference[1], rtol=1e-4, atol=1e-5)
    # the state leaves as it came, so that the next step is not compiled again
    for new, expected in zip(
        jax.tree.leaves(state), jax.tree.leaves(param_shardings(mesh, state)), strict=True
    ):
        assert new.sharding.is_equivalent_to(expected, new.ndim)

    def captions(mesh):
        with jax.set_mesh(mesh):
            params = jax.device_put(PARAMS, param_shardings(mesh, PARAMS))
            keys = caption_keys(jax.random.key(0), jnp.arange(B), group_size=2)
            return sample(
                POLICY,
                params,
                shard_batch(mesh, batch.prompts),
                shard_batch(mesh, batch.features),
                shard_batch(mesh, keys),
                max_new_tokens=6,
                stop_tokens=(1, 7, 8),
                pad_token_id=0,
                banned_tokens=BANNED,
            )

    ours, expected = captions(mesh), captions(ONE)
    np.testing.assert_array_equal(ours.tokens, expected.tokens)
    np.testing.assert_array_equal(ours.ended, expected.ended)
    np.testing.assert_allclose(ours.logprobs, expected.logprobs, atol=1e-5)


def test_the_compiled_update_keeps_what_the_rules_split_and_no_logits_travel(batch):
    policy, params = tiny.policy(
        config=tiny.config(text={"vocab_size": 88})
    )  # a number that nothing else has
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    state = init_state(mesh, params, optimizer(), trained=POLICY.parts["decoder"])
    update = make_update(policy, optimizer(), mesh, banned_tokens=BANNED, chunk=3).__wrapped__
    with jax.set_mesh(mesh):
        lowered = update.lower(state, shard_batch(mesh, batch))
    compiled = lowered.compile()
    arrays, asked = jax.tree.leaves(state), jax.tree.leaves(param_shardings(mesh, state))
    for made in (compiled.input_shardings[0][0], compiled.output_shardings[0]):
        for array, ours, rule in zip(arrays, jax.tree.leaves(made), asked, strict=True):
            assert ours.is_equivalent_to(rule, array.ndim)
    width = policy.config.text.hidden_size
    collectives = costs_of(Program(compiled.as_text())).collectives
    assert collectives
    for collective in collectives:
        for dims in re.findall(r"\[([\d,]+)\]", collective.shape):
            *rows, words = (int(size) for size in dims.split(","))
            head = np.prod(rows) in (width, width // 2)  # of the weight, transposed
            assert words not in (88, 44) or head, collective


def test_the_vision_tower_is_frozen_by_default(batch, reference):
    state, _ = reference
    for new, old in zip(
        *map(jax.tree.leaves, (state.params["visual"], PARAMS["visual"])), strict=True
    ):
        np.testing.assert_array_equal(new, old)
    moved = moved_of(state.params["language_model"], PARAMS["language_model"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.one_jax
def test_the_vision_tower_trains_when_asked(batch, reference):
    # Stale features must not be read, or the tower would get no gradient.
    stale = batch._replace(features=jnp.full_like(batch.features, jnp.nan))
    state, metrics = run(stale, trained=EVERYTHING)
    moved = moved_of(state.params, PARAMS)
    assert all(jax.tree.leaves(moved["visual"]["blocks"]))
    np.testing.assert_allclose(metrics["loss"], reference[1]["loss"], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_with_bad_gradients_is_skipped_and_counted(batch, bad):
    state = init_state(ONE, PARAMS, optimizer(), trained=POLICY.parts["decoder"])
    state, _ = updater()(state, batch)
    before = jax.device_get(state)
    state, metrics = updater()(state, batch._replace(advantages=batch.advantages.at[2, 1].set(bad)))
    assert not np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1
    assert (state.step, state.skipped) == (2, 1)
    assert_trees_close((state.params, state.opt_state), (before.params, before.opt_state), rtol=0)
    state, metrics = updater()(state, batch)  # the next one goes on
    assert np.isfinite(metrics["grad_norm"])
    assert (state.step, state.skipped) == (3, 1)


def test_what_carries_no_weight_does_not_matter(batch, reference):
    """Masked slots and captions without signal may hold anything, NaN too."""
    live = batch.mask & batch.valid[..., None]
    dirty = batch._replace(
        tokens=jnp.where(batch.mask, batch.tokens, 40),
        old_logprobs=jnp.where(live, batch.old_logprobs, jnp.nan),
        advantages=jnp.where(batch.valid, batch.advantages, jnp.nan),
    )
    state, metrics = run(dirty)
    assert_trees_close(state.params, reference[0].params, atol=1e-6)
    assert_trees_close(metrics, reference[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "micro_batches"),
    [
        ((1, 1, 1), 2),
        ((2, 2, 2), 1),
        pytest.param((1, 1, 1), 1, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 2, marks=pytest.mark.slow),
    ],
)
def test_a_batch_without_any_signal_is_a_skipped_step(batch, sizes, micro_batches):
    """Neither Adam's momentum nor weight decay move the policy then."""
    data, fsdp, tensor = sizes
    mesh = make_mesh(
        data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor]
    )
    decaying = make_optimizer(learning_rate=1e-2, weight_decay=0.1)
    update = make_update(POLICY, decaying, mesh, micro_batches=micro_batches)
    state = init_state(mesh, PARAMS, decaying, trained=POLICY.parts["decoder"])
    state, _ = update(state, shard_batch(mesh, batch))  # moments that would go on
    before = jax.device_get(state)
    nothing = batch._replace(valid=jnp.zeros_like(batch.valid))
    state, metrics = update(state, shard_batch(mesh, nothing))
    after = jax.device_get(state)
    assert (metrics["loss"], metrics["tokens"], metrics["skipped"]) == (0, 0, 1)
    assert (after.step, after.skipped) == (2, 1)
    tiny.assert_equal_trees((after.params, after.opt_state), (before.params, before.opt_state))
    # A signal that teaches nothing is an ordinary step: the momentum goes on.
    constant = batch._replace(advantages=jnp.zeros_like(batch.advantages))
    state, metrics = update(state, shard_batch(mesh, constant))
    assert metrics["skipped"] == 1
    moved = jax.tree.map(
        lambda new, old: float(np.abs(new - old).max()), jax.device_get(state.params), after.params
    )
    assert max(jax.tree.leaves(moved["language_model"])) > 1e-3


@pytest.mark.one_jax
def test_only_what_is_named_moves(batch):
    """The recipe of LLaVA's first stage: the projector alone, with a gradient through the rest."""
    state, metrics = run(batch, trained=("visual/merger",))
    moved = moved_of(state.params, PARAMS)
    moved = {path_name(path) for path, yes in jax.tree_util.tree_leaves_with_path(moved) if yes}
    assert moved == {f"visual/merger/{name}" for name in leaf_paths(PARAMS["visual"]["merger"])}
    assert metrics["grad_norm"] > 0
    held = {path_name(path) for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    assert not any("language_model" in path or "blocks" in path for path in held)


@pytest.mark.one_jax
def test_a_part_learns_at_its_own_rate(batch):
    """Ten times the rate is ten times the first step, for the named part alone."""
    rates = [(("language_model/layers/mlp",), 1e-1), (("language_model/*",), 1e-2)]
    own = optimizer(rates=tuple(rates))
    start = init_state(ONE, PARAMS, own, trained=POLICY.parts["decoder"])
    update = make_update(POLICY, own, ONE, banned_tokens=BANNED, chunk=3)
    state, _ = update(start, shard_batch(ONE, batch))
    plain, _ = run(batch)

    def step(after, *path):
        before = PARAMS
        for name in path:
            after, before = after[name], before[name]
        return np.asarray(after) - np.asarray(before)

    mlp = ("language_model", "layers", "mlp", "up_proj", "weight")
    attention = ("language_model", "layers", "self_attn", "q_proj", "weight")
    np.testing.assert_allclose(step(state.params, *mlp), 10 * step(plain.params, *mlp), atol=1e-5)
    np.testing.assert_allclose(
        step(state.params, *attention), step(plain.params, *attention), atol=1e-6
    )
    assert np.abs(step(plain.params, *mlp)).max() > 1e-3


def test_pixels_change_the_loss(batch, reference):
    images = batch.prompts.images
    changed = images._replace(pixels=images.pixels + 1.0)
    _, metrics = run(
        batch._replace(prompts=batch.prompts._replace(images=changed)), trained=EVERYTHING
    )
    assert abs(metrics["loss"] - reference[1]["loss"]) > 1e-3


@pytest.mark.one_jax
def test_a_rewarded_caption_becomes_likelier(batch):
    """Advantage 1 for one caption, 0 for the rest: it gains at each of 5 steps on its policy."""
    one = batch._replace(advantages=jnp.zeros((B, G)).at[3, 2].set(1.0))
    state, scores = init_state(ONE, PARAMS, optimizer(), trained=POLICY.parts["decoder"]), []
    for _ in range(5):
        logprobs = exact_logprobs(state.params, batch.prompts, batch.features, batch.tokens)
        scores.append(float(jnp.sum(jnp.where(batch.mask, logprobs, 0.0)[3, 2])))
        state, metrics = updater()(state, one._replace(old_logprobs=logprobs))
        assert metrics["logprob_gap"] < 1e-4
    assert np.all(np.diff(scores) > 0)
    assert scores[-1] > scores[0] + 0.1


def test_a_fixed_rollout_stops_to_gain_at_the_bound(batch):
    """Several updates on one rollout: the loss falls, but not far below -(1 + clip_high)."""
    logprobs = exact_logprobs(PARAMS, batch.prompts, batch.features, batch.tokens)
    only = jnp.zeros((B, G), bool).at[3, 2].set(True)
    fixed = batch._replace(advantages=jnp.ones((B, G)), valid=only, old_logprobs=logprobs)
    state, losses, norms = (
        init_state(ONE, PARAMS, optimizer(), trained=POLICY.parts["decoder"]),
        [],
        [],
    )
    for _ in range(15):
        state, metrics = updater()(state, fixed)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    np.testing.assert_allclose(losses[0], -1.0, atol=1e-5)
    assert losses[1] < losses[0]
    # every token at its bound: -min(ratio, 1.2) = -1.2, and no gradient is left
    np.testing.assert_allclose(losses[-1], -1.2, atol=1e-5)
    assert norms[0] > 0
    assert norms[-1] == 0


def test_the_bounds_are_apart(batch):
    """With bounds 0.9 and 1.6, ratio 1.5 with A > 0 goes on and ratio 0.5 with A < 0 stops."""
    logprobs = exact_logprobs(
        PARAMS, batch.prompts, batch.features, batch.tokens, temperature=OTHER["temperature"]
    )
    up = batch._replace(old_logprobs=logprobs - np.log(1.5), advantages=jnp.ones((B, G)))
    _, metrics = run(up, **OTHER)
    assert (metrics["clip_low"], metrics["clip_high"]) == (0, 0)
    assert metrics["grad_norm"] > 1e-3
    np.testing.assert_allclose(metrics["loss"], -1.5, rtol=1e-5)
    down = batch._replace(old_logprobs=logprobs - np.log(0.5), advantages=-jnp.ones((B, G)))
    _, metrics = run(down, **OTHER)
    assert (metrics["clip_low"], metrics["clip_high"]) == (1, 0)
    assert metrics["grad_norm"] == 0
    np.testing.assert_allclose(metrics["loss"], 0.9, rtol=1e-5)


@pytest.mark.one_jax
def test_kl_to_the_reference(batch):
    """At the reference the penalty is 0 with gradient 0; away from it the step is pulled back."""
    reference = make_reference_logprobs(POLICY, ONE, banned_tokens=BANNED, micro_batches=2, chunk=3)
    logprobs = reference(PARAMS, batch)
    expected = exact_logprobs(PARAMS, batch.prompts, batch.features, batch.tokens)
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-5)
    still = batch._replace(
        reference_logprobs=logprobs, advantages=jnp.zeros((B, G)), old_logprobs=logprobs
    )
    _, metrics = run(still, kl_coef=0.5)
    assert abs(metrics["kl"]) < 1e-6
    assert metrics["grad_norm"] < 1e-4
    _, metrics = run(still._replace(reference_logprobs=logprobs - 0.3), kl_coef=0.5)
    # k3 with d = -0.3 everywhere: exp(-0.3) - 1 + 0.3 = 0.0408182
    np.testing.assert_allclose(metrics["kl"], 0.0408182, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], 0.5 * 0.0408182, rtol=1e-4)
    assert metrics["grad_norm"] > 1e-3


@pytest.mark.one_jax
def test_importance_weights_on_policy_change_nothing_and_off_policy_do(batch):
    """The gradient of the first update is that of the weights times the logprobs."""
    logprobs = exact_logprobs(PARAMS, batch.prompts, batch.features, batch.tokens)
    on_policy = batch._replace(old_logprobs=logprobs)
    (plain, before), (state, after) = run(on_policy), run(on_policy, importance_cap=1.3)
    assert_trees_close(state.params, plain.params, atol=1e-6)
    assert_trees_close(after, before, rtol=1e-4, atol=1e-5)
    assert after["importance_mean"] == pytest.approx(1, abs=1e-5)

    live = batch.mask & batch.valid[..., None]
    ratio = jnp.where(live, jnp.exp(logprobs - batch.old_logprobs), 0.0)
    weights = jnp.minimum(ratio, 1.3)
    # As if each token had been sampled now, with an advantage of its own.
    state, metrics = run(batch, importance_cap=1.3)
    tokens = jnp.sum(live)
    np.testing.assert_allclose(metrics["importance_mean"], weights.sum() / tokens, rtol=1e-4)
    np.testing.assert_allclose(
        metrics["importance_truncated"], jnp.sum(ratio > 1.3) / tokens, rtol=1e-5
    )
    assert 0 < metrics["importance_truncated"] < 0.5
    np.testing.assert_allclose(
        metrics["loss"], -jnp.sum(weights * batch.advantages[..., None]) / tokens, rtol=1e-4
    )
    # A second update keeps the weights of the first, and the ratio starts from there.
    given = batch._replace(start_logprobs=logprobs)
    again, same = run(given, importance_cap=1.3)
    assert_trees_close(again.params, state.params, atol=1e-6)
    moved = jax.tree.map(lambda x: 1.01 * x, PARAMS)
    _, later = run(given, params=moved, importance_cap=1.3)
    assert later["importance_mean"] == same["importance_mean"]
    assert later["logprob_gap"] != same["logprob_gap"]
    assert later["loss"] != same["loss"]


def test_a_step_moves_nothing_between_host_and_device(batch):
    state = init_state(ONE, PARAMS, optimizer(), trained=POLICY.parts["decoder"])
    on_device = shard_batch(ONE, batch)
    updater()(
        init_state(ONE, PARAMS, optimizer(), trained=POLICY.parts["decoder"]), on_device
    )  # compiled
    with jax.transfer_guard("disallow"):
        state, metrics = updater()(state, on_device)
        jax.block_until_ready(metrics)
    assert jax.device_get(state.step) == 1


def test_a_batch_that_cannot_be_split_says_so(batch):
    with pytest.raises(UserError, match="8 prompts cannot be split into 3 micro-batches over 1"):
        run(batch, micro_batches=3)
    with pytest.raises(UserError, match="over 8 data shards; make their number a multiple of 16"):
        run(batch, make_mesh(), micro_batches=2)


@pytest.mark.parametrize("source", ["host", "one device", "mesh"])
def test_init_state_leaves_the_parameters_to_the_caller(source):
    """What is deleted or overwritten by donation is the state, never the arrays given."""
    mesh = make_mesh()
    given = {"language_model": {"norm": {"scale": np.arange(8.0, dtype=np.float32)}}, "visual": {}}
    if source == "one device":
        given = jax.device_put(given, jax.devices()[0])
    elif source == "mesh":
        given = jax.device_put(given, replicated(mesh))
    state = init_state(mesh, given, optimizer(), trained=POLICY.parts["decoder"])
    double = jax.jit(lambda state: jax.tree.map(lambda x: 2 * x, state), donate_argnums=0)
    doubled = double(state)
    assert state.params["language_model"]["norm"]["scale"].is_deleted()
    np.testing.assert_array_equal(given["language_model"]["norm"]["scale"], np.arange(8.0))
    np.testing.assert_array_equal(
        doubled.params["language_model"]["norm"]["scale"], 2 * np.arange(8.0)
    )


def test_a_state_that_takes_the_parameters_over_copies_none():
    mesh = make_mesh()

    def place(params):
        scale = params["language_model"]["norm"]["scale"]
        return scale.addressable_data(0).unsafe_buffer_pointer()

    given = {"language_model": {"norm": {"scale": jnp.ones(8)}}, "visual": {}}
    given = jax.device_put(given, replicated(mesh))
    assert place(
        init_state(mesh, given, optimizer(), trained=POLICY.parts["decoder"], keep=False).params
    ) == place(given)
    assert place(
        init_state(mesh, given, optimizer(), trained=POLICY.parts["decoder"]).params
    ) != place(given)


def test_weight_decay_spares_norms_and_biases():
    mask = decays(PARAMS["language_model"])
    layers = mask["layers"]
    assert layers["mlp"]["up_proj"]["weight"]
    assert mask["embed_tokens"]["embedding"]
    assert not layers["self_attn"]["q_proj"]["bias"]
    assert not layers["input_layernorm"]["scale"]
    assert not mask["norm"]["scale"]


def test_schedules_by_hand():
    def rates(**options):
        schedule = make_schedule(learning_rate=1.0, **options)
        return [float(schedule(i)) for i in range(5)]

    np.testing.assert_allclose(rates(), [1, 1, 1, 1, 1])
    np.testing.assert_allclose(rates(warmup_steps=1), [1, 1, 1, 1, 1])
    np.testing.assert_allclose(rates(warmup_steps=4), [0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(
        rates(schedule="linear", warmup_steps=2, total_steps=4), [0.5, 1, 1, 0.5, 0]
    )
    # half a cosine over 4 steps: (1 + cos(pi i / 4)) / 2
    np.testing.assert_allclose(
        rates(schedule="cosine", total_steps=4), [1, 0.853553, 0.5, 0.146447, 0], atol=1e-6
    )


def test_schedule_mistakes():
    with pytest.raises(UserError, match="schedule='cosin' is unknown; choose one of constant"):
        make_schedule(learning_rate=1.0, schedule="cosin")
    with pytest.raises(UserError, match="total_steps=5 leaves nothing after warmup_steps=5"):
        make_schedule(learning_rate=1.0, schedule="linear", warmup_steps=5, total_steps=5)


def test_gradients_are_clipped_by_their_global_norm():
    """Norm 5 to norm 1: with plain descent instead of Adam the step would be (0.6, 0.8)."""
    chain = make_optimizer(learning_rate=1.0, b1=0.0, b2=0.0, eps=1.0, max_grad_norm=1.0)
    params = {"x": {"kernel": jnp.zeros(2)}}
    updates, _ = chain.update({"x": {"kernel": jnp.array([3.0, 4.0])}}, chain.init(params), params)
    # Adam with b1 = b2 = 0, eps = 1: g / (|g| + 1) of the clipped g = (0.6, 0.8)
    np.testing.assert_allclose(updates["x"]["kernel"], [-0.375, -0.444444], rtol=1e-5)
