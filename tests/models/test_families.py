"""The record of each family says what its policy is made of."""

import jax
import pytest
import tiny
import tiny_llava

from balcap_jax.models.families import FAMILIES, family_of, layout_of
from balcap_jax.parallel.sharding import path_name

CONFIGS = {"qwen2_5_vl": tiny.CONFIG, "llava": tiny_llava.CONFIG}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_record_names_what_the_parameters_are(model_type):
    config = CONFIGS[model_type]
    family = FAMILIES[model_type]
    assert family_of(config) is family
    assert type(layout_of(config)) is family.layout
    policy = family.policy(config)
    assert type(policy.layout) is family.layout
    params = jax.eval_shape(policy.init, jax.random.key(0))
    # All that makes image features, and nothing else: the rest is the decoder and its head.
    made = {name.partition(".")[0] for name in policy.vision_definitions}
    assert set(family.vision_paths) == made == set(params) - {"language_model", "lm_head"}
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for target in family.target_modules:
        assert leaves[f"{target}/weight"].ndim == 3, target  # a matmul per stacked layer
    in_decoder = {
        name.removesuffix("/weight")
        for name, leaf in leaves.items()
        if name.startswith("language_model/layers/") and leaf.ndim == 3
    }
    assert set(family.target_modules) == in_decoder
