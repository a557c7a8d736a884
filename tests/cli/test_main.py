"""The command line: what it calls, and one sentence with exit code 2 for every mistake."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from balcap_jax.cli import main as cli
from balcap_jax.cli.flags import flags_of
from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import (
    AssembleConfig,
    CaptionConfig,
    ExportConfig,
    ModelCheckConfig,
    ScenesConfig,
    ScoreConfig,
    SFTConfig,
    TrainConfig,
)
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import RLConfig, RolloutConfig
from balcap_jax.errors import UserError

TRAINER = "balcap_jax.training.trainer"


@pytest.fixture
def calls(monkeypatch):
    """Replaces what the commands run; the list of (name, arguments) of the calls."""
    made = []

    def entry(name, result=None):
        def record(*args, **kwargs):
            made.append((name, args, kwargs))
            return result

        return record

    modules = {
        "training.trainer": {"train": entry("train")},
        "commands.caption": {"caption": entry("caption", [(Path("a.png"), "A red star.")])},
        "commands.score": {"score": entry("score", {"precision": 50.0}), "table": str},
        "training.sft": {"sft": entry("sft")},
        "reporting.report": {"report": entry("report", [Path("runs/a/curves.png")])},
        "bench.advantages": {"run_and_print": entry("bench")},
        "bench.load": {"run_and_print": entry("bench load")},
        "plan.workloads.random_folder": {
            "config_of": entry("config", "sizes"),
            "write_random_folder": entry("make"),
        },
        "commands.export": {"export": entry("export", "its checkpoint of step 7")},
        "commands.assemble": {"assemble": entry("assemble", "made"), "described": str},
        "commands.check": {
            "check": entry("check", types.SimpleNamespace(failed=False)),
            "table": lambda report: "the table",
            "block": lambda report: "the block",
        },
        "commands.scenes": {"write_scenes": entry("scenes", Path("folder/scenes.jsonl"))},
    }
    for name, functions in modules.items():
        module = types.ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, f"balcap_jax.{name}", module)
    return made


@pytest.fixture
def mistake(calls, capsys):
    """Runs a command that must fail; the sentence it printed."""

    def run(*arguments):
        code = cli.main(arguments)
        printed = capsys.readouterr()
        assert code == 2
        assert printed.out == ""
        assert calls == []
        assert printed.err.startswith("balcap: error: ")
        assert printed.err.count("\n") == 1
        assert printed.err.endswith("\n")
        return printed.err.removeprefix("balcap: error: ").rstrip()

    return run


# What is called ---------------------------------------------------------------------------------


def test_train_with_no_flags_is_the_default_run(calls):
    assert cli.main(["train"]) == 0
    assert calls == [("train", (TrainConfig(),), {"resume": None})]


def test_flags_set_typed_fields(calls):
    arguments = "train --rl.advantage grpo --rollout.group-size 4 --optim.learning-rate 1e-5"
    arguments += " --model.remat full --rl.no-whiten --name x --reward.weights 1 0.5 2"
    # grpo does not whiten, so leaving whitening on is what it accepts.
    assert cli.main(arguments.replace(" --rl.no-whiten", "").split()) == 0
    config = calls[0][1][0]
    assert config.rl == RLConfig(advantage="grpo")
    assert config.rollout == RolloutConfig(group_size=4)
    assert config.optim.learning_rate == 1e-5
    assert config.model.remat == "full"
    assert config.name == "x"
    assert config.reward.weights == (1.0, 0.5, 2.0)


def test_booleans_can_be_set_both_ways(calls):
    assert cli.main(["train", "--rl.no-whiten", "--model.train-vision"]) == 0
    assert cli.main(["train", "--rl.whiten", "--model.no-train-vision"]) == 0
    assert [args[0].rl.whiten for _, args, _ in calls] == [False, True]
    assert [args[0].model.train_vision for _, args, _ in calls] == [True, False]


def test_flags_override_the_config_file(calls, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("steps = 7\nseed = 1\n[rollout]\ngroup_size = 4\n")
    assert cli.main(["train", "--config", str(path), "--seed", "2"]) == 0
    assert cli.main(["train", "--seed=2", f"--config={path}"]) == 0
    expected = TrainConfig(steps=7, seed=2, rollout=RolloutConfig(group_size=4))
    assert [args for _, args, _ in calls] == [(expected,), (expected,)]


def test_flags_are_read_in_any_order_and_spelling(calls):
    assert cli.main(["caption", "--seed=1", "a.png", "--max_new_tokens", "5", "b.png"]) == 0
    (_, (config,), _), *_ = calls
    expected = CaptionConfig(images=(Path("a.png"), Path("b.png")), seed=1, max_new_tokens=5)
    assert config == expected
    assert cli.main(["train", "--mesh.data", "-1", "--steps", "3", "--steps", "4"]) == 0
    assert (calls[1][1][0].mesh.data, calls[1][1][0].steps) == (-1, 4)


def test_assemble(calls, capsys):
    arguments = "assemble --tower a --decoder b/c --projector mlp2x out --vision-feature-layer -3"
    assert cli.main(arguments.split()) == 0
    [(name, (config,), _)] = calls
    expected = AssembleConfig(out=Path("out"), tower="a", decoder="b/c", vision_feature_layer=-3)
    assert (name, config) == ("assemble", expected)
    assert capsys.readouterr().out == "out holds made\n"


def test_assemble_wants_its_parts(mistake):
    assert "name a folder with --decoder" in mistake("assemble", "--tower", "a", "out")


def test_check_prints_and_ends_with_1_where_a_line_fails(calls, capsys, monkeypatch):
    assert cli.main("check base --tokens 5 --judge.model m".split()) == 0
    (_, (config,), _), *_ = calls
    judge = JudgeConfig(kind="llm", model="m")
    assert config == ModelCheckConfig(model="base", tokens=5, judge=judge)
    printed = capsys.readouterr().out
    assert "the table" in printed
    assert printed.endswith("the block\n")
    module = sys.modules["balcap_jax.commands.check"]
    failed = types.SimpleNamespace(failed=True)
    monkeypatch.setattr(module, "check", lambda *_, **__: failed)
    assert cli.main(["check", "base"]) == 1


def test_sft(calls, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("batch_size = 8\n")
    assert cli.main(["sft", "--config", str(path), "--steps", "5000"]) == 0
    assert calls == [("sft", (SFTConfig(batch_size=8, steps=5000),), {"resume": None})]


def test_caption(calls, capsys):
    assert cli.main(["caption", "a.png", "b.png", "--temperature", "0.5", "--model", "runs/x"]) == 0
    expected = CaptionConfig(images=(Path("a.png"), Path("b.png")), temperature=0.5, model="runs/x")
    assert calls == [("caption", (expected,), {})]
    assert capsys.readouterr().out == "a.png: A red star.\n"


def test_score(calls, capsys):
    assert cli.main(["score", "captions.jsonl", "scores.jsonl"]) == 0
    expected = ScoreConfig(input=Path("captions.jsonl"), output=Path("scores.jsonl"))
    assert calls == [("score", (expected,), {})]
    assert "50.0" in capsys.readouterr().out


def test_bench_and_scenes(calls, capsys):
    assert cli.main(["bench", "advantages"]) == 0
    assert cli.main(["bench", "advantages", "--json"]) == 0
    assert cli.main(["scenes", "folder", "--count", "3", "--split", "heldout"]) == 0
    assert calls == [
        ("bench", (), {"json": False}),
        ("bench", (), {"json": True}),
        ("scenes", (ScenesConfig(Path("folder"), split="heldout", count=3),), {}),
    ]
    assert "--data.path folder/scenes.jsonl" in capsys.readouterr().out


def test_bench_load(calls):
    flags = "bench load f".split()
    assert cli.main(flags) == 0
    assert cli.main([*flags, "--make", "qwen2.5-vl-3b", "--json", "--rounds", "1"]) == 0
    assert calls == [
        ("bench load", (Path("f"),), {"json": False, "rounds": 2}),
        ("config", ("qwen2.5-vl-3b",), {}),
        ("make", (Path("f"), "sizes"), {}),
        ("bench load", (Path("f"),), {"json": True, "rounds": 1}),
    ]


def test_export(calls, capsys):
    assert cli.main(["export", "runs/a", "b"]) == 0
    assert calls == [("export", (ExportConfig(run=Path("runs/a"), out=Path("b")),), {})]
    assert capsys.readouterr().out == "b holds the policy of runs/a: its checkpoint of step 7\n"


# Runs -------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    """A run whose settings differ from the defaults, moved to another place since."""
    folder = tmp_path / "moved"
    folder.mkdir()
    config = TrainConfig(
        seed=5, steps=10, rl=RLConfig(advantage="grpo"), reward=RewardConfig(tau_u=1.5)
    )
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


def test_resume_takes_the_settings_of_the_run(calls, run_folder):
    assert cli.main(["train", "--resume", str(run_folder), "--steps", "20"]) == 0
    (_, (config,), keywords), *_ = calls
    assert keywords == {"resume": run_folder}
    assert config == TrainConfig(
        name="moved",
        out=run_folder.parent,
        seed=5,
        steps=20,
        rl=RLConfig(advantage="grpo"),
        reward=RewardConfig(tau_u=1.5),
    )


def test_report_draws_the_band_of_the_run_and_names_its_files(calls, run_folder, capsys):
    assert cli.main(["report", str(run_folder)]) == 0
    assert calls == [("report", (run_folder,), {"band": (0.5, 1.5)})]
    assert capsys.readouterr().out == "runs/a/curves.png\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seed 6", "seed (5 -> 6)"),
        ("--rl.advantage gdpo --rollout.group-size 4", "rl.advantage (grpo -> gdpo)"),
        ("--name other", "drop --out and --name"),
        ("--config a.toml", "cannot be combined with --resume"),
    ],
)
def test_resume_refuses_what_would_be_another_run(mistake, run_folder, flags, said):
    assert said in mistake("train", "--resume", str(run_folder), *flags.split())


def test_resume_needs_a_run(mistake, tmp_path):
    sentence = mistake("train", "--resume", str(tmp_path / "nowhere"))
    assert "nowhere is not a run" in sentence
    assert "--resume" in mistake("train", "--resume")


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("trian", "did you mean `balcap train`?"),
        ("--sede 3", "'--sede' is not a command"),
        ("train --sede 3", "has no flag --sede; did you mean --seed?"),
        ("train --rollout.gropu-size 3", "did you mean --rollout.group-size?"),
        ("train --group-size 3", "has no flag --group-size; did you mean --rollout.group-size?"),
        ("train --group_size=3", "did you mean --rollout.group-size?"),
        ("train --rl.no-whitem", "did you mean --rl.no-whiten?"),
        ("train --every 3", "did you mean --audit.every or --checkpoint.every"),
        ("train --xyzzy 3", "has no flag --xyzzy; `balcap train --help` lists its flags."),
        # Names of other frameworks; `--beta` is nearest to --mesh.data and is not that.
        ("train --beta 0.1", "has no flag --beta, which is --rl.kl-coef here."),
        ("train --num_generations 4", "--num-generations, which is --rollout.group-size here."),
        ("train --report-to=wandb", "--report-to, which is --loggers here."),
        ("train --lora 8", "has no flag --lora, which is --model.lora.rank here."),
        ("train --num-train-epochs 2", "set steps to epochs x images / prompts_per_step"),
        ("train algorithm.kl_ctrl.kl_coef=0.1", "kl_coef, which is --rl.kl-coef here."),
        ("train rollout.n=4", "has no setting rollout.n, which is --rollout.group-size here."),
        ("train rollout.group_size=4", "write --rollout.group-size 4."),
        ("sft --beta 0.1", "has no flag --beta; `balcap sft --help` lists its flags."),
        ("train 3", "does not take the argument '3'"),
        ("train --rollout.group-size 1", "rollout.group_size=1 must be at least 2"),
        ("train --rollout.group-size two", "rollout.group_size='two' must be a whole number"),
        ("train --rl.eps small", "rl.eps='small' must be a number, such as the default 0.0001"),
        ("train --rollout.group-size", "--rollout.group-size: expected one argument"),
        ("train --rl.advantage gdop", "rl.advantage='gdop' must be one of gdpo, grpo"),
        ("train --reward.names presicion", "did you mean precision?"),
        ("train --reward.tau-l 3", "reward.tau_l=3.0 must be below reward.tau_u=2.0"),
        ("train --rl.micro-batches 5", "set --prompts-per-step 10"),
        ("train --config missing.toml", "missing.toml cannot be read"),
        ("report nowhere", "nowhere is not a run"),
        ("sft --steps 0", "steps=0 must be at least 1"),
        ("caption", "are required: IMAGES"),
        ("score a.jsonl", "are required: OUTPUT"),
        ("score", "are required: INPUT, OUTPUT"),
        ("export a", "are required: OUT"),
        ("bench advantage", "did you mean `balcap bench advantages`?"),
        ("bench load", "are required: FOLDER"),
        # What a command needs is given by place; the flags of earlier versions say so.
        (
            "export --run a --out b",
            "takes RUN by its place, not by the flag --run; write `balcap export RUN OUT`.",
        ),
        ("score --input a --output=b", "write `balcap score INPUT OUTPUT`."),
        ("score a --output=b", "takes OUTPUT by its place"),
        ("bench load --folder a", "write `balcap bench load FOLDER`."),
        ("bench judge --data a", "write `balcap bench judge DATA`."),
        ("data units --data a", "write `balcap data units DATA`."),
        ("data recaption --data a --out b", "write `balcap data recaption DATA OUT`."),
        ("bench xyz", "known are advantages, device, images, judge, load, step, trainer, update."),
        ("xyz", "check, assemble, data, scenes."),
        ("bench advantages --jsn", "did you mean --json?"),
        ("scenes folder --split test", "split='test' must be one of train, heldout"),
    ],
)
def test_mistakes_are_one_sentence(mistake, arguments, said):
    assert said in mistake(*arguments.split())


def test_a_bad_config_file_is_named(mistake, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[rollout]\ngropu_size = 4\n")
    sentence = mistake("train", "--config", str(path))
    assert "a.toml: there is no setting rollout.gropu_size" in sentence
    assert "did you mean rollout.group_size?" in sentence


def raising(error):
    def train(*_, **__):
        raise error

    return train


def wrapped(inner):
    """`inner` as libraries pass it on: as the cause of their own error."""
    outer = RuntimeError("save failed")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("a rule;\n  a remedy."), "a rule; a remedy."),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            "disk is full while writing /x/y",
        ),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x may not be read or written"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "Read-only file system"),
    ],
)
def test_errors_while_running_are_one_sentence(calls, monkeypatch, capsys, error, said):
    monkeypatch.setattr(sys.modules[TRAINER], "train", raising(error))
    assert cli.main(["train"]) == 2
    announced, sentence = capsys.readouterr().err.splitlines()
    assert announced.startswith("runs/balcap: 100 steps")
    assert sentence.startswith("balcap: error: ")
    assert said in sentence


def test_our_own_bugs_keep_their_traceback(calls, monkeypatch):
    monkeypatch.setattr(sys.modules[TRAINER], "train", raising(KeyError("bug")))
    with pytest.raises(KeyError, match="bug"):
        cli.main(["train"])


def test_ctrl_c_is_quiet(calls, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules[TRAINER], "train", raising(KeyboardInterrupt()))
    assert cli.main(["train"]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1  # what the run was going to do


# Help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_each_command_once(arguments, capsys):
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in ("train", "sft", "caption", "score", "bench", "report", "export", "scenes"):
        assert sum(line.startswith(f"  {command} ") for line in lines) == 1, command
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    "command", ["train", "sft", "caption", "score", "bench", "report", "export"]
)
def test_each_command_explains_itself(calls, command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert f"usage: balcap {command}" in capsys.readouterr().out
    assert calls == []


def test_help_explains_every_setting(capsys):
    assert cli.main(["train", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in flags_of(TrainConfig):
        assert flag in words
    # Every field has a comment, which precedes its default; tyro shows "(default" alone without.
    explained = [
        item
        for kind in (TrainConfig, RolloutConfig, RLConfig)
        for item in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(item.type)
    ]
    assert len(explained) > 20
    assert "Captions per image" in words
    assert words.count("(default:") == words.count(". (default:") + words.count("? (default:")


def test_help_shows_the_values_of_the_config_file(capsys, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("steps = 4321\n")
    assert cli.main(["train", "--config", str(path), "--help"]) == 0
    assert "(default: 4321)" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("balcap ")


def run_python(*arguments, **environment):
    root = Path(cli.__file__).parents[2]
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        check=False,
    )


def test_python_m_is_the_same_command():
    result = run_python("-m", "balcap_jax", "trian")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("balcap: error: 'trian' is not a command")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_sentences_do_not_depend_on_the_terminal(encoding):
    arguments = ("-m", "balcap_jax", "train", "--rollout.group-size", "two")
    result = run_python(*arguments, PYTHONIOENCODING=encoding)
    assert result.returncode == 2
    assert result.stderr == (
        "balcap: error: rollout.group_size='two' must be a whole number, such as the default 8; "
        "change --rollout.group-size.\n"
    )
