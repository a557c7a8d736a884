"""What does not train is kept in the dtype of its matmuls, and no number of a run is another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_llava
from tiny_update import BANNED, ONE, make_batch, optimizer

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.sections import ModelConfig
from balcap_jax.models.selection import leaf_paths
from balcap_jax.rl.train_state import init_state
from balcap_jax.rl.update import make_update
from balcap_jax.training.trained import param_shapes, trained_of

MODEL = ModelConfig(dtype="bfloat16")
NARROW = TrainConfig(model=MODEL)


def as_kept(config, policy, params):
    """The parameters as a run with these settings has them."""
    return jax.tree.map(lambda x, like: x.astype(like.dtype), params, param_shapes(config, policy))


@pytest.mark.parametrize("family", [tiny, tiny_llava], ids=["qwen2_5_vl", "llava"])
def test_image_features_are_the_same_to_the_bit(family):
    policy, params = family.policy(dtype=jnp.bfloat16)
    kept = as_kept(NARROW, policy, params)
    towers = [name for name in kept if name not in ("language_model", "lm_head")]
    for name in towers:
        paths = leaf_paths(kept[name])
        for path, leaf in zip(paths, jax.tree.leaves(kept[name]), strict=True):
            narrow = path.rpartition("/")[2] in ("weight", "embedding")
            assert leaf.dtype == ("bfloat16" if narrow else "float32"), path
    assert {x.dtype for x in jax.tree.leaves(kept["language_model"])} == {jnp.dtype("float32")}
    images = (tiny.prompts(2) if family is tiny else tiny_llava.prompts((1, 2))).images
    encode = jax.jit(policy.encode_images)
    expected = np.asarray(encode(params, images), np.float32)
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(np.asarray(encode(kept, images), np.float32), expected)


@pytest.mark.slow
@pytest.mark.long
def test_an_update_is_the_same_to_the_bit():
    """With features of its own, made of the frozen tower."""
    policy, params = tiny.policy(dtype=jnp.bfloat16)
    trained = trained_of(NARROW, policy)
    batch = make_batch()._replace(features=None)
    update = make_update(policy, optimizer(), ONE, banned_tokens=BANNED, trained=trained)
    results = []
    for start in (params, as_kept(NARROW, policy, params)):
        state, metrics = update(init_state(ONE, start, optimizer(), trained=trained), batch)
        results.append((state.params["language_model"], state.opt_state, metrics))
    assert metrics["grad_norm"] > 0
    tiny.assert_equal_trees(*results)
    moved = (
        state.params["language_model"]["norm"]["scale"] - params["language_model"]["norm"]["scale"]
    )
    assert np.abs(moved).max() > 0


def test_what_keeps_all_its_bits():
    policy, _ = tiny.policy(dtype=jnp.bfloat16)

    def dtypes(config, part="visual"):
        return {str(x.dtype) for x in jax.tree.leaves(param_shapes(config, policy)[part])}

    assert dtypes(NARROW) == {"float32", "bfloat16"}
    assert dtypes(TrainConfig()) == {"float32"}
    both = dataclasses.replace(MODEL, train_vision=True)
    assert dtypes(TrainConfig(model=both)) == {"float32"}
    assert dtypes(SFTConfig(model=MODEL)) == {"float32", "bfloat16"}
    # Written with more bits than matmuls read, and a tower that learns to see before the run.
    assert dtypes(SFTConfig(model=MODEL, save_dtype="float32")) == {"float32"}
    new = dataclasses.replace(MODEL, path="scratch")
    assert dtypes(SFTConfig(model=new)) == {"float32"}
