"""Flags of a command as a dataclass, by tyro; a mistake in them is one sentence."""

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import tyro

from balcap_jax.config.base import nearest
from balcap_jax.errors import UserError

T = TypeVar("T")


def parse(
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
        for error in chain(stop):
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
                f"{prog} has no flag {flag}; did you mean {_nearest_flag(flag, flags_of(kind))}?"
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


def flags_of(kind: type, prefix: str = "") -> list[str]:
    """Every flag of a (nested) dataclass, in tyro's spelling."""
    flags = []
    for item in dataclasses.fields(kind):
        inner = getattr(item.type, "__origin__", item.type)  # Annotated[X, ...] -> X
        if dataclasses.is_dataclass(inner):
            room = prefix if item.name == "settings" else f"{prefix}{item.name}."
            flags += flags_of(inner, room)  # type: ignore[arg-type]
        else:
            flags.append("--" + f"{prefix}{item.name}".replace("_", "-"))
            if item.type is bool:
                flags.append("--" + f"{prefix}no-{item.name}".replace("_", "-"))
    return flags


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
