"""Numbers that no run can mean are one sentence, in every setting, before any use."""

import typing

import pytest

from balcap_jax.cli.bench import DeviceBenchFlags, LoadBenchFlags, StepBenchFlags, TrainerBenchFlags
from balcap_jax.cli.flags import parse
from balcap_jax.cli.main import main
from balcap_jax.cli.plan import PlanFlags
from balcap_jax.config.base import from_dict, names_of
from balcap_jax.config.commands import (
    CaptionConfig,
    ScenesConfig,
    ScoreConfig,
    SFTConfig,
    TrainConfig,
)
from balcap_jax.config.judge import CheckConfig, JudgeConfig, RecaptionConfig, UnitsConfig
from balcap_jax.config.sections import DistConfig, RolloutConfig
from balcap_jax.errors import UserError

# What has no default, and what other settings need to be read at all.
NEEDED = {
    TrainConfig: {},
    SFTConfig: {},
    CaptionConfig: {"images": ["a.png"]},
    ScoreConfig: {"input": "a.jsonl", "output": "b.jsonl"},
    ScenesConfig: {"out": "a"},
    UnitsConfig: {"data": "a.jsonl"},
    RecaptionConfig: {"data": "a.jsonl", "out": "b.jsonl"},
    CheckConfig: {"file": "a.jsonl"},
    PlanFlags: {"config": "a.toml"},
    LoadBenchFlags: {"folder": "a"},
    StepBenchFlags: {},
    TrainerBenchFlags: {},
    DeviceBenchFlags: {},
}
READ_WITH = {
    "judge": {"judge.kind": "llm", "judge.model": "m"},
    "audit": {"audit.kind": "llm", "audit.model": "m", "audit.every": 5},
    "dist": {"dist.coordinator": "a:1", "dist.processes": 6},
    "reward.qa": {"reward.rivals": ["qa_utility"]},
    "reward.qa_length": {"reward.rivals": ["qa_utility_length"]},
    "reward.judge": {
        "reward.rivals": ["qa_utility"],
        "reward.judge.kind": "llm",
        "reward.judge.model": "m",
    },
    "study": {"study.squeeze": ["recall=1"]},
    "rl": {"rl.advantage": "grpo", "rl.grpo_weights": "fixed"},
}
# Refused whatever they are, because nothing reads them.
REFUSED = ("reward.judge.images_per_pass",)
NUMBERS = [
    (kind, name, of)
    for kind in NEEDED
    for name, type_ in names_of(kind).items()
    for of in (int, float)
    if (type_ is of or type_ == tuple[of, ...]) and name not in REFUSED
]


def refusal(kind, name, value, of):
    """What is said of a value of one setting."""
    room, _, field = name.partition(".")
    nearest = name.rpartition(".")[0]
    values = {**NEEDED[kind], **READ_WITH.get(nearest, READ_WITH.get(room, {}))}
    if field == "images_per_pass":
        values |= {f"{room}.kind": "model"}
    many = typing.get_origin(names_of(kind)[name]) is tuple
    with pytest.raises(UserError) as error:
        from_dict(kind, values | {name: [of(value)] if many else of(value)})
    return str(error.value)


def test_there_are_numbers_of_every_command():
    assert len([name for kind, name, of in NUMBERS if kind is TrainConfig and of is int]) > 25
    assert {kind for kind, _, _ in NUMBERS} == set(NEEDED)


@pytest.mark.parametrize(
    ("kind", "name", "of"), NUMBERS, ids=[f"{kind.__name__}-{name}" for kind, name, _ in NUMBERS]
)
def test_absurd_numbers_are_one_sentence_that_names_the_setting(kind, name, of):
    huge = 10**20 if of is int else 1e300
    # And what 32 bits hold: nothing counts down.
    for value in (huge, -huge, -(2**31) + 1):
        said = refusal(kind, name, value, of)
        assert name in said
        assert " must " in said
        assert said.count("; ") == 1
        assert said.endswith(".")
        assert "\n" not in said
        assert "--" not in said
        assert len(said) < 300


@pytest.mark.parametrize(
    ("kind", "name", "largest"),
    [
        (TrainConfig, "prompts_per_step", 2**16),
        (TrainConfig, "rollout.group_size", 2**12),
        (TrainConfig, "rollout.max_new_tokens", 2**20),
        (TrainConfig, "rl.updates_per_rollout", 1024),
        (TrainConfig, "seed", 2**31 - 1),
        (TrainConfig, "data.workers", 1024),
        (TrainConfig, "data.heldout", 2**16),
        (TrainConfig, "dist.processes", 2**16),
        (TrainConfig, "dist.lost_after", 10**6),
        (TrainConfig, "evaluation.batch_size", 2**16),
        (TrainConfig, "judge.concurrency", 2**16),
        (TrainConfig, "judge.deadline", 10**6),
        (TrainConfig, "judge.max_tokens", 2**20),
        (SFTConfig, "batch_size", 2**16),
        (SFTConfig, "captions_per_image", 2**12),
        (SFTConfig, "max_new_tokens", 2**20),
        (SFTConfig, "seed", 2**31 - 1),
        (CaptionConfig, "max_new_tokens", 2**20),
        (CaptionConfig, "seed", 2**31 - 1),
        (ScoreConfig, "batch_size", 2**16),
        (ScenesConfig, "count", 10**7),
        (ScenesConfig, "seed", 2**31 - 1),
        (PlanFlags, "text_tokens", 2**20),
    ],
)
def test_what_is_too_large_to_be_meant(kind, name, largest):
    values = {**NEEDED[kind], **READ_WITH.get(name.partition(".")[0], {})}
    made = from_dict(kind, values | {name: largest})
    for part in name.split("."):
        made = getattr(made, part)
    assert made == largest
    assert refusal(kind, name, largest + 1, int).startswith(f"{name}={largest + 1}")


def test_images_are_not_enlarged_beyond_memory():
    with pytest.raises(UserError, match="data.min_pixels=16777217 must be at most 16777216"):
        TrainConfig.of({"data.min_pixels": 2**24 + 1, "data.max_pixels": 2**30})


@pytest.mark.parametrize("port", ["0", "65536", "99999", "1" + "0" * 20, "1" * 5000, "-1", "", "²"])
def test_ports(port):
    with pytest.raises(UserError, match="must be HOST:PORT"):
        DistConfig(coordinator=f"a:{port}")
    if port:  # a URL has a port of its own
        with pytest.raises(UserError, match="a port from 1 to 65535"):
            JudgeConfig(kind="llm", base_url=f"http://a:{port}/v1")


# Whom a mistake is told ---------------------------------------------------------------------------


def test_python_is_told_settings_and_the_command_line_flags(capsys):
    with pytest.raises(UserError) as error:
        TrainConfig(prompts_per_step=0)
    assert (
        str(error.value) == "prompts_per_step=0 must be at least 1; set prompts_per_step 1 or more."
    )
    with pytest.raises(UserError) as error:
        RolloutConfig(group_size=1)
    assert str(error.value).endswith("; set rollout.group_size 2 or more.")
    with pytest.raises(UserError) as error:
        parse(ScenesConfig, ["a", "--count", "0"], "scenes")
    assert str(error.value) == "count=0 must be at least 1; set --count 1 or more."
    assert main(["train", "--rollout.group-size", "1"]) == 2
    assert capsys.readouterr().err.endswith("; set --rollout.group-size 2 or more.\n")
    # The command line is over.
    with pytest.raises(UserError) as error:
        ScenesConfig(out="a", count=0)
    assert "--" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "value", "told"),
    [
        (TrainConfig, "rollout.temperature", 1e-300, "must be 0 or at least 1.2e-38 in size"),
        (TrainConfig, "rollout.temperature", 1e-20, "must be at least 1e-06"),
        (CaptionConfig, "temperature", 1e-20, "must be 0, for the likeliest token, or at least"),
        (TrainConfig, "evaluation.temperature", 1e-20, "must be 0, for the likeliest token, or"),
        (TrainConfig, "data.path", " ", "names no data"),
        (TrainConfig, "model.path", "", "names no policy"),
        (TrainConfig, "out", "", "must be a path, and is empty"),
        (ScoreConfig, "input", "a\0b", "holds a zero byte"),
        (TrainConfig, "data.path", "a\0b", "must be a text without a zero byte"),
    ],
)
def test_what_is_nothing_on_a_device_or_a_disk_is_refused(kind, name, value, told):
    with pytest.raises(UserError, match=told):
        from_dict(kind, {**NEEDED[kind], name: value})


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data.path", "x" * 5000],
        ["train", "--config", "x" * 5000],
        ["score", __file__, "x" * 5000],
        ["export", "x" * 5000, "out"],
        ["scenes", "x" * 5000],
        ["plan", "x" * 5000],
        ["data", "check", "x" * 5000],
    ],
    ids=lambda arguments: " ".join(arguments)[:12],
)
def test_a_path_that_no_system_takes_is_one_short_sentence(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("balcap: error: ")
    assert "File name too long" in told
    assert len(told) < 300
