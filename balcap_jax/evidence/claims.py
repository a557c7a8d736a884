"""The claims of configs/evidence/: what would refute each, its cells, and what is compared.

number = 1
name = "spreads"
title = "c-GDPO against GRPO"
says = "..."
refuted_by = "..."
required = true

[base]                      # settings of `balcap train` that all its cells share
[cells.gdpo]                # settings of one; also `kind`, `seeds` and `waits`: see `Setting`
[cells.grpo]
rl.advantage = "grpo"

[[comparisons]]
title = "rewards as they are"
one = "gdpo"
other = "grpo"
expected = {b_capscore = "higher"}   # of one beside other: higher, lower or equal

[[curves]]                  # numbers of training over its steps
title = "length"
cells = ["gdpo", "grpo"]
series = ["rho/mean"]

[[scatters]]                # held-out numbers of all cells beside each other, size by a third
title = "recall and language"
x = "recall"
y = "linguistic"
size = "words"
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.config.files import shipped_configs
from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError
from balcap_jax.evidence.cells import KINDS, Cell, make_cell
from balcap_jax.evidence.measures import MARGINS

EXPECTATIONS = ("higher", "lower", "equal")
_FIELDS = (
    "number",
    "name",
    "title",
    "says",
    "refuted_by",
    "required",
    "base",
    "cells",
    "comparisons",
    "curves",
    "scatters",
    "captions",
)
_OF_COMPARISON = ("title", "one", "other", "expected")
_OF_CURVES = ("title", "cells", "series")
_OF_SCATTER = ("title", "x", "y", "size")
_OF_CELL = ("kind", "seeds", "waits")
MOST_CAPTIONS = 8  # images whose captions a result keeps


class Comparison(NamedTuple):
    """Two cells, paired by their seeds.

    Attributes:
      one, other: names of cells of the claim.
      expected: by measure, "higher", "lower" or "equal": of `one` beside `other`.
    """

    title: str
    one: str
    other: str
    expected: dict[str, str]


class Curves(NamedTuple):
    """Numbers of training over its steps, cells beside one another.

    Attributes:
      cells: names of cells of the claim.
      series: names in metrics.jsonl.
    """

    title: str
    cells: tuple[str, ...]
    series: tuple[str, ...]


class Scatter(NamedTuple):
    """Measures of all cells, a dot per seed.

    Attributes:
      x, y, size: of `MARGINS`.
    """

    title: str
    x: str
    y: str
    size: str


class Setting(NamedTuple):
    """What the cells of all seeds of one name have in common.

    Attributes:
      kind: of `KINDS`.
      values: settings of `balcap train`, as a TOML file gives them, those of the base among them.
      seeds: the most seeds that it is run with; None: as many as are asked for.
      waits: so many seeds of the others come before its first one.
      source: where it stands, for messages.
    """

    kind: str
    values: dict[str, Any]
    seeds: int | None
    waits: int
    source: str


class Claim(NamedTuple):
    """One claim and what tests it.

    Attributes:
      required: its cells come before those of claims that are not.
      captions: of how many held-out images the captions of all settings are shown side by side.
    """

    number: int
    name: str
    title: str
    says: str
    refuted_by: str
    required: bool
    settings: dict[str, Setting]
    comparisons: tuple[Comparison, ...]
    curves: tuple[Curves, ...]
    scatters: tuple[Scatter, ...]
    captions: int

    def cell(self, name: str, seed: int) -> Cell:
        """The cell of one of its settings and a seed.

        Raises:
          UserError: see `make_cell`.
        """
        setting = self.settings[name]
        return make_cell(setting.kind, setting.values, seed=seed, source=setting.source)


def shipped_claims() -> list[Path]:
    """The files of the package's claims."""
    folder = shipped_configs()["eval"].parent / "evidence"
    return sorted(folder.glob("*.toml"))


def read_claims(paths: Sequence[Path]) -> list[Claim]:
    """The claims of these files, by their numbers.

    Raises:
      UserError: a file is no claim, or two have one number or name.
    """
    claims = sorted((read_claim(path) for path in paths), key=lambda claim: claim.number)
    for what in ("number", "name"):
        seen: dict[Any, str] = {}
        for claim in claims:
            value = getattr(claim, what)
            if value in seen:
                raise UserError(
                    f"the claims {seen[value]!r} and {claim.title!r} both have the {what} "
                    f"{value!r}; give each its own."
                )
            seen[value] = claim.title
    return claims


def chosen_claims(claims: Sequence[Claim], wanted: Sequence[str]) -> list[Claim]:
    """Those that are named, by number or name; without any, all of them.

    Raises:
      UserError: there is no such claim (names the nearest one).
    """
    if not wanted:
        return list(claims)
    by_name = {name: c for c in claims for name in (str(c.number), c.name)}
    for name in wanted:
        if name not in by_name:
            known = ", ".join(f"{claim.number} ({claim.name})" for claim in claims)
            names = [claim.name for claim in claims]
            raise UserError(
                f"there is no claim {name!r}, known are {known}{did_you_mean(name, names)}"
            )
    chosen = {by_name[name].number for name in wanted}
    return [claim for claim in claims if claim.number in chosen]


def read_claim(path: Path) -> Claim:
    """One claim.

    Raises:
      UserError: the file cannot be read, is not TOML, or says what no claim may say.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        raise UserError(f"{path} is not TOML ({error}); correct it.") from error
    _check_fields(values, _FIELDS, where=str(path))
    for name, kind in (("number", int), ("name", str), ("title", str), ("says", str),
                       ("refuted_by", str), ("required", bool), ("cells", dict)):  # fmt: skip
        if not isinstance(values.get(name), kind):
            raise UserError(f"{path} must have {name}, of type {kind.__name__}; add it.")
    settings = {
        name: _setting(path, name, own, values.get("base", {}))
        for name, own in values["cells"].items()
    }
    claim = Claim(
        values["number"],
        values["name"],
        values["title"],
        values["says"],
        values["refuted_by"],
        values["required"],
        settings,
        tuple(_comparison(path, row, settings) for row in values.get("comparisons", [])),
        tuple(_curves(path, row, settings) for row in values.get("curves", [])),
        tuple(_scatter(path, row) for row in values.get("scatters", [])),
        _captions(path, values.get("captions", 0)),
    )
    for name in settings:  # a mistake in the last cell must not wait for its turn
        claim.cell(name, 0)
    return claim


def _setting(path: Path, name: str, own: Any, base: Mapping[str, Any]) -> Setting:
    source = f"{path}, cell {name}"
    if not isinstance(own, dict):
        raise UserError(f"{source} is no table of settings; write [cells.{name}].")
    kind, seeds, waits = own.get("kind", KINDS[0]), own.get("seeds"), own.get("waits", 0)
    if kind not in KINDS:
        raise UserError(
            f"{source} has the kind {kind!r}, known are "
            f"{', '.join(KINDS)}{did_you_mean(str(kind), KINDS)}"
        )
    if seeds is not None and not (isinstance(seeds, int) and seeds >= 1):
        raise UserError(f"{source} has seeds={seeds!r}, which must be at least 1; change it.")
    if not (isinstance(waits, int) and waits >= 0):
        raise UserError(f"{source} has waits={waits!r}, which must be 0 or more; change it.")
    values = {name: value for name, value in own.items() if name not in _OF_CELL}
    return Setting(kind, _over(base, values), seeds, waits, source)


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, those of `own` on top."""
    found = dict(base)
    for name, value in own.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = _over(found[name], value) if both else value
    return found


def _comparison(path: Path, row: Any, settings: Mapping[str, Setting]) -> Comparison:
    where = f"{path}, a comparison"
    _check_fields(row, _OF_COMPARISON, where=where, all_of_them=True)
    _check_cells((row["one"], row["other"]), settings, where=where)
    for measure, expected in row["expected"].items():
        _check_measure(measure, where=where)
        if expected not in EXPECTATIONS:
            raise UserError(
                f"{where} expects {measure} to be {expected!r}, which must be one of "
                f"{', '.join(EXPECTATIONS)}; change it."
            )
    return Comparison(row["title"], row["one"], row["other"], dict(row["expected"]))


def _curves(path: Path, row: Any, settings: Mapping[str, Setting]) -> Curves:
    where = f"{path}, a set of curves"
    _check_fields(row, _OF_CURVES, where=where, all_of_them=True)
    _check_cells(row["cells"], settings, where=where)
    return Curves(row["title"], tuple(row["cells"]), tuple(row["series"]))


def _scatter(path: Path, row: Any) -> Scatter:
    where = f"{path}, a scatter"
    _check_fields(row, _OF_SCATTER, where=where, all_of_them=True)
    for axis in ("x", "y", "size"):
        _check_measure(row[axis], where=where)
    return Scatter(**row)


def _captions(path: Path, count: Any) -> int:
    if not isinstance(count, int) or not 0 <= count <= MOST_CAPTIONS:
        raise UserError(
            f"{path} has captions={count!r}, which must be a number from 0 to {MOST_CAPTIONS}; "
            "change it."
        )
    return count


def _check_measure(measure: Any, *, where: str) -> None:
    if measure not in MARGINS:
        raise UserError(
            f"{where} names the measure {measure!r}, known are "
            f"{', '.join(MARGINS)}{did_you_mean(str(measure), MARGINS)}"
        )


def _check_cells(names: Sequence[Any], settings: Mapping[str, Setting], *, where: str) -> None:
    for name in names:
        if name not in settings:
            raise UserError(
                f"{where} names the cell {name!r}, which the file does not have"
                f"{did_you_mean(str(name), settings)}"
            )


def _check_fields(
    values: Any, known: Sequence[str], *, where: str, all_of_them: bool = False
) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is no table; see configs/evidence for examples.")
    for name in values:
        if name not in known:
            raise UserError(f"{where} has the unknown field {name}{did_you_mean(name, known)}")
    missing = [name for name in known if name not in values]
    if all_of_them and missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; add it.")
