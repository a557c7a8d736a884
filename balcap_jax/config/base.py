"""What all settings share: checks with a remedy, and the way to dictionaries and back."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin

from balcap_jax.config.conversion import UnfitError, converted, shown
from balcap_jax.config.names import advice
from balcap_jax.errors import UserError, as_arguments, in_callers_words


class Settings:
    """Base of all settings: types, choices and finite numbers are checked here, ranges in `check`.

    Raises:
      UserError: when settings are made with a value that is not one of its type or not in range.
        The sentence names settings, and flags where the command line makes them.
    """

    room = ""  # dotted prefix of the fields, for messages

    def __post_init__(self) -> None:
        try:
            self._convert()
            self.check()
        except UserError as error:
            raise UserError(in_callers_words(str(error))) from None

    def _convert(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            try:
                value = converted(getattr(self, item.name), item.type)
            except UnfitError as error:
                example = "" if error.remedy else _example(item)
                self._require(False, item.name, error.rule + example, error.remedy)  # noqa: FBT003
            object.__setattr__(self, item.name, value)  # the dataclasses are frozen

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Settings from dotted names and nested dictionaries; what is missing keeps its default.

        Args:
          values: such as {"steps": 200, "rollout.group_size": 8, "optim": {"learning_rate": 1e-6}}.

        Raises:
          UserError: a setting is unknown (names the nearest one), given twice or has a bad value.
        """
        return from_dict(cls, values)

    def check(self) -> None:
        """Raises UserError for values out of range and for settings that could have no effect."""

    def _require(self, ok: bool, name: str, rule: str, remedy: str = "") -> None:  # noqa: FBT001
        if not ok:
            flag = "--" + f"{self.room}{name}".replace("_", "-")
            remedy = remedy or f"change {flag}."
            raise UserError(f"{self.room}{name}={shown(getattr(self, name))} {rule}; {remedy}")

    def _at_least(self, low: int | float, *names: str) -> None:
        for name in names:
            flag = "--" + f"{self.room}{name}".replace("_", "-")
            ok = getattr(self, name) >= low
            self._require(ok, name, f"must be at least {low}", f"set {flag} {low} or more.")

    def _at_most(self, high: int | float, *names: str) -> None:
        for name in names:
            flag = "--" + f"{self.room}{name}".replace("_", "-")
            ok = getattr(self, name) <= high
            self._require(ok, name, f"must be at most {high}", f"set {flag} {high} or less.")

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


def from_dict(kind: type[SettingsT], values: Mapping[str, Any], *, source: str = "") -> SettingsT:
    """Settings from dictionaries, whose names may be dotted; what is missing keeps its default.

    Args:
      kind: such as TrainConfig.
      source: where the values come from, for messages.

    Raises:
      UserError: a field is unknown (names the nearest one), given twice or has a bad value. The
        sentence speaks of dotted names, not of flags.
    """
    try:
        return merged(kind, _dotted(kind, values))
    except UserError as error:
        sentence = as_arguments(str(error))
        raise UserError(f"{source}: {sentence}" if source else sentence) from None


def merged(base: Any, values: Mapping[str, Any]) -> Any:
    """Settings with some of them changed.

    Args:
      base: settings, or their class for its defaults.
      values: of dotted names, all of them known.

    Raises:
      UserError: a value is bad, or a setting without a default is not given.
    """
    kind = base if isinstance(base, type) else type(base)
    now: dict[str, Any] = {}
    rooms: dict[str, dict[str, Any]] = {}
    for item in dataclasses.fields(kind):
        if base is not kind:
            now[item.name] = getattr(base, item.name)
        elif item.default is not dataclasses.MISSING:
            now[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            now[item.name] = item.default_factory()
    for name, value in values.items():
        room, dot, rest = name.partition(".")
        if dot:
            rooms.setdefault(room, {})[rest] = value
        else:
            now[name] = value
    for room, inner in rooms.items():
        now[room] = merged(now.get(room, kinds_of(kind)[room]), inner)
    for name in kinds_of(kind):
        if name not in now:
            raise UserError(f"{kind.room}{name} is missing; it has no default, so give it.")
    return kind(**now)


def kinds_of(kind: type) -> dict[str, Any]:
    """The type of each field, by its name."""
    return {
        item.name: get_args(item.type)[0] if get_origin(item.type) is Annotated else item.type
        for item in dataclasses.fields(kind)
    }


def names_of(kind: type) -> dict[str, Any]:
    """The type of each setting, by its dotted name; those of rooms come in their place."""
    found: dict[str, Any] = {}
    for name, inner in kinds_of(kind).items():
        if isinstance(inner, type) and issubclass(inner, Settings):
            found |= {f"{name}.{rest}": leaf for rest, leaf in names_of(inner).items()}
        else:
            found[name] = inner
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    return value


def _dotted(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted names that `kind` knows; a room may be given whole, as settings."""
    known = names_of(kind)
    rooms = {name.rpartition(".")[0] for name in known} - {""}
    found: dict[str, Any] = {}
    for name, value in _leaves(values):
        if name not in known and name not in rooms:
            raise UserError(f"there is no setting {name}{advice(name, known)}")
        if name in rooms and isinstance(value, Mapping):  # an empty table
            continue
        for other in found:
            if f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}."):
                raise UserError(
                    f"{max(name, other, key=len)} is given twice, with dots and in a table or "
                    "settings of its room; give it once."
                )
        found[name] = value
    return found


def _leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def _example(item: dataclasses.Field) -> str:
    """The default of a setting as an example of what it must be."""
    if not isinstance(item.default, int | float | str | Path) or item.default == "":
        return ""
    return f", such as the default {shown(item.default)}"
