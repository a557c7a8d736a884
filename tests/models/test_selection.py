"""Leaves of `params` by the names of parts and by paths with wildcards."""

import jax
import pytest
import tiny
import tiny_llava

from balcap_jax.config.sections import OptimConfig
from balcap_jax.errors import UserError
from balcap_jax.models.families import make_policy
from balcap_jax.models.selection import (
    EVERYTHING,
    leaf_paths,
    overlaid,
    part_of,
    patterns_of,
    selects,
    trained_patterns,
    trains_vision,
)
from balcap_jax.rl.train_state import split_trainable

POLICIES = [make_policy(tiny.CONFIG), make_policy(tiny_llava.CONFIG)]


def shapes(policy):
    return jax.eval_shape(policy.init, jax.random.key(0))


@pytest.mark.parametrize(
    ("pattern", "path", "wanted"),
    [
        ("visual", "visual/merger/mlp/0/weight", True),
        ("visual", "visual_tower/weight", False),
        ("visual/merger/mlp/0/weight", "visual/merger/mlp/0/weight", True),
        ("merger", "visual/merger/mlp/0/weight", False),  # from the top
        ("*/merger", "visual/merger/mlp/0/weight", True),
        ("*/lora_?", "language_model/layers/mlp/up_proj/lora_A", True),
        ("*/mlp/*_proj", "language_model/layers/mlp/up_proj/bias", True),
        ("*", "lm_head/weight", True),
    ],
)
def test_a_pattern_matches_a_path_or_what_it_lies_in(pattern, path, wanted):
    assert selects([pattern], path) is wanted


@pytest.mark.parametrize("policy", POLICIES, ids=["qwen", "llava"])
def test_the_parts_are_all_of_a_policy_and_no_leaf_is_in_two(policy):
    for path in leaf_paths(shapes(policy)):
        held = [part for part, patterns in policy.parts.items() if selects(patterns, path)]
        assert len(held) == 1, path
        is_vision = selects(policy.vision_paths, path)
        assert is_vision == (held != ["decoder"]), path


@pytest.mark.parametrize("policy", POLICIES, ids=["qwen", "llava"])
@pytest.mark.parametrize("names", [["projector"], ["tower", "*/layers/mlp"], ["decoder"]])
def test_both_sides_of_a_split_make_the_whole_again(policy, names):
    params = tiny.random_params(policy)
    trained = trained_patterns(policy, names, train_vision=False)
    trainable, frozen = split_trainable(params, trained=trained)
    assert set(leaf_paths(trainable)).isdisjoint(leaf_paths(frozen))
    assert all(selects(trained, path) for path in leaf_paths(trainable))
    tiny.assert_equal_trees(overlaid(frozen, trainable), params)
    assert trains_vision(policy, params, trained) == (names != ["decoder"])


def test_part_of_leaves_no_empty_dicts():
    params = {"a": {"b": {"c": 1}, "d": 2}, "e": {"f": 3}}
    assert part_of(params, lambda path: path == "a/d") == {"a": {"d": 2}}
    assert overlaid({"a": {"d": 2}}, {"a": {"b": 5}}) == {"a": {"b": 5, "d": 2}}


def test_what_trains_by_default():
    policy = POLICIES[0]
    assert trained_patterns(policy, (), train_vision=False) == ("language_model", "lm_head")
    assert trained_patterns(policy, (), train_vision=True) == EVERYTHING
    # Names win: `train_vision` is for those who give none.
    assert trained_patterns(policy, ("projector",), train_vision=True) == ("visual/merger",)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("projecter", "did you mean projector?"),
        ("language_model/layer/mlp", "did you mean language_model/layers/mlp?"),
        ("nothing like it", "matches no path in it."),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(UserError) as error:
        patterns_of(POLICIES[0], ["decoder", name], setting="model.train")
    assert f"model.train holds {name!r}" in str(error.value)
    assert nearest in str(error.value)


def test_rates_of_parts_are_read():
    config = OptimConfig(rates=("projector=1e-3", "tower=2e-6"))
    assert config.by_part == (("projector", 1e-3), ("tower", 2e-6))


@pytest.mark.parametrize("bad", ["projector", "=1e-3", "tower=0", "tower=fast", "tower=inf"])
def test_rates_that_are_none_are_refused(bad):
    with pytest.raises(UserError, match="is no NAME=RATE"):
        OptimConfig(rates=(bad,))
    with pytest.raises(UserError, match="names a part twice"):
        OptimConfig(rates=("tower=1", "tower=2"))
