"""Every parameter has one rule; a mesh that does not fit says so."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_llava
from jax.sharding import PartitionSpec as P

from balcap_jax.errors import UserError
from balcap_jax.models.llava import Llava
from balcap_jax.models.qwen2_5_vl import Qwen2_5_VL
from balcap_jax.rl.train_state import make_optimizer, state_shardings
from balcap_jax.sharding import (
    RULES,
    batch_shards,
    constrain_batch,
    make_mesh,
    matching_rules,
    param_shardings,
    path_name,
    shard_batch,
)


def abstract_params(**top) -> dict:
    return jax.eval_shape(Qwen2_5_VL(tiny.config(**top)).init, jax.random.key(0))


# Untied, and with every bias a decoder of this family can have.
BIASED = tiny_llava.config(text={"attention_out_bias": True, "mlp_bias": True})
FAMILIES = {
    "qwen2_5_vl tied": Qwen2_5_VL(tiny.config(tie_word_embeddings=True)),
    "qwen2_5_vl untied": Qwen2_5_VL(tiny.config(tie_word_embeddings=False)),
    "llava tied": Llava(tiny_llava.config(tie_word_embeddings=True)),
    "llava biased": Llava(BIASED),
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
        if re.search("/(layers|blocks)/", path_name(path)) and len(rules[0]):
            assert rules[0][0] is None  # the stack of layers is never sharded


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
    shardings = state_shardings(mesh, abstract_params(), make_optimizer(learning_rate=1e-3))
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


def test_constrain_batch_follows_the_mesh_in_context():
    def constrained(x):
        return constrain_batch(jnp.zeros((2, 8)) + x, axis=1)

    assert jax.jit(constrained)(1.0).sharding.device_set == {jax.devices()[0]}
    with jax.set_mesh(make_mesh()):
        assert jax.jit(constrained)(1.0).addressable_shards[0].data.shape == (2, 1)
