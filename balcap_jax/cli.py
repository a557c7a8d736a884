"""The `balcap` command: settings from flags and files, then one call into the package.

Commands import what they run when they run it, so that `balcap --help` is immediate and touches no
device. A mistake of the user ends with one sentence on stderr and exit code 2.
"""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from balcap_jax import config_files
from balcap_jax.config import (
    CaptionConfig,
    ExportConfig,
    ReportConfig,
    ScenesConfig,
    ScoreConfig,
    SFTConfig,
    TrainConfig,
)
from balcap_jax.errors import UserError
from balcap_jax.settings import nearest

T = TypeVar("T")
ConfigT = TypeVar("ConfigT", TrainConfig, SFTConfig)

_EXIT_MISTAKE = 2
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_EXIT_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; `argv` is without the program's name.

    Returns:
      The exit code: 0, 2 for a mistake that the user can mend, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(arguments)
    except UserError as error:
        return _mistake(str(error))
    except SystemExit as stop:  # tyro printed the help of a command
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
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
class TrainFlags:
    """Reinforcement learning of a captioning policy; with no flags: the default run."""

    config: Path | None = None  # Take settings from this TOML file; flags override it.
    resume: Path | None = None  # Continue this run (its folder) with its own settings.
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig()


@dataclass(frozen=True)
class SFTFlags:
    """Supervised training of a captioning policy on reference captions."""

    config: Path | None = None  # Take settings from this TOML file; flags override it.
    settings: Annotated[SFTConfig, tyro.conf.arg(name="")] = SFTConfig()


@dataclass(frozen=True)
class AdvantageBenchFlags:
    """Times the advantage kernels against numpy and, where installed, TRL's torch code."""

    json: bool = False  # Print JSON instead of a table.


@dataclass(frozen=True)
class LoadBenchFlags:
    """Times loading a folder and its peak memory beside transformers, a process per load."""

    folder: Path  # The Hugging Face folder to load.
    # Write random weights of this shape to the folder first (3b: 7.5 GB on the disk).
    make: Literal["no", "qwen2.5-vl-3b"] = "no"
    rounds: int = 2  # Loads by each side.
    json: bool = False  # Print JSON instead of a table.


def _train(arguments: list[str]) -> None:
    resume = _origin(arguments, "resume")
    if resume is None:
        settings = _load_config(TrainConfig, arguments)
    else:
        settings = config_files.load_run(resume)
        # The folder may have been moved since.
        folder = resume.resolve()
        settings = dataclasses.replace(settings, out=folder.parent, name=folder.name)
    given = _parse(TrainFlags, arguments, "train", default=TrainFlags(settings=settings))
    if resume is not None:
        _check_resume(resume, settings, given)

    from balcap_jax.compilation import use_persistent_cache
    from balcap_jax.train import train

    use_persistent_cache()
    train(given.settings, resume=resume)


def _check_resume(resume: Path, old: TrainConfig, given: TrainFlags) -> None:
    new = given.settings
    if given.config is not None:
        raise UserError(
            f"--config {given.config} cannot be combined with --resume {resume}, because a run is "
            "resumed with its own settings; drop one of the two."
        )
    if (new.out, new.name) != (old.out, old.name):
        raise UserError(
            f"--resume {resume} goes on in its own folder, not in {new.out / new.name}; drop --out "
            "and --name."
        )
    if conflicts := config_files.resume_conflicts(old, new):
        raise UserError(
            f"{resume} cannot be resumed with changed {', '.join(conflicts)}, because its steps "
            "would no longer be one run; drop these flags or start a new run with --name."
        )


def _sft(arguments: list[str]) -> None:
    settings = _load_config(SFTConfig, arguments)
    given = _parse(SFTFlags, arguments, "sft", default=SFTFlags(settings=settings))

    from balcap_jax.compilation import use_persistent_cache
    from balcap_jax.sft import sft

    use_persistent_cache()
    sft(given.settings)


def _caption(arguments: list[str]) -> None:
    config = _parse(CaptionConfig, arguments, "caption")

    from balcap_jax.caption import caption
    from balcap_jax.compilation import use_persistent_cache

    use_persistent_cache()
    for path, text in caption(config):
        print(f"{path}: {text}", flush=True)


def _score(arguments: list[str]) -> None:
    config = _parse(ScoreConfig, arguments, "score")

    from balcap_jax.score import score

    print(json.dumps(score(config), indent=2))


def _bench(arguments: list[str]) -> None:
    if arguments[:1] in ([], ["--help"], ["-h"]):
        print(_BENCH_HELP)
        return
    if arguments[0] not in _BENCHMARKS:
        raise UserError(
            f"{arguments[0]!r} is not a benchmark, known are {', '.join(_BENCHMARKS)}; did you "
            f"mean `balcap bench {nearest(arguments[0], _BENCHMARKS)}`?"
        )
    _BENCHMARKS[arguments[0]](arguments[1:])


def _bench_advantages(arguments: list[str]) -> None:
    flags = _parse(AdvantageBenchFlags, arguments, "bench advantages")

    from balcap_jax.bench.advantages import run_and_print

    run_and_print(json=flags.json)


def _bench_load(arguments: list[str]) -> None:
    flags = _parse(LoadBenchFlags, arguments, "bench load", positional=False)
    if flags.make != "no":
        from balcap_jax.bench.random_folder import config_of, write_random_folder

        write_random_folder(flags.folder, config_of(flags.make))

    from balcap_jax.bench.load import run_and_print

    run_and_print(flags.folder, json=flags.json, rounds=flags.rounds)


_BENCHMARKS = {"advantages": _bench_advantages, "load": _bench_load}


def _report(arguments: list[str]) -> None:
    config = _parse(ReportConfig, arguments, "report")

    from balcap_jax.report import report

    reward = config_files.load_run(config.run).reward
    for path in report(config.run, band=(reward.tau_l, reward.tau_u)):
        print(path)


def _export(arguments: list[str]) -> None:
    config = _parse(ExportConfig, arguments, "export", positional=False)

    from balcap_jax.export import export

    print(f"{config.out} holds the policy of {config.run}: {export(config)}")


def _scenes(arguments: list[str]) -> None:
    config = _parse(ScenesConfig, arguments, "scenes")

    from balcap_jax.data.scenes import export

    path = export(config.out, split=config.split, count=config.count, seed=config.seed)
    print(f"{config.count} scenes are listed in {path}; train on them with --data.path {path}")


class _Command(NamedTuple):
    summary: str
    run: Callable[[list[str]], None]


_COMMANDS = {
    "train": _Command("reinforcement learning of a captioning policy", _train),
    "sft": _Command("supervised training of a policy on reference captions", _sft),
    "caption": _Command("caption your own images", _caption),
    "score": _Command("score captions: precision, recall, linguistic, b-CapScore", _score),
    "bench": _Command("time the kernels side by side with other codes", _bench),
    "report": _Command("curves and caption gallery of a run", _report),
    "export": _Command("the policy of a run as a Hugging Face folder", _export),
    "scenes": _Command("write generated scenes as image files", _scenes),
}

_HELP = f"""\
usage: balcap COMMAND [FLAGS]

Reinforcement learning of image captioners with balanced rewards (BalCapRL), in JAX.

commands:
{chr(10).join(f"  {name:<9} {command.summary}" for name, command in _COMMANDS.items())}

examples:
  balcap train                                            the default run, minutes on a laptop
  balcap train --rl.advantage grpo --rollout.group-size 4
  balcap train --config configs/grpo.toml --name grpo-1 --seed 1
  balcap train --resume runs/balcap --steps 200           go on with a run
  balcap caption photo.jpg --model runs/balcap

`balcap COMMAND --help` explains the flags of a command; `balcap --version` prints the version."""

_BENCH_HELP = """\
usage: balcap bench BENCHMARK [FLAGS]

  advantages  the advantage kernels against numpy and, where installed, TRL's torch code
  load        seconds and peak memory of loading a folder, beside transformers"""


def _dispatch(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(_HELP)
    elif name == "--version":
        print(f"balcap {_version()}")
    elif name in _COMMANDS:
        _COMMANDS[name].run(arguments[1:])
    else:
        raise UserError(
            f"{name!r} is not a command, known are {', '.join(_COMMANDS)}; did you mean "
            f"`balcap {nearest(name, _COMMANDS)}`?"
        )


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
            found = Path(arguments[position + 1])
        elif argument.startswith(flag + "="):
            found = Path(argument.removeprefix(flag + "="))
    return found


def _load_config(kind: type[ConfigT], arguments: list[str]) -> ConfigT:
    path = _origin(arguments, "config")
    return kind() if path is None else config_files.load_toml(kind, path)


def _parse(
    kind: type[T],
    arguments: list[str],
    command: str,
    *,
    default: T | None = None,
    positional: bool = True,
) -> T:
    """`arguments` as an instance of `kind`; --help prints and exits.

    Args:
      positional: what has no default is given by place, not by flag.

    Raises:
      UserError: for an unknown flag, a missing or a bad value.
    """
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    prog = f"balcap {command}"
    with _one_sentence(prog):
        parsed, unknown = tyro.cli(
            kind,
            args=arguments,
            prog=prog,
            return_unknown_args=True,
            config=(tyro.conf.PositionalRequiredArgs,) if positional else (),
            **keywords,
        )
    if unknown:
        raise _unknown_argument(unknown, kind, prog)
    return parsed


@contextlib.contextmanager
def _one_sentence(prog: str) -> Iterator[None]:
    """Turns tyro's boxed errors into one UserError; our own pass through as they were."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            yield
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        for error in _chain(stop):
            if isinstance(error, UserError):  # raised by the settings, which tyro was making
                raise error from None
        sentence = _unboxed(caught.getvalue())
        raise UserError(f"{sentence}; `{prog} --help` explains the flags.") from None
    sys.stderr.write(caught.getvalue())


def _unboxed(box: str) -> str:
    """The first paragraph of a message that is drawn in a box of lines, as one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines()[1:]]  # the first holds the title
    body = itertools.dropwhile(_is_rule, lines)
    paragraph = itertools.takewhile(lambda line: not _is_rule(line), body)
    sentence = " ".join(paragraph).rstrip(".")
    for technical, plain_words in (
        ("Error parsing ", ""),
        (" (required)", ""),
        (". Expected", ", expected"),
        ("invalid literal for int() with base 10", "not a whole number"),
        ("could not convert string to float", "not a number"),
    ):
        sentence = sentence.replace(technical, plain_words)
    return sentence


def _is_rule(line: str) -> bool:
    return not line.strip("─╭╮╰╯-")


def _unknown_argument(unknown: list[str], kind: type, prog: str) -> UserError:
    for argument in unknown:
        if argument.startswith("-"):
            flag = argument.partition("=")[0].replace("_", "-")
            return UserError(
                f"{prog} has no flag {flag}; did you mean {_nearest_flag(flag, _flags(kind))}?"
            )
    return UserError(
        f"{prog} does not take the argument {unknown[0]!r}; flags start with --, "
        f"`{prog} --help` lists them."
    )


def _nearest_flag(flag: str, known: list[str]) -> str:
    """A flag that only lacks its room (`--group-size`) is found whatever the room's name."""
    name = flag.lstrip("-")
    same = [other for other in known if other.rpartition(".")[2] == name]
    return same[0] if same else nearest(flag, known)


def _flags(kind: type, prefix: str = "") -> list[str]:
    """Every flag of a (nested) dataclass, in tyro's spelling."""
    flags = []
    for item in dataclasses.fields(kind):
        inner = getattr(item.type, "__origin__", item.type)  # Annotated[X, ...] -> X
        if dataclasses.is_dataclass(inner):
            room = prefix if item.name == "settings" else f"{prefix}{item.name}."
            flags += _flags(inner, room)  # type: ignore[arg-type]
        else:
            flags.append("--" + f"{prefix}{item.name}".replace("_", "-"))
            if item.type is bool:
                flags.append("--" + f"{prefix}no-{item.name}".replace("_", "-"))
    return flags


# Errors -----------------------------------------------------------------------------------------


def _mistake(sentence: str) -> int:
    print(f"balcap: error: {' '.join(sentence.split())}", file=sys.stderr)
    return _EXIT_MISTAKE


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_mistake(error: BaseException) -> str | None:
    """One sentence when `error` is, or comes from, a full disk or a lack of permission."""
    for cause in _chain(error):
        if not isinstance(cause, OSError):
            continue
        where = cause.filename or "a file"
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full while writing {where}; free space or use another --out."
        if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return (
                f"{where} may not be read or written by this user ({cause.strerror}); change its "
                "permissions or use another path."
            )
    return None
