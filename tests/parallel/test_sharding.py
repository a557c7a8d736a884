"""Every parameter has one rule; a mesh that does not fit says so."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_llava
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from balcap_jax.errors import UserError
from balcap_jax.models.families import make_policy
from balcap_jax.models.llava.policy import Llava
from balcap_jax.models.qwen2_5_vl.policy import Qwen2_5_VL
from balcap_jax.models.selection import EVERYTHING
from balcap_jax.parallel.sharding import (
    RULES,
    batch_shards,
    constrain_batch,
    constrain_heads,
    constrain_images,
    gather_for_decoding,
    make_mesh,
    matching_rules,
    over_batch,
    param_shardings,
    path_name,
    shard_batch,
)
from balcap_jax.plan.workloads.published import SHAPES
from balcap_jax.plan.workloads.random_folder import config_of
from balcap_jax.rl.train_state import make_optimizer, split_trainable, state_shapes, state_shardings


def abstract_params(**top) -> dict:
    return jax.eval_shape(Qwen2_5_VL(tiny.config(**top)).init, jax.random.key(0))


# Untied, and with every bias a decoder of this family can have.
BIASED = tiny_llava.config(text={"attention_out_bias": True, "mlp_bias": True})
FAMILIES = {
    "qwen2_5_vl tied": Qwen2_5_VL(tiny.config(tie_word_embeddings=True)),
    "qwen2_5_vl untied": Qwen2_5_VL(tiny.config(tie_word_embeddings=False)),
    "llava tied": Llava(tiny_llava.config(tie_word_embeddings=True)),
    "llava biased": Llava(BIASED),
    "llava dinov2": Llava(tiny_llava.config(vision=tiny_llava.DINOV2)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_matches_exactly_one_rule(name):
    params = jax.eval_shape(FAMILIES[name].init, jax.random.key(0))
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    assert len(paths) > 20
    for path, leaf in paths:
        rules = matching_rules(path_name(path))
        assert len(rules) == 1, path_name(path)
        assert len(rules[0]) <= leaf.ndim
        if re.search("/(layers?|blocks)/", path_name(path)) and len(rules[0]):
            assert rules[0][0] is None  # the stack of layers is never sharded


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("train_vision", [False, True], ids=["frozen", "vision"])
def test_published_models_and_their_optimizer_match_exactly_one_rule(shape, train_vision):
    policy = make_policy(config_of(shape))
    params = jax.eval_shape(policy.init, jax.random.key(0))
    trained = EVERYTHING if train_vision else policy.parts["decoder"]
    optimizer = make_optimizer(learning_rate=1e-6, warmup_steps=5)
    state = state_shapes(params, optimizer, trained=trained)
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    arrays = [(path_name(path), leaf) for path, leaf in leaves if leaf.ndim]
    moments = 2 * len(jax.tree.leaves(split_trainable(params, trained=trained)[0]))
    assert len(arrays) == len(jax.tree.leaves(params)) + moments
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    whole = 0
    for name, leaf in arrays:
        rules = matching_rules(name)
        assert len(rules) == 1, name
        sharding = param_shardings(mesh, {name: leaf})[name]
        # On a mesh like this every axis of a rule divides: nothing is replicated against it.
        assert sharding.spec == rules[0], name
        whole += leaf.size if sharding.is_fully_replicated else 0
    assert whole < 0.002 * sum(leaf.size for _, leaf in arrays)  # norms and some biases


def test_every_rule_is_used():
    names = [
        path_name(path)
        for policy in FAMILIES.values()
        for path, _ in jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(policy.init, jax.random.key(0))
        )
    ]
    for pattern, _ in RULES:
        assert any(re.search(f"(^|/){pattern}$", name) for name in names), pattern


def test_optimizer_moments_follow_their_parameters():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shardings = state_shardings(
        mesh, abstract_params(), make_optimizer(learning_rate=1e-3), trained=("language_model",)
    )
    up = shardings.params["language_model"]["layers"]["mlp"]["up_proj"]["weight"]
    assert up.spec == P(None, "tensor", "fsdp")
    specs = {
        path_name(path): leaf.spec
        for path, leaf in jax.tree_util.tree_flatten_with_path(shardings.opt_state)[0]
    }
    moments = [n for n in specs if n.endswith("language_model/layers/mlp/up_proj/weight")]
    assert len(moments) == 2  # mu and nu
    assert {specs[name] for name in moments} == {up.spec}
    assert not any("visual" in name for name in specs)  # frozen: no state
    assert shardings.step.spec == P()


def test_a_dimension_that_does_not_divide_is_replicated():
    mesh = make_mesh(data=1, fsdp=8)
    tree = {"lm_head": {"weight": jnp.zeros((16, 12))}}
    assert param_shardings(mesh, tree)["lm_head"]["weight"].spec == P("tensor", None)
    tree = {"lm_head": {"weight": jnp.zeros((16, 16))}}
    assert param_shardings(mesh, tree)["lm_head"]["weight"].spec == P("tensor", "fsdp")


def test_an_unknown_parameter_is_a_bug():
    with pytest.raises(AssertionError, match="lora/weight matches 0 rules"):
        param_shardings(make_mesh(), {"lora": {"weight": jnp.zeros((8, 8))}})


def test_mesh_sizes():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(tensor=2).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert dict(make_mesh(data=2, fsdp=-1).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert batch_shards(make_mesh(data=2, fsdp=2, tensor=2)) == 4
    assert make_mesh(devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"data": 4}, {"fsdp": 3}, {"data": -1, "fsdp": -1}, {"tensor": 0}]
)
def test_a_mesh_that_does_not_fit_names_the_number_of_devices(sizes):
    with pytest.raises(UserError, match=r"does not fit the number of devices, 8; choose"):
        make_mesh(**sizes)


def test_batches_are_split_over_data_and_fsdp():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    x = shard_batch(mesh, np.arange(8).reshape(4, 2))
    assert x.sharding.spec == P(("data", "fsdp"))
    assert x.addressable_shards[0].data.shape == (1, 2)
    with pytest.raises(UserError, match="batch of 6 prompts cannot be split over 4 data shards"):
        shard_batch(mesh, np.zeros((6, 2)))


def test_heads_that_do_not_divide_are_whole_and_images_are_spread_over_all():
    x = jnp.zeros((8, 3, 2, 4))  # two heads
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        assert jax.jit(constrain_heads)(x).sharding.shard_shape(x.shape) == (2, 3, 1, 4)
        assert jax.jit(constrain_images)(x).sharding.shard_shape(x.shape) == (1, 3, 2, 4)
        assert jax.jit(constrain_images)(x[:4]).sharding.shard_shape((4, 3, 2, 4)) == (1, 3, 2, 4)
    with jax.set_mesh(make_mesh(data=1, fsdp=2, tensor=4)):
        assert jax.jit(constrain_heads)(x).sharding.shard_shape(x.shape) == (4, 3, 2, 4)


def test_decoding_has_its_weights_split_over_tensor_alone():
    tree = {"layers": {"mlp": {"up_proj": {"weight": jnp.zeros((2, 16, 8))}}}}
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(tree, param_shardings(mesh, tree))
        out = jax.jit(gather_for_decoding)(spread)
        one = jax.jit(lambda x: gather_for_decoding(jax.tree.map(lambda w: w[0], x)))(spread)
    (weight,), (of_layer,) = jax.tree.leaves(out), jax.tree.leaves(one)
    assert weight.sharding.shard_shape(weight.shape) == (2, 8, 8)
    assert of_layer.sharding.shard_shape(of_layer.shape) == (8, 8)


def test_the_gradient_of_a_weight_that_all_prompts_share():
    """Values and gradients are those of one device; the gradient is spread as the weight is."""
    weight, x = jax.random.normal(jax.random.key(0), (6, 8)), jnp.arange(64.0).reshape(8, 8) / 64
    mesh = make_mesh(data=2, fsdp=4)

    def objective(weight):
        by_prompts = over_batch(lambda w, x: jnp.sin(x @ w.T), dtype=jnp.float32)
        return jnp.sum(by_prompts(weight, x) ** 2)

    value, expected = jax.value_and_grad(objective)(weight)
    with jax.set_mesh(mesh):
        spread = jax.device_put(weight, NamedSharding(mesh, P(None, "fsdp")))
        ours, gradient = jax.jit(jax.value_and_grad(objective))(spread)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_constrain_batch_follows_the_mesh_in_context():
    def constrained(x):
        return constrain_batch(jnp.zeros((2, 8)) + x, axis=1)

    assert jax.jit(constrained)(1.0).sharding.device_set == {jax.devices()[0]}
    with jax.set_mesh(make_mesh()):
        assert jax.jit(constrained)(1.0).addressable_shards[0].data.shape == (2, 1)
