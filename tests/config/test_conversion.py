"""Types of settings: what Python, dictionaries and flags may give, and what is refused."""

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.config.base import Settings
from balcap_jax.config.commands import CaptionConfig, SFTConfig, TrainConfig
from balcap_jax.config.conversion import Text, UnfitError, converted
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import OptimConfig, RLConfig, RolloutConfig
from balcap_jax.errors import UserError


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, int, 3),
        (np.int64(3), int, 3),
        (jnp.int32(3), int, 3),
        (Text("-3"), int, -3),
        (3, float, 3.0),
        (np.float32(0.5), float, 0.5),
        (np.int32(2), float, 2.0),
        (Text("1e-6"), float, 1e-6),
        (np.bool_(False), bool, False),
        ("a", str, "a"),
        (np.str_("a"), str, "a"),
        (Text("a"), str, "a"),
        ("a/b", Path, Path("a/b")),
        (PurePosixPath("a"), Path, Path("a")),
        (Text("a"), Path | None, Path("a")),
        (None, Path | None, None),
        (Text("None"), Path | None, None),
        ([1, 2.5], tuple[float, ...], (1.0, 2.5)),
        (np.array([1, 2]), tuple[int, ...], (1, 2)),
        ((), tuple[str, ...], ()),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([Text("a")], tuple[Path, ...], (Path("a"),)),
        (Text("1"), Literal[0, 1], 1),
        (np.int64(1), Literal[0, 1], 1),
        ("b", Literal["a", "b"], "b"),
        (Text("3"), int | str, 3),
        ("c", int | str, "c"),
    ],
)
def test_what_fits_becomes_plain(value, kind, expected):
    found = converted(value, kind)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(expected, tuple):
        assert [type(item) for item in found] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("value", "kind", "rule"),
    [
        ("5", int, "must be a whole number"),
        (5.0, int, "must be a whole number"),
        (True, int, "must be a whole number"),
        (np.bool_(True), int, "must be a whole number"),
        (None, int, "must be a whole number"),
        (Text("5.5"), int, "must be a whole number"),
        ("5", float, "must be a number"),
        (True, float, "must be a number"),
        (1j, float, "must be a number"),
        (math.nan, float, "must be a finite number"),
        (np.float32(np.inf), float, "must be a finite number"),
        (10**400, float, "must be a finite number"),
        (Text("inf"), float, "must be a finite number"),
        (math.inf, float | None, "must be a finite number"),
        ([1.0, -math.inf], tuple[float, ...], "holds -inf, which must be a finite number"),
        (1, bool, "must be true or false"),
        ("yes", bool, "must be true or false"),
        (3, str, "must be a text"),
        (b"a", str, "must be a text"),
        (3, Path, "must be a path"),
        ("ab", tuple[str, ...], "must be a list"),
        ({"a"}, tuple[str, ...], "must be a list"),
        ([1], tuple[int, int], "must be a list of 2"),
        ([1, True], tuple[int, ...], "holds True, which must be a whole number"),
        (True, Literal[0, 1], "must be one of 0, 1"),
        (1.0, Literal[0, 1], "must be one of 0, 1"),
        ("c", Literal["a", "b"], "must be one of a, b"),
        ([["a"]], tuple[Literal["a"], ...], "holds ['a'], which must be one of a"),
        (1.5, int | str, "must be a whole number or must be a text"),
    ],
)
def test_what_does_not_fit_names_the_rule(value, kind, rule):
    with pytest.raises(UnfitError) as error:
        converted(value, kind)
    assert error.value.rule == rule


def test_settings_made_in_python_are_checked_and_plain():
    config = TrainConfig(
        steps=np.int64(5),
        out="elsewhere",
        optim=OptimConfig(learning_rate=np.float64(1e-3), weight_decay=0),
        reward=RewardConfig(weights=[1, 1, 2], names=["precision", "recall", "linguistic"]),
    )
    assert type(config.steps) is int
    assert config.out == Path("elsewhere")
    assert type(config.optim.learning_rate) is float
    assert type(config.optim.weight_decay) is float
    assert config.reward.weights == (1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: TrainConfig(steps="5"),
            "steps='5' must be a whole number, such as the default 100; change steps.",
        ),
        (
            lambda: RolloutConfig(group_size=8.0),
            "rollout.group_size=8.0 must be a whole number, such as the default 8; change "
            "rollout.group_size.",
        ),
        (
            lambda: RLConfig(whiten="no"),
            "rl.whiten='no' must be true or false, such as the default True; change rl.whiten.",
        ),
        (
            lambda: TrainConfig(rollout={"group_size": 4}),
            "rollout={'group_size': 4} must be a RolloutConfig; make one, write a table in a file, "
            "or give a dictionary to RolloutConfig.of.",
        ),
        (
            lambda: RewardConfig(weights=(1.0, 1.0, math.inf)),
            "reward.weights=(1.0, 1.0, inf) holds inf, which must be a finite number; change "
            "reward.weights.",
        ),
        (
            lambda: CaptionConfig(images="a.png"),
            "images='a.png' must be a list; write [...] around it.",
        ),
    ],
)
def test_wrong_types_are_one_sentence(make, sentence):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == sentence


def test_long_values_are_shown_in_short():
    with pytest.raises(UserError) as error:
        TrainConfig(steps="9" * 1000)
    assert len(str(error.value)) < 200


# Settings.of ------------------------------------------------------------------------------------


def test_of_takes_dotted_names_and_nested_dictionaries():
    config = TrainConfig.of(
        {
            "steps": 200,
            "rollout.group_size": 4,
            "optim.learning_rate": 1e-6,
            "out": "runs",
            "rollout": {"temperature": 0.5},
            "rl": RLConfig(kl_coef=0.1),
        }
    )
    assert config == TrainConfig(
        steps=200,
        rollout=RolloutConfig(group_size=4, temperature=0.5),
        optim=OptimConfig(learning_rate=1e-6),
        rl=RLConfig(kl_coef=0.1),
    )
    assert TrainConfig.of({}) == TrainConfig()
    assert TrainConfig.of({"rollout": {}}) == TrainConfig()
    # A room keeps the defaults of its command.
    assert SFTConfig.of({"model.dtype": "bfloat16"}).model.path == "scratch"
    assert RolloutConfig.of({"group_size": 3}) == RolloutConfig(group_size=3)
    assert CaptionConfig.of({"images": ["a.png"]}) == CaptionConfig(images=(Path("a.png"),))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sede": 1}, "there is no setting sede; did you mean seed?"),
        ({"group_size": 8}, "there is no setting group_size; did you mean rollout.group_size?"),
        ({"rollout.gruop_size": 8}, "did you mean rollout.group_size?"),
        ({"rollout.group-size": 8}, "did you mean rollout.group_size?"),
        ({"rollout": {"n": 8}}, "rollout.n, which is rollout.group_size here."),
        ({"beta": 0.1}, "there is no setting beta, which is rl.kl_coef here."),
        ({"epsilon": 0.1}, "rl.clip_low here (the upper bound is rl.clip_high)."),
        ({"use_vllm": True}, "there is no setting use_vllm: captions are sampled by the policy"),
        ({"xyzzy": 1}, "there is no setting xyzzy."),
        ({5: 1}, "there is no setting 5."),
        (
            {"rollout.group_size": 8, "rollout": {"group_size": 8}},
            "rollout.group_size is given twice",
        ),
        (
            {"rollout": RolloutConfig(), "rollout.top_p": 0.5},
            "rollout.top_p is given twice",
        ),
        ({"steps": "5"}, "steps='5' must be a whole number, such as the default 100; change steps"),
        ({"rollout.group_size": 1}, "set rollout.group_size 2 or more."),
        ({"judge.model": "m"}, "leave it at  or set judge.kind llm."),
    ],
)
def test_of_speaks_of_settings_not_of_flags(values, said):
    with pytest.raises(UserError) as error:
        TrainConfig.of(values)
    assert said in str(error.value)
    assert "--" not in str(error.value)


def test_what_has_no_default_is_asked_for():
    with pytest.raises(UserError, match="images is missing"):
        CaptionConfig.of({"seed": 1})


def test_a_dictionary_cannot_reach_behind_the_types():
    @dataclass(frozen=True)
    class Small(Settings):
        size: int = 1
        inner: RolloutConfig = RolloutConfig()

    with pytest.raises(UserError, match="inner=3 must be a RolloutConfig"):
        Small.of({"inner": 3})
    with pytest.raises(UserError, match="inner=OptimConfig.* must be a RolloutConfig"):
        Small(inner=OptimConfig())
