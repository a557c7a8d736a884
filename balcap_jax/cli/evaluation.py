"""`balcap eval`: which benchmark, and its flags; settings from a file where one is given."""

from pathlib import Path
from typing import Any

from balcap_jax.cli.flags import parse
from balcap_jax.config import files as config_files
from balcap_jax.config.evaluation import (
    BCapScoreConfig,
    CapArenaConfig,
    CaptionQAConfig,
    DCScoreConfig,
    EvalAllConfig,
    EvalReportConfig,
)
from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError

_KINDS: dict[str, Any] = {
    "dcscore": DCScoreConfig,
    "captionqa": CaptionQAConfig,
    "caparena": CapArenaConfig,
    "bcapscore": BCapScoreConfig,
}


def evaluation(arguments: list[str]) -> None:
    """`balcap eval ARGUMENTS`."""
    if arguments[:1] in ([], ["--help"], ["-h"]):
        print(_HELP)
        return
    name, *rest = arguments
    commands = (*_KINDS, "all", "report")
    if name not in commands:
        raise UserError(
            f"{name!r} is not a command of `balcap eval`, known are {', '.join(commands)}"
            f"{did_you_mean(name, commands, '`balcap eval {}`')}"
        )
    if name == "report":
        _report(rest)
    elif name == "all":
        _all(rest)
    else:
        _one(name, rest)


def _one(name: str, arguments: list[str]) -> None:
    config = parse(_KINDS[name], arguments, f"eval {name}")

    from balcap_jax.commands.evaluate import evaluate
    from balcap_jax.runs.jax_setup import set_up_jax

    if config.model:
        set_up_jax()
    _print(evaluate(name, config))


def _all(arguments: list[str]) -> None:
    path, arguments = _config_file(arguments)
    default = EvalAllConfig() if path is None else config_files.load_toml(EvalAllConfig, path)
    config = parse(EvalAllConfig, arguments, "eval all", default=default)
    config.benchmarks()  # a mistake shows before anything slow is imported

    from balcap_jax.commands.evaluate import evaluate_all
    from balcap_jax.evaluation.report import write_report
    from balcap_jax.runs.jax_setup import set_up_jax

    if config.model:
        set_up_jax()
    folders = set()

    def done(found: Any) -> None:
        folders.add(found.folder.parent)
        _print(found)

    try:
        evaluate_all(config, done=done)
    finally:  # of what is there
        for folder in folders:
            print(write_report([folder]))


def _report(arguments: list[str]) -> None:
    config = parse(EvalReportConfig, arguments, "eval report")

    from rich.console import Console

    from balcap_jax.evaluation.report import alone, tables, write_report

    console = Console()
    for table in tables(config.folders, seed=config.seed):
        console.print(table)
    if names := alone(config.folders):
        print(f"Not every folder has results of {', '.join(names)}: no difference is told there.")
    print(write_report(config.folders, html=config.html, shown=config.shown, seed=config.seed))


def _print(found: Any) -> None:
    from rich.console import Console

    from balcap_jax.commands.evaluation_lines import lines, table

    console = Console()
    console.print(table(found))
    for line in lines(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    print(found.folder)


def _config_file(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The value of --config, and the arguments without it."""
    rest, path = [], None
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--config":
            value = next(waiting, None)
            if value is None:
                raise UserError("--config names no file; write --config configs/eval.toml.")
            path = Path(value)
        elif argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    return path, rest


_HELP = """\
usage: balcap eval dcscore --model MODEL --images DIR --facts FILE [FLAGS]
       balcap eval captionqa --captions FILE --data DIR [FLAGS]
       balcap eval caparena --captions FILE --data FILE --images DIR [FLAGS]
       balcap eval bcapscore --model MODEL --data FILE [FLAGS]
       balcap eval all --config configs/eval.toml [FLAGS]
       balcap eval report FOLDERS [FLAGS]

  dcscore    facts of captions, verified and matched to those of people (DeCapBench)
  captionqa  questions about images that a text model answers by the captions
  caparena   battles against the captions of three models (CapArena-Auto)
  bcapscore  precision, recall and linguistic quality, and b-CapScore
  all        every benchmark whose data are given, with one report
  report     evaluations side by side: a table, plots and captions in one page

`balcap eval dcscore --help` explains the flags; docs/evaluation.md the numbers."""
