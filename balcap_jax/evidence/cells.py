"""A cell of the evidence: one configuration and one seed, known by what it computes."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.config.base import from_dict, to_dict
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import DistConfig
from balcap_jax.errors import UserError
from balcap_jax.evidence.code_version import trl_version
from balcap_jax.runs.contents import pieces

KINDS = ("train", "trl")  # a run of balcap train; the same by TRL's GRPOTrainer
# What every cell has unless its table says otherwise: no samples, no loggers, hardly a checkpoint,
# and the held-out images in as few programs as possible.
_DEFAULTS: dict[str, Any] = {
    "loggers": [],
    "sample_every": 10**9,
    "checkpoint": {"every": 50, "keep": 1, "keep_best": False},
    "evaluation": {"batch_size": 200},
}
_GIVEN = ("name", "out", "seed")  # by the runner
# Of paths, what the package has itself; "" would be the working directory.
_NO_FILES = ("", "scenes", "memory", "base")
# Of rewards, what does not change those of held-out captions.
_OF_TRAINING = (
    "names", "functions", "weights", "length_control", "tau_l", "tau_u", "mask_mode",
    "linear_coefficient", "length_unit", "pointability",
)  # fmt: skip
_PIECES = 128  # MB of a larger file that are read for its digest
_SHOWN = 16  # hexadecimal digits of a digest


class Cell(NamedTuple):
    """One run.

    Attributes:
      kind: of `KINDS`.
      config: its settings; where it is written is left open.
    """

    kind: str
    config: TrainConfig

    @property
    def seed(self) -> int:
        return self.config.seed

    def key(self, code: str) -> str:
        """The name of its folder: of the same settings, data and code it is the same.

        Args:
          code: see `code_version`.
        """
        settings = to_dict(dataclasses.replace(self.config, dist=DistConfig()))
        by = trl_version() if self.kind == "trl" else ""
        return _digest([self.kind, _without(settings, "name", "out"), self._contents(), code, by])

    def start_key(self, code: str) -> str:
        """The same for all cells whose starting policies have the same held-out scores."""
        config = self.config
        rooms = {name: to_dict(getattr(config, name)) for name in
                 ("model", "data", "judge", "evaluation", "mesh")}  # fmt: skip
        if config.reward.rivals:  # which held-out captions have, too
            rooms["rivals"] = _without(to_dict(config.reward), *_OF_TRAINING)
        tokens = config.rollout.max_new_tokens
        return _digest(["start", rooms, config.seed, tokens, self._contents(), code])

    def _contents(self) -> list[str]:
        """Of the files that its settings name: another file under the same name is another cell."""
        data, model = self.config.data, self.config.model
        named = (data.path, data.heldout_path, data.boxes, model.path, model.lora.start,
                 *self.config.reward.files.values())  # fmt: skip
        return ["" if name in _NO_FILES else content_of(Path(name)) for name in named]


def make_cell(kind: str, values: Mapping[str, Any], *, seed: int, source: str = "") -> Cell:
    """The cell of these settings.

    Raises:
      UserError: a setting is unknown, has a bad value, or is one that the runner gives.
    """
    for name in _GIVEN:
        if name in values:
            raise UserError(f"{source} gives {name}, which the runner gives; leave it out.")
    merged = _under(_DEFAULTS, values)
    config = from_dict(TrainConfig, {**merged, "seed": seed}, source=source)
    return Cell(kind, config)


def content_of(path: Path) -> str:
    """A digest of a file or folder; "" of what is none, such as "scenes" or a name on the hub."""
    if path.is_file():
        return _digest([path.stat().st_size, _part(path)])
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return _digest([[str(p.relative_to(path)), p.stat().st_size, _part(p)] for p in files])
    return ""


def _part(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in pieces(path, most=_PIECES):
        digest.update(piece)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_SHOWN]


def _without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _under(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, whose names may be dotted, over nested defaults."""
    found = {
        name: dict(value) if isinstance(value, dict) else value for name, value in defaults.items()
    }
    for name, value in values.items():
        room, dot, rest = name.partition(".")
        if dot and isinstance(found.get(room), dict):
            found[room][rest] = value
        elif isinstance(value, Mapping) and isinstance(found.get(name), dict):
            found[name] = {**found[name], **value}
        else:
            found[name] = value
    return found
