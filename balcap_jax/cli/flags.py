"""Flags of a command as settings; a mistake in them is one sentence.

The flags are the dotted names of the settings. argparse takes them apart and the settings convert
and check the values; tyro draws the help, with the comments beside the fields.
"""

import argparse
import dataclasses
import inspect
import types
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from balcap_jax.config.base import Settings, merged, names_of
from balcap_jax.config.conversion import Text
from balcap_jax.config.names import advice
from balcap_jax.errors import UserError, speaking_flags

SettingsT = TypeVar("SettingsT", bound=Settings)

_HELP = ("--help", "-h")
_INLINE = "settings."  # a room of this name adds its settings to the command's own flags


def parse(
    kind: type[SettingsT], arguments: list[str], command: str, *, default: SettingsT | None = None
) -> SettingsT:
    """`arguments` as an instance of `kind`; --help prints and exits.

    What has no default is given by place, in the order of the fields, everything else by flag.

    Raises:
      UserError: for an unknown flag, a missing or a bad value.
    """
    prog = f"balcap {command}"
    if any(argument in _HELP for argument in arguments):
        _print_help(kind, prog, default)
    places = {item.name: item.type for item in dataclasses.fields(kind) if _required(item)}
    flags = {name: inner for name, inner in names_of(kind).items() if name not in places}
    _check_flags(arguments, flags, places, prog)
    given, unknown = _parser(flags, places, prog).parse_known_intermixed_args(
        [_with_hyphens(argument) for argument in arguments]
    )
    if unknown:
        raise _not_taken(unknown[0], flags, prog)
    with speaking_flags():
        return merged(kind if default is None else default, vars(given))


def flags_of(kind: type) -> list[str]:
    """Every flag of (nested) settings, with the --no- forms of switches."""
    found = []
    for name, inner in names_of(kind).items():
        found += _spellings(name, inner)
    return found


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` explains the flags.")


def _parser(flags: dict[str, Any], places: dict[str, Any], prog: str) -> argparse.ArgumentParser:
    """Takes the arguments apart; values stay texts and what is not given is left out."""
    parser = _Parser(
        prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for name, kind in flags.items():
        spellings = _spellings(name, kind)
        if kind is bool:
            for spelling, value in zip(spellings, (True, False), strict=True):
                parser.add_argument(spelling, dest=name, action="store_const", const=value)
        else:
            many = {"nargs": "*"} if _is_tuple(kind) else {}
            parser.add_argument(*spellings, dest=name, type=Text, **many)
    for name, kind in places.items():
        many = {"nargs": "+"} if _is_tuple(kind) else {}
        parser.add_argument(name, metavar=_place(name), type=Text, **many)
    return parser


def _print_help(kind: type, prog: str, default: Settings | None) -> NoReturn:
    import tyro  # here alone: it takes a while

    places = " ".join(_place(item.name) for item in dataclasses.fields(kind) if _required(item))
    tyro.cli(
        kind,
        args=["--help"],
        prog=prog,
        description=f"{prog} {places}: {inspect.getdoc(kind)}" if places else None,
        config=(tyro.conf.PositionalRequiredArgs,),
        **({} if default is None else {"default": default}),
    )
    raise AssertionError("tyro exits after the help")


def _check_flags(
    arguments: list[str], flags: dict[str, Any], places: dict[str, Any], prog: str
) -> None:
    """Refuses flags that are unknown, the first of them with what to write in its place."""
    known = {spelling for name, kind in flags.items() for spelling in _spellings(name, kind)}
    for argument in arguments:
        flag = _with_hyphens(argument).partition("=")[0]
        if not flag.startswith("--") or flag in (*known, "--"):
            continue
        if flag[2:].replace("-", "_") in places:
            order = " ".join(map(_place, places))
            raise UserError(
                f"{prog} takes {_place(flag[2:])} by its place, not by the flag {flag}; write "
                f"`{prog} {order}`."
            )
        rest = _advice(flag[2:], flags)
        rest = f"; `{prog} --help` lists its flags." if rest == "." else rest
        raise UserError(f"{prog} has no flag {flag}{rest}")


def _not_taken(argument: str, flags: dict[str, Any], prog: str) -> UserError:
    name, equals, value = argument.partition("=")
    if equals and _spell(name) in map(_spell, flags):
        return UserError(f"{prog} does not take {argument!r}; write {_spell(name)} {value}.")
    if equals:  # as hydra writes settings
        return UserError(f"{prog} has no setting {name}{_advice(name, flags)}")
    return UserError(
        f"{prog} does not take the argument {argument!r}; flags start with --, `{prog} --help` "
        "lists them."
    )


def _advice(name: str, flags: dict[str, Any]) -> str:
    switches = [switch for name, kind in flags.items() if kind is bool
                for switch in (name, _negated(name))]  # fmt: skip
    known = {known.removeprefix(_INLINE) for known in (*flags, *switches)}
    return advice(name, known, spelled=_spell)


def _spellings(name: str, kind: Any) -> list[str]:
    """The flags of a setting: one, or two of a switch."""
    names = [name, _negated(name)] if kind is bool else [name]
    return [_spell(name) for name in names]


def _spell(name: str) -> str:
    return "--" + name.removeprefix(_INLINE).replace("_", "-")


def _negated(name: str) -> str:
    """`rl.whiten` as `rl.no_whiten`."""
    room, dot, last = name.rpartition(".")
    return f"{room}{dot}no_{last}"


def _place(name: str) -> str:
    return name.upper()


def _with_hyphens(argument: str) -> str:
    """A flag with the hyphens that Python's names cannot have; its value stays."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def _is_tuple(kind: Any) -> bool:
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return any(get_origin(part) is tuple for part in parts)


def _required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
