"""Adapters beside the weights: applied, merged and left out, on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_llava

from balcap_jax.errors import UserError
from balcap_jax.models.adapters import adapted_paths, adapter_shapes, init_adapters, linear_layers
from balcap_jax.models.decoder.lora import (
    KEY,
    Lora,
    merge_adapters,
    take_adapters,
    with_dropout_keys,
    without_adapters,
)
from balcap_jax.models.families import family_of, make_policy
from balcap_jax.models.selection import overlaid
from balcap_jax.parallel.sharding import make_mesh, matching_rules, param_shardings, path_name
from balcap_jax.rollout.sampling import caption_keys, sample

CONFIGS = {"qwen": tiny.CONFIG, "llava": tiny_llava.CONFIG}
RANK = 3
LORA = Lora(alpha=5.0)
EVERYWHERE = ("decoder", "projector", "tower")


def adapted(config, *, lora=LORA, targets=(), seed=1, **options):
    """A policy, its parameters, and adapters that change something."""
    policy = make_policy(config, **options)
    policy = dataclasses.replace(policy, lora=lora)
    shapes = adapter_shapes(policy, adapted_paths(policy, targets), rank=RANK)
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype), shapes)
    return policy, tiny.random_params(policy), jax.device_put(drawn)


def inputs_of(config):
    if config is tiny.CONFIG:
        return tiny.prompts(2)
    return tiny_llava.prompts([1, 2])


def hidden(policy, params, prompts):
    completions = tiny.completions(2, 2, 4)

    @jax.jit
    def run(params):
        features = policy.encode_images(params, prompts.images)
        return policy.project(
            params, policy.completion_hidden(params, prompts, features, completions)
        )

    return np.asarray(run(params))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("rslora", [False, True])
def test_applied_equals_merged_and_left_out_equals_the_base(family, rslora):
    lora = Lora(alpha=5.0, rslora=rslora)
    policy, params, adapters = adapted(CONFIGS[family], lora=lora, targets=EVERYWHERE)
    prompts = inputs_of(CONFIGS[family])
    whole = overlaid(params, adapters)
    base = hidden(policy, params, prompts)
    applied = hidden(policy, whole, prompts)
    merged = hidden(policy, merge_adapters(whole, lora), prompts)
    np.testing.assert_allclose(applied, merged, atol=1e-4, rtol=1e-5)
    assert np.abs(applied - base).max() > 0.1
    tiny.assert_equal_trees(without_adapters(whole), params)
    same = zip(*map(jax.tree.leaves, (without_adapters(whole), params)), strict=True)
    assert all(a is b for a, b in same)  # no second copy


def test_the_merged_weight_is_the_formula():
    """alpha 5, rank 3: W + 5/3 B A; with rank stabilisation 5/sqrt(3)."""
    policy, params, adapters = adapted(tiny.CONFIG)
    layer = ("language_model", "layers", "mlp", "up_proj")

    def at(tree):
        for name in layer:
            tree = tree[name]
        return tree

    w, a, b = at(params)["weight"], at(adapters)["lora_A"], at(adapters)["lora_B"]
    for lora, scale in ((LORA, 5 / 3), (LORA._replace(rslora=True), 5 / 3**0.5)):
        merged = at(merge_adapters(overlaid(params, adapters), lora))
        assert merged.keys() == at(params).keys()
        wanted = [w[i] + scale * np.asarray(b[i], float) @ np.asarray(a[i], float) for i in (0, 1)]
        np.testing.assert_allclose(merged["weight"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_new_adapters_change_nothing_and_start_as_in_peft(family):
    policy, params, _ = adapted(CONFIGS[family])
    shapes = adapter_shapes(policy, adapted_paths(policy, EVERYWHERE), rank=RANK)
    new = init_adapters(shapes, jax.random.key(3))
    prompts = inputs_of(CONFIGS[family])
    np.testing.assert_array_equal(
        hidden(policy, overlaid(params, new), prompts), hidden(policy, params, prompts)
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(new):
        if path_name(path).endswith("lora_A"):
            bound = leaf.shape[-1] ** -0.5
            assert bound * 0.8 < np.abs(leaf).max() <= bound
    # On a mesh the same numbers.
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    tiny.assert_equal_trees(
        jax.device_get(init_adapters(shapes, jax.random.key(3), mesh=mesh)), new
    )


@pytest.mark.slow  # without adapters they are in test_remat.py
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialised_gradients_are_the_same(remat):
    prompts, completions = tiny.prompts(2), tiny.completions(2, 2, 4)
    gradients = []
    for kind in ("none", remat):
        policy, params, adapters = adapted(tiny.CONFIG, targets=EVERYWHERE, remat=kind)

        @jax.jit
        def loss(adapters, policy=policy, params=params):
            whole = overlaid(params, adapters)
            features = policy.encode_images(whole, prompts.images)
            return jnp.sum(policy.completion_hidden(whole, prompts, features, completions) ** 2)

        gradients.append(jax.grad(loss)(adapters))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert np.abs(a).max() > 0


def test_captions_are_those_of_the_merged_policy_on_any_mesh():
    policy, params, adapters = adapted(tiny.CONFIG)
    prompts = tiny.prompts(8)
    keys = caption_keys(jax.random.key(0), np.arange(8), group_size=2)

    def captions(params, mesh):
        with jax.set_mesh(mesh):
            features = jax.jit(policy.encode_images)(params, prompts.images)
            return sample(
                policy, params, prompts, features, keys,
                max_new_tokens=6, stop_tokens=(tiny.STOP,), pad_token_id=tiny.PAD,
            )  # fmt: skip

    one = make_mesh(devices=jax.devices()[:1])
    whole = overlaid(params, adapters)
    merged = captions(merge_adapters(whole, LORA), one)
    applied = captions(whole, one)
    np.testing.assert_array_equal(applied.tokens, merged.tokens)
    np.testing.assert_allclose(applied.logprobs, merged.logprobs, atol=1e-5)
    assert np.any(np.asarray(captions(params, one).tokens) != applied.tokens)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    spread = jax.device_put(whole, param_shardings(mesh, whole))
    np.testing.assert_array_equal(captions(spread, mesh).tokens, applied.tokens)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_adapter_is_split_as_its_weight(family):
    policy, _, _ = adapted(CONFIGS[family])
    for path in adapted_paths(policy, EVERYWHERE):
        (weight,) = matching_rules(f"{path}/weight")
        (a,), (b,) = matching_rules(f"{path}/lora_A"), matching_rules(f"{path}/lora_B")
        assert (a[-1], a[-2]) == (weight[-1], None), path
        assert (b[-2], b[-1]) == (weight[-2], None), path
        assert len(a) == len(b) == len(weight)


# ---- dropout


def test_dropout_drops_inputs_of_the_adapter_alone():
    """The mean over keys is the layer without dropout; each layer and module has its own mask."""
    lora = LORA._replace(dropout=0.25)
    policy, params, adapters = adapted(tiny.CONFIG, lora=lora)
    whole = overlaid(params, adapters)
    layer = jax.tree.map(lambda x: x[0], whole["language_model"]["layers"]["mlp"])
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 32)), jnp.float32)
    module = policy.definitions["language_model.layers"]

    def up(key):
        stacked = with_dropout_keys(whole, key)["language_model"]["layers"]
        one = jax.tree.map(lambda x: x[0], stacked)
        return module(one).mlp.up_proj(rows)

    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(up))(keys)
    plain = module(jax.tree.map(lambda x: x[0], whole["language_model"]["layers"])).mlp.up_proj(
        rows
    )
    base = rows @ layer["up_proj"]["weight"].T
    assert float(jnp.std(drawn, axis=0).max()) > 0.1
    np.testing.assert_allclose(drawn.mean(0), plain, atol=0.06)
    # With all inputs dropped it would be the base: the base's part has no noise.
    spread = drawn - base[None]
    wanted = float(jnp.mean((plain - base) ** 2))
    assert float(jnp.mean(spread**2)) > wanted
    _, found = take_adapters(with_dropout_keys(whole, keys[0]))
    masks = {tuple(row) for leaves in found.values() for row in np.asarray(leaves[KEY])}
    assert len(masks) == 2 * 7  # layers x modules


# ---- targets


@pytest.mark.parametrize("family", CONFIGS)
def test_targets(family):
    policy = make_policy(CONFIGS[family])
    decoder = family_of(policy.config).target_modules
    assert adapted_paths(policy, ()) == decoder
    assert set(adapted_paths(policy, ("decoder",))) == set(decoder)
    # Both towers have layers called so; a bare name is the decoder's.
    assert adapted_paths(policy, ("q_proj", "down_proj")) == (
        "language_model/layers/self_attn/q_proj",
        "language_model/layers/mlp/down_proj",
    )
    assert set(adapted_paths(policy, EVERYWHERE)) == set(linear_layers(policy))
    projector = adapted_paths(policy, ("projector",))
    assert len(projector) == 2
    assert adapted_paths(policy, ("*/mlp", "*/mlp/up_proj"))[0] in linear_layers(policy)


@pytest.mark.parametrize(
    ("target", "nearest"),
    [
        ("q_porj", "did you mean q_proj?"),
        ("towr", "did you mean tower?"),
        ("visual/merger/mlp/1", "did you mean visual/merger/mlp/2?"),
        ("lm_head", "choose of projector, tower, decoder, down_proj"),
        ("visual/patch_embed/proj", "choose of projector, tower, decoder, down_proj"),
    ],
)
def test_targets_that_match_nothing_are_refused(target, nearest):
    with pytest.raises(UserError) as error:
        adapted_paths(make_policy(tiny.CONFIG), ("q_proj", target))
    assert f"model.lora.targets holds {target!r}" in str(error.value)
    assert nearest in str(error.value)


def test_a_rank_above_the_width_is_refused():
    policy = make_policy(tiny.CONFIG)
    paths = adapted_paths(policy, ("k_proj",))  # 16 x 32
    assert adapter_shapes(policy, paths, rank=16)
    with pytest.raises(UserError, match=r"rank=17 is above the width of .*k_proj.* is 16 x 32"):
        adapter_shapes(policy, paths, rank=17)
