"""The `balcap` command: settings from flags and files, then one call into the package.

Commands import what they run when they run it, so that `balcap --help` is immediate and touches no
device. A mistake of the user ends with one sentence on stderr and exit code 2.
"""

import dataclasses
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro
from rich.console import Console

from balcap_jax.cli.bench import bench
from balcap_jax.cli.data import data
from balcap_jax.cli.evaluation import evaluation
from balcap_jax.cli.flags import chain, parse
from balcap_jax.cli.plan import plan_command
from balcap_jax.cli.reproduce import reproduce
from balcap_jax.config import files as config_files
from balcap_jax.config.base import Settings
from balcap_jax.config.commands import (
    AssembleConfig,
    CaptionConfig,
    ExportConfig,
    ModelCheckConfig,
    ReportConfig,
    ScenesConfig,
    ScoreConfig,
    SFTConfig,
    TrainConfig,
)
from balcap_jax.config.conversion import shown
from balcap_jax.config.judge import JudgeCheckConfig
from balcap_jax.config.names import did_you_mean
from balcap_jax.config.reward import RewardConfig
from balcap_jax.errors import UserError
from balcap_jax.parallel.control import exit_alone
from balcap_jax.storage.local import CACHE
from balcap_jax.storage.paths import as_path, is_remote
from balcap_jax.storage.refusals import bucket_reason

ConfigT = TypeVar("ConfigT", TrainConfig, SFTConfig)

_EXIT_NOTHING = 1  # a command that ended in order, and what it was to do came to nothing
_EXIT_MISTAKE = 2
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_EXIT_PIPE = 141  # 128 + SIGPIPE
_INTERRUPTS = "balcap_jax.training.interrupts"  # not imported for every command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; `argv` is without the program's name.

    Returns:
      The exit code: 0, 2 for a mistake that the user can fix, 130 after Ctrl-C and so on; 0 where a
      run was stopped by it and saved.
    """
    _forget_interrupts()
    try:
        code = _exit_code(list(sys.argv[1:] if argv is None else argv))
    except BaseException:
        exit_alone(1)
        raise
    exit_alone(code)
    _exit_interrupted(code)
    return code


def _forget_interrupts() -> None:
    if (module := sys.modules.get(_INTERRUPTS)) is not None:
        module.came = False


def _exit_interrupted(code: int) -> None:
    """Ends the process at once after a signal: C++ threads may still compile, compute or wait, and
    would abort it where Python waits for none of them.
    """
    if getattr(sys.modules.get(_INTERRUPTS), "came", False):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the terminal may be gone
                stream.flush()
        os._exit(code)


def _exit_code(arguments: list[str]) -> int:
    try:
        _dispatch(arguments)
    except UserError as error:
        return _mistake(str(error))
    except SystemExit as stop:  # tyro printed the help of a command
        return int(stop.code or 0)
    except KeyboardInterrupt as stop:
        return getattr(stop, "exit_code", _EXIT_INTERRUPTED)
    except BrokenPipeError:  # `balcap caption ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return _EXIT_PIPE
    except Exception as error:
        sentence = _disk_mistake(error)
        if sentence is None:
            raise
        return _mistake(sentence)
    return 0


# Commands ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainFlags(Settings):
    """Reinforcement learning of a captioning policy; with no flags: the default run."""

    config: Path | None = None  # TOML file of settings, or a name in configs/; flags override it.
    resume: Path | None = None  # Folder of a run to go on with, with its own settings.
    # Checkpoint of that run to go on from: "best", or the number of a step; default: the newest.
    checkpoint: str = ""
    # Going on although data or settings differ from those that the run was saved with.
    resume_anyway: bool = False
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig()


@dataclass(frozen=True)
class SFTFlags(Settings):
    """Supervised training of a captioning policy on captions and conversations."""

    config: Path | None = None  # TOML file of settings, or a name in configs/; flags override it.
    resume: Path | None = None  # Folder of a run to go on with, with its own settings.
    # Checkpoint of that run to go on from: "best", or the number of a step; default: the newest.
    checkpoint: str = ""
    # Going on although data or settings differ from those that the run was saved with.
    resume_anyway: bool = False
    settings: Annotated[SFTConfig, tyro.conf.arg(name="")] = SFTConfig()


def _train(arguments: list[str]) -> None:
    resume, given = _flags_of_run(TrainFlags, TrainConfig, "train", arguments)
    from balcap_jax.training.trainer import train

    train(given.settings, resume=resume, **_wishes(given))


def _sft(arguments: list[str]) -> None:
    resume, given = _flags_of_run(SFTFlags, SFTConfig, "sft", arguments)
    from balcap_jax.training.sft import sft

    sft(given.settings, resume=resume, **_wishes(given))


def _flags_of_run(
    kind: Any, settings_of: type[ConfigT], command: str, arguments: list[str]
) -> tuple[Path | None, Any]:
    """The run to go on with, if any, and the flags of a run, announced."""
    resume = _origin(arguments, "resume")
    if resume is None:
        settings = _load_config(settings_of, arguments)
    else:
        settings = config_files.load_run(resume, settings_of)
        # The folder may have been moved since.
        folder = resume.resolve()
        settings = dataclasses.replace(settings, out=folder.parent, name=folder.name)
    given = parse(kind, arguments, command, default=kind(settings=settings))
    config_files.check_resume_flags(resume, checkpoint=given.checkpoint, anyway=given.resume_anyway)
    if resume is not None:
        _check_resume(resume, settings, given)

    # Before anything slow is imported: the terminal shall tell at once what is coming.
    from balcap_jax.runs.progress import announce_settings

    announce_settings(given.settings)
    from balcap_jax.runs.jax_setup import set_up_jax

    set_up_jax()
    return resume, given


def _wishes(given: TrainFlags | SFTFlags) -> dict[str, Any]:
    """How to resume, where it is said."""
    wishes = {"checkpoint": given.checkpoint, "resume_anyway": given.resume_anyway}
    return {name: wish for name, wish in wishes.items() if wish}


def _check_resume(resume: Path, old: TrainConfig | SFTConfig, given: TrainFlags | SFTFlags) -> None:
    if given.config is not None:
        raise UserError(
            f"--config {given.config} cannot be combined with --resume {resume}, because a run is "
            "resumed with its own settings; drop one of the two."
        )
    config_files.check_resume(resume, old, given.settings, anyway=given.resume_anyway)


def _caption(arguments: list[str]) -> None:
    config = parse(CaptionConfig, arguments, "caption")

    from balcap_jax.commands.caption import caption
    from balcap_jax.runs.jax_setup import set_up_jax

    set_up_jax()
    for path, text in caption(config):
        print(f"{path}: {text}", flush=True)


def _score(arguments: list[str]) -> None:
    # The judge by its kind alone, as people write it.
    arguments = [re.sub(r"^--judge(?==|$)", "--judge.kind", argument) for argument in arguments]
    config = parse(ScoreConfig, arguments, "score")

    from balcap_jax.commands.score import score, table

    console = Console()
    summary = score(config)
    console.print(table(summary))
    console.print(f"{config.output} holds every row with its scores.", highlight=False)
    if summary.get("scored") == 0:
        print(
            f"balcap: error: none of the {summary['rows']} rows of {config.input} has a score; "
            f"{config.output} says why of each, and the same command asks again.",
            file=sys.stderr,
        )
        raise SystemExit(_EXIT_NOTHING)


def _judge_check(arguments: list[str]) -> None:
    config = parse(JudgeCheckConfig, arguments, "judge-check")

    from balcap_jax.commands.judge_check import conclusion, cost, first_line, judge_check, table

    console = Console()
    found = judge_check(config)
    if line := first_line(found, model=config.judge.model):
        print(line)
    console.print(table(found))
    console.print(cost(found), highlight=False)
    print(conclusion(found, model=config.judge.model))
    if found.faults:
        raise SystemExit(_EXIT_NOTHING)


def _report(arguments: list[str]) -> None:
    config = parse(ReportConfig, arguments, "report")

    from balcap_jax.reporting.report import report

    settings = config_files.load_any_run(config.run)
    reward = settings.reward if isinstance(settings, TrainConfig) else RewardConfig()
    for path in report(config.run, band=(reward.tau_l, reward.tau_u)):
        print(path)


def _export(arguments: list[str]) -> None:
    config = parse(ExportConfig, arguments, "export")

    from balcap_jax.commands.export import export

    print(f"{config.out} holds the policy of {config.run}: {export(config)}")


def _check(arguments: list[str]) -> None:
    config = parse(ModelCheckConfig, arguments, "check")

    from balcap_jax.commands.check import block, check, table
    from balcap_jax.runs.jax_setup import set_up_jax
    from balcap_jax.runs.progress import announce

    set_up_jax()
    report = check(config, tell=lambda line: announce(f"{line.name}: {line.status}"))
    Console().print(table(report))
    print(block(report))
    if report.failed:
        raise SystemExit(_EXIT_NOTHING)


def _assemble(arguments: list[str]) -> None:
    config = parse(AssembleConfig, arguments, "assemble")

    from balcap_jax.commands.assemble import assemble, described

    print(f"{config.out} holds {described(assemble(config))}")


def _scenes(arguments: list[str]) -> None:
    config = parse(ScenesConfig, arguments, "scenes")

    from balcap_jax.commands.scenes import write_scenes

    path = write_scenes(config)
    command = "balcap sft" if config.questions else "balcap train"
    print(
        f"{config.count} scenes are listed in {path}; train on them with `{command} "
        f"--data.path {path}`"
    )


class _Command(NamedTuple):
    summary: str
    run: Callable[[list[str]], None]


_COMMANDS = {
    "train": _Command("reinforcement learning of a captioning policy", _train),
    "sft": _Command("supervised training of a policy on reference captions", _sft),
    "caption": _Command("captions of your own images", _caption),
    "score": _Command("precision, recall, linguistic quality and b-CapScore of captions", _score),
    "eval": _Command("DCScore, CaptionQA, CapArena-Auto and b-CapScore, one tool", evaluation),
    "judge-check": _Command("agreement of a model with the truth on 60 captions", _judge_check),
    "bench": _Command("times of loading, rollout and update beside other codes", bench),
    "plan": _Command("memory and time of a training step on a TPU slice", plan_command),
    "reproduce": _Command("claims of the paper tested over seeds, with intervals", reproduce),
    "report": _Command("curves and caption gallery of a run", _report),
    "export": _Command("the policy of a run as a Hugging Face folder", _export),
    "check": _Command("a policy on this machine beside transformers", _check),
    "assemble": _Command("a LLaVA from a vision tower and a language model", _assemble),
    "data": _Command("a check of data; units, new references and questions by a model", data),
    "scenes": _Command("generated scenes as image files", _scenes),
}

_HELP = f"""\
usage: balcap COMMAND [FLAGS]

Reinforcement learning of image captioners with balanced rewards (BalCapRL), in JAX.

commands:
{chr(10).join(f"  {name:<11} {command.summary}" for name, command in _COMMANDS.items())}

examples:
  balcap train                                            the default run, minutes on a laptop
  balcap train --rl.advantage grpo --rollout.group-size 4
  balcap train --config grpo --name grpo-1 --seed 1
  balcap train --resume runs/balcap --steps 200           go on with a run
  balcap caption photo.jpg --model runs/balcap
  balcap plan qwen2_5_vl_7b_v5e_64 --topology v5e:8x8

Paths may be gs://BUCKET/...; copies of models and data from there are kept in --cache-dir FOLDER.

`balcap COMMAND --help` explains the flags of a command; `balcap --version` prints the version."""


def _dispatch(arguments: list[str]) -> None:
    arguments = _with_cache_dir(arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(_HELP)
    elif name == "--version":
        print(f"balcap {_version()}")
    elif name in _COMMANDS:
        _COMMANDS[name].run(arguments[1:])
    else:
        raise UserError(
            f"{name!r} is not a command, known are "
            f"{', '.join(_COMMANDS)}{did_you_mean(name, _COMMANDS, '`balcap {}`')}"
        )


def _with_cache_dir(arguments: list[str]) -> list[str]:
    """`arguments` without --cache-dir, which all commands have and which is no setting of a run."""
    flag, left = "--cache-dir", []
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name != flag:
            left.append(argument)
            continue
        folder = value if equals else next(given, "")
        if not folder or is_remote(folder):
            raise UserError(
                f"{flag} {folder!r} is not a folder of this machine, which keeps copies of what "
                "lies in buckets; name one."
            )
        os.environ[CACHE] = folder
    return left


def _version() -> str:
    try:
        return metadata.version("balcap_jax")
    except metadata.PackageNotFoundError:
        return "(not installed)"


# Flags ------------------------------------------------------------------------------------------


def _origin(arguments: list[str], name: str) -> Path | None:
    """The path that --`name` gives, read ahead because it decides the defaults of all flags."""
    flag = f"--{name}"
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = as_path(arguments[position + 1])
        elif argument.startswith(flag + "="):
            found = as_path(argument.removeprefix(flag + "="))
    return found


def _load_config(kind: type[ConfigT], arguments: list[str]) -> ConfigT:
    path = _origin(arguments, "config")
    return kind() if path is None else config_files.load_toml(kind, path)


# Errors -----------------------------------------------------------------------------------------


_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


def _mistake(sentence: str) -> int:
    print(f"balcap: error: {' '.join(sentence.split())}", file=sys.stderr)
    return _EXIT_MISTAKE


def _disk_mistake(error: BaseException) -> str | None:
    """One sentence when `error` is, or comes from, a full disk or a lack of permission."""
    if (reason := bucket_reason(error)) is not None:
        return f"a bucket cannot be used: {reason}."
    for cause in chain(error):
        if not isinstance(cause, OSError):
            continue
        where = cause.filename or "a file"
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full while writing {where}; free space or use another folder."
        if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return (
                f"{where} may not be read or written by this user ({cause.strerror}); change its "
                "permissions or use another path."
            )
        if cause.errno in _NO_PATH:
            return f"{shown(where)} is no path that can be used ({cause.strerror}); give another."
    return None
