"""A value as a setting of some type holds it, or the rule that it breaks.

Python, TOML, JSON and the command line all go through `converted`, so that a setting means the same
wherever it was written.
"""

import math
import os
import types
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from balcap_jax.config.names import nearest
from balcap_jax.errors import UserError
from balcap_jax.storage.paths import as_path


class Text(str):
    """A value from the command line, where numbers are texts as well."""


class UnfitError(Exception):
    """A value does not fit the type of its setting.

    Args:
      rule: such as "must be a whole number".
      remedy: such as "did you mean gdpo?"; empty where the rule says it all.
    """

    def __init__(self, rule: str, remedy: str = "") -> None:
        super().__init__(rule)
        self.rule, self.remedy = rule, remedy


def converted(value: Any, kind: Any) -> Any:
    """`value` as a plain value of the type `kind`.

    Accepted beside values of the type itself: an int for a float, a string for a Path, a list for a
    tuple, scalars of numpy and JAX for plain numbers, and `Text` for all of them.

    Args:
      kind: bool, int, float, str, Path, a Literal, a tuple or a union of them, or any class.

    Raises:
      UnfitError: `value` is of another type, no choice of the Literal, or not finite.
    """
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if hasattr(value, "tolist"):  # numpy and JAX
        value = value.tolist()
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _choice(value, parts)
    if origin in (Union, types.UnionType):
        return _member(value, parts)
    if origin is tuple:
        return _tuple(value, parts)
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    if not isinstance(value, kind):
        raise UnfitError(
            f"must be a {kind.__name__}",
            f"make one, write a table in a file, or give a dictionary to {kind.__name__}.of.",
        )
    return value


def shown(value: Any) -> str:
    """`value` in a message: as Python writes it, in short."""
    text = repr(str(value) if isinstance(value, PurePath | str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_LARGEST = 2**31 - 1  # of whole numbers; devices count with 32 bits
_LARGEST_FLOAT = 3.4e38  # beyond it is infinity on devices
_LEAST_FLOAT = 1.2e-38  # below it is 0 on devices


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UnfitError("must be true or false")
    return value


def _int(value: Any) -> int:
    if isinstance(value, int | Text) and not isinstance(value, bool):
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is not None and abs(number) > _LARGEST:
            raise UnfitError(f"must be a whole number from -{_LARGEST} to {_LARGEST}")
        if number is not None:
            return number
    raise UnfitError("must be a whole number")


def _float(value: Any) -> float:
    if not isinstance(value, int | float | Text) or isinstance(value, bool):
        raise UnfitError("must be a number")
    try:
        number = float(value)
    except ValueError:
        raise UnfitError("must be a number") from None
    except OverflowError:  # an int beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise UnfitError("must be a finite number")
    if 0 < abs(number) < _LEAST_FLOAT:
        raise UnfitError(f"must be 0 or at least {_LEAST_FLOAT:g} in size")
    if abs(number) > _LARGEST_FLOAT:
        raise UnfitError(f"must be a number from -{_LARGEST_FLOAT:g} to {_LARGEST_FLOAT:g}")
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise UnfitError("must be a text")
    if "\0" in value:
        raise UnfitError("must be a text without a zero byte")
    return str(value)


def _path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise UnfitError("must be a path")
    if not str(value).strip() or "\0" in str(value):
        raise UnfitError("must be a path, and is empty or holds a zero byte", "name one.")
    try:
        return as_path(value)
    except UserError as error:
        rule, _, remedy = str(error).removeprefix(f"{value} ").partition(": ")
        raise UnfitError(rule, remedy) from None


_PLAIN: dict[type, Callable[[Any], Any]] = {
    bool: _bool, int: _int, float: _float, str: _str, Path: _path,
}  # fmt: skip


def _choice(value: Any, choices: tuple) -> Any:
    for choice in choices:
        try:
            if converted(value, type(choice)) == choice:
                return choice
        except UnfitError:
            continue
    known = [str(choice) for choice in choices]
    like = nearest(str(value), known)
    remedy = f"did you mean {like}?" if like else "choose one of them."
    raise UnfitError(f"must be one of {', '.join(known)}", remedy)


def _member(value: Any, kinds: tuple) -> Any:
    """`value` as the first type of a union that it fits."""
    if type(None) in kinds and (value is None or value == Text("None")):
        return None
    rules = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return converted(value, kind)
            except UnfitError as error:
                rules.append(error)
    if len(rules) == 1:
        raise rules[0]
    raise UnfitError(" or ".join(error.rule for error in rules))


def _tuple(value: Any, kinds: tuple) -> tuple:
    if not isinstance(value, list | tuple):
        raise UnfitError("must be a list", "write [...] around it.")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise UnfitError(f"must be a list of {len(kinds)}")
    items = []
    for item, kind in zip(value, kinds, strict=True):
        try:
            items.append(converted(item, kind))
        except UnfitError as error:
            raise UnfitError(f"holds {shown(item)}, which {error.rule}", error.remedy) from None
    return tuple(items)
