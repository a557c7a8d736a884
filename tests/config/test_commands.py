"""Settings: each mistake is one sentence with its remedy, nothing is lost on the way to a file."""

import ast
import dataclasses
import inspect
import json
import textwrap
from pathlib import Path

import jaxtyping
import pytest

import balcap_jax.config.commands as rooms
from balcap_jax.config import rivals as rival_rooms
from balcap_jax.config.base import Settings, from_dict, merged, to_dict
from balcap_jax.config.commands import CaptionConfig, ScenesConfig, SFTConfig, TrainConfig
from balcap_jax.config.evaluation import EvalAllConfig
from balcap_jax.config.files import load_run, load_toml, resume_conflicts
from balcap_jax.config.judge import AuditConfig, JudgeConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.rivals import _OF_VERDICTS
from balcap_jax.config.sections import (
    DataConfig,
    DistConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RLConfig,
    RolloutConfig,
)
from balcap_jax.errors import UserError

ROOT = Path(__file__).parents[2]
PACKAGE = Path(rooms.__file__).parents[1]


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (RolloutConfig, {"group_size": 1}, "set rollout.group_size 2 or more"),
        (RolloutConfig, {"max_new_tokens": 0}, "must be at least 1"),
        (RolloutConfig, {"temperature": 0.0}, "must be above 0"),
        (RolloutConfig, {"top_p": 0.0}, "above 0 and at most 1"),
        (RolloutConfig, {"top_p": 1.1}, "above 0 and at most 1"),
        (RewardConfig, {"tau_l": 2.0}, "must be below reward.tau_u=2.0"),
        (RewardConfig, {"tau_l": 3.0}, "must be below reward.tau_u=2.0"),
        (RewardConfig, {"tau_l": -1.0}, "must be at least 0"),
        (RewardConfig, {"tau_u": float("nan")}, "must be a finite number"),
        (RewardConfig, {"tau_u": float("inf")}, "must be a finite number"),
        (
            RewardConfig,
            {"names": ["presicion", "recall", "linguistic"]},
            "did you mean precision?",
        ),
        (RewardConfig, {"names": ["recall", "recall", "linguistic"]}, "names a reward twice"),
        (RewardConfig, {"names": []}, "is empty"),
        (RewardConfig, {"weights": [1, 1]}, "set reward.weights 1 1 1"),
        (RewardConfig, {"weights": [1, 1, -1]}, "finite numbers of at least 0"),
        (RewardConfig, {"weights": [1, 1, float("inf")]}, "holds inf, which must be a finite"),
        (RewardConfig, {"weights": [0, 0, 0]}, "all 0"),
        (
            RewardConfig,
            {"names": ["precision"], "weights": [1], "length_control": "mask"},
            "set reward.length_control none",
        ),
        (
            RewardConfig,
            {"length_control": "none", "mask_mode": "drop"},
            "has no effect with reward.length_control='none'",
        ),
        (RewardConfig, {"linear_coefficient": 0.1}, "set reward.length_control linear"),
        (JudgeConfig, {"max_failure_share": 1.5}, "a share from 0 to 1"),
        (JudgeConfig, {"failure_window": 0}, "must be at least 1"),
        (JudgeConfig, {"model": "m"}, "has no effect with judge.kind='auto'"),
        (JudgeConfig, {"kind": "scene", "model": "m"}, "has no effect with judge.kind='scene'"),
        (JudgeConfig, {"kind": "lexical", "timeout": 1.0}, "set judge.kind llm"),
        (JudgeConfig, {"kind": "llm", "base_url": "localhost:8000"}, "must be a URL"),
        (JudgeConfig, {"kind": "llm", "base_url": "http://me:pw@host/v1"}, "judge.key_env names"),
        (JudgeConfig, {"kind": "llm", "base_url": "http://host/v1?key=a"}, "judge.key_env names"),
        (JudgeConfig, {"kind": "llm", "timeout": 0.0}, "must be above 0"),
        (RolloutConfig, {"overlap_steps": 5}, "must be one of 0, 1, 2, 3, 4"),
        (RewardConfig, {"length_unit": "letters"}, "must be one of words, tokens"),
        (RLConfig, {"advantage": "gdop"}, "did you mean gdpo?"),
        (RLConfig, {"advantage": "trl", "eps": 0.1}, "has no effect with rl.advantage='trl'"),
        (RLConfig, {"advantage": "grpo", "whiten": False}, "set rl.advantage gdpo"),
        (RLConfig, {"grpo_scale": "none"}, "set rl.advantage grpo"),
        (RLConfig, {"ddof": 2}, "must be one of 0, 1"),
        (RLConfig, {"eps": 0.0}, "must be above 0"),
        (RLConfig, {"clip_low": 1.0}, "must lie between 0 and 1"),
        (RLConfig, {"clip_high": 0.0}, "must be above 0"),
        (RLConfig, {"kl_coef": -0.1}, "must be at least 0"),
        (RLConfig, {"updates_per_rollout": 0}, "must be at least 1"),
        (OptimConfig, {"learning_rate": 0.0}, "must be above 0"),
        (OptimConfig, {"b2": 1.0}, "at least 0 and below 1"),
        (OptimConfig, {"warmup_steps": -1}, "must be at least 0"),
        (MeshConfig, {"tensor": 0}, "must be -1 or at least 1"),
        (MeshConfig, {"fsdp": -1}, "only one axis can take the rest"),
        (EvaluationConfig, {"temperature": -1.0}, "must be at least 0"),
        (TrainConfig, {"steps": 0}, "must be at least 1"),
        (TrainConfig, {"seed": -1}, "at least 0 and below"),
        (TrainConfig, {"name": "a/b"}, "put the path into out"),
        (TrainConfig, {"name": ""}, "the name of one folder"),
        (TrainConfig, {"name": ".."}, "the name of one folder"),
        (TrainConfig, {"model": {"path": "scratch"}}, "run `balcap sft` first"),
        (
            TrainConfig,  # 6 images in 4 parts: the next multiple is 8
            {"prompts_per_step": 6, "rl": {"micro_batches": 4}},
            "set prompts_per_step 8",
        ),
        (
            TrainConfig,
            {"steps": 5, "optim": {"schedule": "cosine", "warmup_steps": 5}},
            "must be above optim.warmup_steps=5",
        ),
        (TrainConfig, {"loggers": ["wandb", "tensorbord"]}, "did you mean tensorboard?"),
        (TrainConfig, {"loggers": ["mlflow"]}, "known are tensorboard, wandb."),
        (TrainConfig, {"loggers": ["wandb", "wandb"]}, "names a logger twice"),
        (SFTConfig, {"batch_size": 0}, "must be at least 1"),
        (TrainConfig, {"profile": [1, 2, 3]}, "must be one step, or the first and the last"),
        (TrainConfig, {"profile": [0, 2]}, "must hold steps from 1 on"),
        (SFTConfig, {"profile": [-3]}, "must hold steps from 1 on"),
        (SFTConfig, {"profile": [5, 4]}, "must hold steps from 1 on, the first before the last"),
        (TrainConfig, {"steps": 9, "profile": [8, 10]}, "must lie within steps=9; name steps up"),
    ],
)
def test_bad_values_say_value_rule_and_remedy(kind, values, said, monkeypatch):
    # The type check of the tests would refuse an unknown choice before the settings see it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError) as error:
        from_dict(kind, values, source="test.toml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_values_are_checked_however_settings_are_made():
    with pytest.raises(UserError, match="rollout.group_size=1 must be at least 2"):
        RolloutConfig(group_size=1)
    with pytest.raises(UserError, match="temperature=-1.0 must be at least 0"):
        CaptionConfig(images=(Path("a.png"),), temperature=-1.0)
    with pytest.raises(UserError, match="images=.. is empty"):
        CaptionConfig(images=())
    with pytest.raises(UserError, match="count=0 must be at least 1"):
        ScenesConfig(out=Path("a"), count=0)


# Dictionaries and files -------------------------------------------------------------------------


def every_field(config, room=""):
    """("rl.eps", value) for every field, rooms left out."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Settings):
            yield from every_field(value, f"{room}{item.name}.")
        else:
            yield room + item.name, value


OF_FILES = ("format", "images", "boxes", "split", "heldout_path", "heldout_split")
OTHER = {
    "name": "other",
    "out": Path("elsewhere"),
    "loggers": ("wandb", "tensorboard"),
    "profile": (3, 5),
    "model.path": "folder",
    "model.revision": "v2",
    "model.dtype": "bfloat16",
    "model.attention": "xla",
    "model.remat": "full",
    "model.residual": "bfloat16",
    "mesh.gather": "update",
    "data.path": "a.jsonl",
    **{f"data.{name}": "a" for name in OF_FILES if name != "format"},
    "data.format": "coco",
    "reward.names": ("recall", "linguistic", "precision"),
    "reward.functions": ("mine.py:brevity",),
    "reward.rivals": ("qa_utility",),
    "reward.failure": "zero",
    "reward.qa.file": "questions.jsonl",
    "reward.qa_length.zero": 4096,
    "reward.qa_length.full": 1024,
    "reward.tau_l": 0.75,
    "reward.weights": (3.0, 2.0, 1.0),
    "reward.length_control": "linear",
    "reward.mask_mode": "drop",
    "reward.length_unit": "tokens",
    "rl.advantage": "grpo",
    "rl.ddof": 0,
    "rl.loss_normaliser": "grpo",
    "optim.schedule": "linear",
    "optim.b1": 0.5,
    "optim.b2": 0.5,
    "mesh.data": 2,
    "rollout.top_p": 0.5,
    "rollout.overlap_steps": 1,
    "judge.kind": "lexical",
    "judge.max_failure_share": 0.25,
    "judge.base_url": "https://elsewhere/v1",
    "judge.model": "other",
    "judge.key_env": "OTHER_KEY",
    "judge.calls": "separate",
    "judge.order": "caption_first",
    "judge.structured": "none",
    "judge.cache": Path("other.sqlite"),
    "judge.dtype": "float32",
    "judge.fluency": "policy",
    "model.train": ("projector",),
    "model.lora.rank": 8,
    "model.lora.start": "adapter",
    "optim.rates": ("projector=1e-3",),
    **{f"study.{name}": ("recall=1",) for name in ("squeeze", "noise", "levels", "sparse")},
    "rl.clip_low": 0.3,
    "dist.coordinator": "b:1",
    "dist.process": 1,
}
OF_JUDGES = {name: value for name, value in OTHER.items() if name.startswith("judge.")}
OTHER |= {name.replace("judge", "audit"): value for name, value in OF_JUDGES.items()}
OTHER |= {f"reward.{name}": value for name, value in OF_JUDGES.items()}
OTHER |= {"reward.judge.kind": "scene"}
OTHER |= {
    "reward.rubric.file": "rubrics.jsonl",
    "reward.rubric.scene": "all",
    "reward.claims.judges": ("a", "b"),
    "reward.claims.vote": "mean",
    "reward.claim_diff.mode": "a_only",
    "reward.claim_diff.severity": "judge",
}
SKIPPED = {
    *("reward.linear_coefficient", "rl.grpo_scale", "rl.grpo_weights", "rl.grpo_weight_steps"),
    "study.centre",
    *(f"model.lora.{name}" for name in ("alpha", "rslora", "dropout", "targets")),
    # set with the choice that reads them; and what no judge of rivals reads
    *(f"reward.judge.{name}" for name in _OF_VERDICTS),
}


def changed(config, name, value):
    """`config` with the field `name` ("rl.eps") set to `value`."""
    room, _, field = name.rpartition(".")
    if "." in room:
        return merged(config, {name: value})
    if room == "data" and field in OF_FILES:
        config = dataclasses.replace(config, data=DataConfig(path="a.jsonl"))
    if not room:
        return dataclasses.replace(config, **{field: value})
    return dataclasses.replace(
        config, **{room: dataclasses.replace(getattr(config, room), **{field: value})}
    )


def other_value(name, value):
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    return value * 2 + 2


CHANGES = [
    (name, other_value(name, value))
    for name, value in every_field(TrainConfig())
    if name not in SKIPPED
]
# Most settings of judges are for this one.
ASKED = TrainConfig(judge=JudgeConfig(kind="llm", model="m"))
AUDITED = TrainConfig(audit=AuditConfig(kind="llm", model="m", every=5))
# The rest of them is for a policy that judges.
MODEL = TrainConfig(
    judge=JudgeConfig(kind="model", model="m"),
    audit=AuditConfig(kind="model", model="m", every=5),
)


# The rooms of rewards of other methods are for these.
RIVAL = TrainConfig.of({"reward.rivals": ["qa_utility_length", "rubric", "claims", "claim_diff"]})


# Which process this is has a meaning only where an address is given.
NAMED = TrainConfig(dist=DistConfig(coordinator="a:1", processes=6))


def start(name):
    """The settings that a change of `name` starts from."""
    room, _, field = name.partition(".")
    if name.startswith("reward.judge.") and name != "reward.judge.kind":
        return merged(RIVAL, {"reward.judge.kind": "llm", "reward.judge.model": "m"})
    rooms = ("qa", "qa_length", "judge", "rubric", "claims", "claim_diff")
    if name.startswith(tuple(f"reward.{r}." for r in rooms)) or name == "reward.failure":
        return RIVAL
    if name == "model.residual":
        return TrainConfig(model=ModelConfig(dtype="bfloat16"))
    if room in ("judge", "audit") and field in (
        "dtype", "fluency", "images_per_pass", "own_policy",
    ):  # fmt: skip
        return MODEL
    return {"judge": ASKED, "audit": AUDITED, "dist": NAMED}.get(room, TrainConfig())


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0])
def test_each_field_survives_json(change):
    if change == ("judge.kind", "lexical"):
        config = TrainConfig(judge=JudgeConfig(kind="lexical"))
    elif change == ("audit.kind", "lexical"):
        config = TrainConfig(audit=AuditConfig(kind="lexical", every=5))
    else:
        config = changed(start(change[0]), *change)
    assert config != start(change[0])
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config))), source="x") == config


def test_what_is_missing_keeps_its_default():
    config = from_dict(TrainConfig, {"rl": {"eps": 1}}, source="x")
    assert config.rl.eps == 1.0
    assert isinstance(config.rl.eps, float)
    assert changed(config, "rl.eps", 1e-4) == TrainConfig()
    # A room of SFTConfig keeps SFTConfig's defaults, not the room's own.
    assert from_dict(SFTConfig, {"model": {"dtype": "bfloat16"}}, source="x").model == ModelConfig(
        path="scratch", dtype="bfloat16", train_vision=True
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sede": 1}, "there is no setting sede; did you mean seed?"),
        ({"rollout": {"gropu_size": 4}}, "rollout.gropu_size; did you mean rollout.group_size?"),
        ({"rolout": {"group_size": 4}}, "rolout.group_size; did you mean rollout.group_size?"),
        ({"rolout": {}}, "there is no setting rolout; did you mean model.lora.dropout?"),
        ({"rollout": 4}, "rollout=4 must be a RolloutConfig; make one, write a table in a file"),
        ({"seed": True}, "seed=True must be a whole number, such as the default 0; change seed."),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"seed": {}}, "seed={} must be a whole number"),
        ({"rl": {"eps": "small"}}, "rl.eps='small' must be a number"),
        ({"rl": {"whiten": 1}}, "rl.whiten=1 must be true or false"),
        ({"name": 3}, "name=3 must be a text"),
        ({"out": 3}, "out=3 must be a path"),
        ({"reward": {"names": "recall"}}, "must be a list"),
        ({"reward": {"weights": [1, 1, "a"]}}, "holds 'a', which must be a number; change reward"),
        ({"rl": {"advantage": 3}}, "rl.advantage=3 must be one of gdpo, grpo, rloo"),
        # Files are not written in flags.
        ({"rollout": {"group_size": 1}}, "one another; set rollout.group_size 2 or more."),
    ],
)
def test_bad_dictionaries_name_source_and_field(values, said):
    with pytest.raises(UserError) as error:
        from_dict(TrainConfig, values, source="my.toml")
    assert str(error.value).startswith("my.toml: ")
    assert said in str(error.value)
    assert "--" not in str(error.value)


def test_toml(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('steps = 3\n[rl]\nadvantage = "grpo"\n[reward]\nweights = [1, 2, 0.5]\n')
    config = load_toml(TrainConfig, path)
    assert (config.steps, config.rl.advantage) == (3, "grpo")
    assert config.reward.weights == (1.0, 2.0, 0.5)

    path.write_text("steps =")
    with pytest.raises(UserError, match="a.toml is not TOML"):
        load_toml(TrainConfig, path)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="a.toml is not TOML"):
        load_toml(TrainConfig, path)
    with pytest.raises(UserError, match="missing.toml cannot be read .No such file"):
        load_toml(TrainConfig, tmp_path / "missing.toml")


CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_in_configs_is_a_changed_default(path):
    kinds = {"sft": SFTConfig, "eva": EvalAllConfig}
    config = load_toml(kinds.get(path.name[:3], TrainConfig), path)
    assert config != type(config)()


def test_the_settings_of_a_run(tmp_path):
    config = changed(TrainConfig(seed=4), "rl.advantage", "verl")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert load_run(tmp_path) == config
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is not a JSON object"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="nowhere is not a run"):
        load_run(tmp_path / "nowhere")


# Resume -----------------------------------------------------------------------------------------

MAY_CHANGE = {
    "name",
    "out",
    "steps",
    "log_every",
    "sample_every",
    "loggers",
    "profile",
    "model.attention",
    "model.remat",
    "data.max_bad_images",
    "data.workers",
    "dist.coordinator",
    "dist.processes",
    "dist.process",
    "dist.start_timeout",
    "dist.lost_after",
    "judge.max_failure_share",
    "judge.failure_window",
    "judge.base_url",
    "judge.key_env",
    "judge.concurrency",
    "judge.requests_per_minute",
    "judge.tokens_per_minute",
    "judge.timeout",
    "judge.retries",
    "judge.backoff",
    "judge.deadline",
    "judge.cache",
    "judge.replay",
    "judge.prompt_price",
    "judge.completion_price",
    "rl.micro_batches",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.gather",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.parameters_every",
    "checkpoint.keep_best",
    "evaluation.every",
    "evaluation.batch_size",
}
# The second judge may move as the first one may.
OF_JUDGES_TOO = {name for name in MAY_CHANGE if name.startswith("judge.")}
MAY_CHANGE |= {name.replace("judge.", "audit.") for name in OF_JUDGES_TOO}
MAY_CHANGE |= {f"reward.{name}" for name in OF_JUDGES_TOO}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0])
def test_what_may_change_when_a_run_is_resumed(change):
    name, value = change
    of_files = name.removeprefix("data.") in OF_FILES
    old = TrainConfig(data=DataConfig(path="a.jsonl")) if of_files else start(name)
    if name == "judge.kind":
        old = TrainConfig()
    if name == "audit.kind":
        old = TrainConfig(audit=AuditConfig(every=5))
    conflicts = resume_conflicts(old, changed(old, name, value))
    if name in MAY_CHANGE:
        assert conflicts == []
    else:
        assert len(conflicts) == 1
        assert conflicts[0].startswith(f"{name} (")


def test_a_conflict_shows_both_values():
    assert resume_conflicts(TrainConfig(seed=1), TrainConfig(seed=2)) == ["seed (1 -> 2)"]


def test_a_run_of_before_groups_goes_on_without_them(tmp_path):
    values = to_dict(TrainConfig())
    del values["data"]["group_by_length"]
    (tmp_path / "config.json").write_text(json.dumps(values, default=str))
    old = load_run(tmp_path)
    assert old.data.group_by_length == 0 != DataConfig().group_by_length
    assert resume_conflicts(old, TrainConfig()) == ["data.group_by_length (0 -> 32)"]


def test_steps_are_fixed_where_the_learning_rate_depends_on_them():
    old = TrainConfig(steps=10, optim=OptimConfig(schedule="cosine"))
    assert resume_conflicts(old, dataclasses.replace(old, steps=20)) == ["steps (10 -> 20)"]


# Use --------------------------------------------------------------------------------------------


def reads():
    """(owner, field) of every attribute that the package reads outside the settings themselves.

    The owner is the name before the dot: `config.rl.eps` and `rl.eps` both give ("rl", "eps").
    `to_dict(config.mesh)` reads every field of the room and gives ("mesh", "*"). What a property of
    a room reads is read where the property is.
    """
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "config"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add((last_name(node.value), node.attr))
            if isinstance(node, ast.Call) and last_name(node.func) == "to_dict":
                found.add((last_name(node.args[0]), "*"))
    for kind in vars(rooms).values():
        for name, value in vars(kind).items() if isinstance(kind, type) else ():
            if isinstance(value, property) and (room := kind.room.rstrip(".").rpartition(".")[2]):
                uses = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value.fget))))
                attributes = {(room, node.attr) for node in uses if isinstance(node, ast.Attribute)}
                found |= attributes if (room, name) in found else set()
    return found


def last_name(node):
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def test_every_field_is_read_outside_the_settings():
    found = reads()
    commands = [
        kind for kind in vars(rooms).values() if dataclasses.is_dataclass(kind) and not kind.room
    ]
    every_room = [*vars(rooms).values(), *vars(rival_rooms).values()]
    rooms_of = [kind for kind in every_room if getattr(kind, "room", "")]
    unread = [
        f"{owner}.{item.name}"
        for kind, owner in [(kind, "config") for kind in commands]
        + [(kind, kind.room.rstrip(".").rpartition(".")[2]) for kind in rooms_of]
        for item in dataclasses.fields(kind)
        if (owner, item.name) not in found and (owner, "*") not in found
    ]
    assert unread == []
