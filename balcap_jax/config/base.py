"""What all settings share: checks with a remedy, and the way to dictionaries and back."""

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from balcap_jax.errors import UserError


def nearest(name: str, known: Iterable[str]) -> str:
    """The entry of `known` that is most like `name`, as ", did you mean ...?" remedies need it."""
    known = sorted(known)
    scores = [difflib.SequenceMatcher(None, name, other).ratio() for other in known]
    return known[scores.index(max(scores))]


class Settings:
    """Base of all settings: choices and finite numbers are checked here, ranges in `check`."""

    room = ""  # dotted prefix of the fields, for messages

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, float):
                self._require(math.isfinite(value), item.name, "must be a finite number")
            if get_origin(item.type) is Literal:
                choices = get_args(item.type)
                self._require(
                    value in choices,
                    item.name,
                    f"must be one of {', '.join(map(str, choices))}",
                    f"did you mean {nearest(str(value), map(str, choices))}?",
                )
        self.check()

    def check(self) -> None:
        """Raises UserError for values out of range and for settings that could have no effect."""

    def _require(self, ok: bool, name: str, rule: str, remedy: str = "") -> None:  # noqa: FBT001
        if not ok:
            flag = "--" + f"{self.room}{name}".replace("_", "-")
            value = getattr(self, name)
            shown = value if isinstance(value, int | float) else repr(value)
            remedy = remedy or f"change {flag}."
            raise UserError(f"{self.room}{name}={shown} {rule}; {remedy}")

    def _at_least(self, low: int | float, *names: str) -> None:
        for name in names:
            flag = "--" + f"{self.room}{name}".replace("_", "-")
            ok = getattr(self, name) >= low
            self._require(ok, name, f"must be at least {low}", f"set {flag} {low} or more.")

    def _no_dead_settings(self, choice: str, read_by: dict[str, tuple[str, ...]]) -> None:
        """Refuses a changed setting that the chosen variant does not read."""
        chosen = getattr(self, choice)
        for name, readers in read_by.items():
            default = type(self).__dataclass_fields__[name].default  # type: ignore[attr-defined]
            flag = "--" + f"{self.room}{choice}".replace("_", "-")
            self._require(
                chosen in readers or getattr(self, name) == default,
                name,
                f"has no effect with {self.room}{choice}={chosen!r}",
                f"leave it at {default} or set {flag} {readers[0]}.",
            )

    def _positive(self, *names: str) -> None:
        for name in names:
            self._require(getattr(self, name) > 0, name, "must be above 0")


SettingsT = TypeVar("SettingsT", bound=Settings)


def to_dict(settings: Settings) -> dict[str, Any]:
    """`settings` as nested dictionaries that JSON and TOML can hold; `from_dict` reads them."""
    return {
        item.name: _plain(getattr(settings, item.name))
        for item in dataclasses.fields(settings)  # type: ignore[arg-type]
    }


def from_dict(kind: type[SettingsT], values: Mapping[str, Any], *, source: str) -> SettingsT:
    """Settings from nested dictionaries; what is missing keeps its default.

    Args:
      kind: such as TrainConfig.
      source: where the values come from, for messages.

    Raises:
      UserError: a field is unknown (names the nearest one), has the wrong type or a bad value.
    """
    return _from_dict(kind(), values, source=source, where="")  # type: ignore[call-arg]


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _from_dict(default: Any, values: Mapping[str, Any], *, source: str, where: str) -> Any:
    known = {item.name: item.type for item in dataclasses.fields(default)}
    changed = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(
                f"{source} has the unknown field {where}{name}; did you mean "
                f"{where}{nearest(name, known)}?"
            )
        old = getattr(default, name)
        if isinstance(old, Settings):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{source} has {where}{name}={value!r}, which must be a table of settings; "
                    f"write [{where}{name}] above them."
                )
            changed[name] = _from_dict(old, value, source=source, where=f"{where}{name}.")
        else:
            changed[name] = _converted(value, known[name], f"{source} has {where}{name}={value!r}")
    return dataclasses.replace(default, **changed)


def _converted(value: Any, kind: Any, has: str) -> Any:
    """`value` as a field of type `kind` holds it; TOML and JSON know no tuples and no paths."""
    if get_origin(kind) is Literal:  # the choices are checked by the settings themselves
        kind = type(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):  # `X | None`
        if value is None:
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        if isinstance(value, list):
            return tuple(_converted(item, get_args(kind)[0], has) for item in value)
        raise UserError(f"{has}, which must be a list; write [...] around it.")
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        want = {bool: "true or false", int: "a whole number", float: "a number"}
        raise UserError(f"{has}, which must be {want.get(kind, 'a text')}; change it.")
    return value
