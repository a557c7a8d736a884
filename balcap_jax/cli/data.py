"""`balcap data`: a data file before training: what is in it, and what a model makes of it."""

from balcap_jax.cli.flags import parse
from balcap_jax.config.claim_rivals import RubricsConfig
from balcap_jax.config.judge import CheckConfig, RecaptionConfig, UnitsConfig
from balcap_jax.config.names import did_you_mean
from balcap_jax.config.questions import QuestionsConfig
from balcap_jax.errors import UserError


def data(arguments: list[str]) -> None:
    """`balcap data ARGUMENTS`."""
    if arguments[:1] in ([], ["--help"], ["-h"]):
        print(_HELP)
        return
    if arguments[0] not in _COMMANDS:
        raise UserError(
            f"{arguments[0]!r} is not a command of `balcap data`, known are "
            f"{', '.join(_COMMANDS)}{did_you_mean(arguments[0], _COMMANDS, '`balcap data {}`')}"
        )
    _COMMANDS[arguments[0]](arguments[1:])


def _units(arguments: list[str]) -> None:
    config = parse(UnitsConfig, arguments, "data units")

    from balcap_jax.commands.recaption import make_units

    print(f"{make_units(config)} holds the reference units of {config.data}")


def _recaption(arguments: list[str]) -> None:
    config = parse(RecaptionConfig, arguments, "data recaption")

    from balcap_jax.commands.recaption import recaption

    print(f"train on the new captions with --data.path {recaption(config)}")


def _check(arguments: list[str]) -> None:
    config = parse(CheckConfig, arguments, "data check")

    from rich.console import Console

    from balcap_jax.commands.check_data import check_data, table

    found = check_data(config)
    Console().print(table(found))
    if found.problems:
        raise SystemExit(1)


def _rubrics(arguments: list[str]) -> None:
    config = parse(RubricsConfig, arguments, "data rubrics")

    from balcap_jax.commands.rubrics import make_rubrics

    print(f"{make_rubrics(config)} holds the rubrics of {config.data}")


def _questions(arguments: list[str]) -> None:
    config = parse(QuestionsConfig, arguments, "data questions")

    from balcap_jax.commands.questions import rejected_path, write_questions

    kept, without = write_questions(config)
    print(
        f"{config.out} holds {kept} images with questions; {without} have none that was kept "
        f"({rejected_path(config.out)})"
    )


_COMMANDS = {
    "check": _check,
    "units": _units,
    "recaption": _recaption,
    "questions": _questions,
    "rubrics": _rubrics,
}

_HELP = """\
usage: balcap data check FILE [FLAGS]
       balcap data units DATA [FLAGS]
       balcap data recaption DATA OUT [FLAGS]
       balcap data questions DATA OUT [FLAGS]
       balcap data rubrics DATA START --teachers NAME ... [FLAGS]

  check      what a data file holds and what is wrong with it; exit code 1 where anything is
  units      reference units of the reference captions, made once by a model
  recaption  new reference captions, by a model that sees the images
  questions  multiple-choice questions about the images, for the reward qa_utility
  rubrics    criteria of each image for the reward rubric, made once by a model

`balcap data units --help` explains the flags."""
