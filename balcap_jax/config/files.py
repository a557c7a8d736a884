"""Settings from TOML files and from runs, and what may change when a run is resumed."""

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from balcap_jax.config.base import SettingsT, from_dict, to_dict
from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.errors import UserError

# What a resumed run may change: none of these alters the numbers of a training step beyond the
# rounding of a different order of sums.
RESUMABLE = frozenset(
    {
        "name",
        "out",
        "steps",
        "log_every",
        "loggers",
        "sample_every",
        "profile",
        "model.attention",
        "model.remat",
        "data.max_bad_images",
        "data.workers",
        "judge.max_failure_share",
        "judge.failure_window",
        # Where and how fast the same model is asked, and what is kept of its answers.
        "judge.base_url",
        "judge.key_env",
        "judge.concurrency",
        "judge.requests_per_minute",
        "judge.tokens_per_minute",
        "judge.timeout",
        "judge.retries",
        "judge.backoff",
        "judge.deadline",
        "judge.cache",
        "judge.replay",
        "judge.prompt_price",
        "judge.completion_price",
        "rl.micro_batches",
        "micro_batches",
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
        "mesh.gather",
        "dist.coordinator",
        "dist.processes",
        "dist.process",
        "dist.start_timeout",
        "dist.lost_after",
        "checkpoint.every",
        "checkpoint.parameters_every",
        "checkpoint.keep",
        "checkpoint.keep_best",
        "evaluation.every",
        "evaluation.batch_size",
    }
)

_OF_JUDGES = {name for name in RESUMABLE if name.startswith("judge.")}
RESUMABLE |= {name.replace("judge.", "audit.") for name in _OF_JUDGES}
RESUMABLE |= {f"reward.{name}" for name in _OF_JUDGES}

RIVALS = "rivals"  # the folder of presets of other methods, among the configs
_ALIKE = 0.4  # of names of config files, which share long words


def load_toml(kind: type[SettingsT], path: Path) -> SettingsT:
    """Settings from a TOML file with one table per room.

    Args:
      path: of the file, or the name of one of `shipped_configs`.

    Raises:
      UserError: the file is missing, is not TOML, or `from_dict` refuses its values.
    """
    path = find_config(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"The config file {path} cannot be read ({error.strerror}); check the path of --config."
        ) from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UserError(
            f"The config file {path} is not TOML ({error}); see configs/ for examples."
        ) from error
    return from_dict(kind, values, source=str(path))


def find_config(path: Path) -> Path:
    """`path`, or the file of that name among those that come with the package.

    A file in the working directory wins over one of the package.

    Raises:
      UserError: `path` is a bare name, and there is no file of that name.
    """
    wanted = path.as_posix()
    if path.exists() or path.suffix or not (len(path.parts) == 1 or path.parts[0] == RIVALS):
        return path
    known = shipped_configs()
    if wanted not in known:
        near = [name for name in known if wanted in name]
        near = near or difflib.get_close_matches(wanted, known, n=3, cutoff=_ALIKE)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
        raise UserError(
            f"There is no config {wanted!r}, neither as a file nor in the package; {remedy}"
        )
    return known[wanted]


def shipped_configs() -> dict[str, Path]:
    """The TOML files that come with the package, by their names without .toml; presets of other
    methods as rivals/NAME.
    """
    package = Path(__file__).parents[1]
    # A wheel has them inside the package; in a checkout they lie beside it.
    folder = next(
        (f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None
    )
    if folder is None:
        return {}
    own = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    rivals = sorted((folder / RIVALS).glob("*.toml"))
    return own | {f"{RIVALS}/{path.stem}": path for path in rivals}


RunConfig = TypeVar("RunConfig", TrainConfig, SFTConfig)
_COMMANDS = {TrainConfig: "train", SFTConfig: "sft"}


def load_run(run: Path, kind: type[RunConfig] = TrainConfig) -> RunConfig:
    """The settings of a run of this kind, from its config.json.

    Raises:
      UserError: the folder holds no readable config.json, or it is a run of another kind.
    """
    config = load_any_run(run)
    if not isinstance(config, kind):
        command = _COMMANDS[type(config)]
        raise UserError(
            f"{run} is a run of `balcap {command}`, not of `balcap {_COMMANDS[kind]}`; go on with "
            f"`balcap {command} --resume {run}`, or give its folder as --model.path."
        )
    return config


def load_any_run(run: Path) -> TrainConfig | SFTConfig:
    """The settings of a run, from its config.json.

    Raises:
      UserError: the folder holds no readable config.json.
    """
    path = run / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{run} is not a run, because {path} cannot be read ({error.strerror}); "
            "give the folder that `balcap train` printed, such as runs/balcap."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); restore the file or start a new run."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; restore the file or start a new run.")
    if isinstance(data := values.get("data"), dict):  # a run of before there was this setting
        data.setdefault("group_by_length", 0)
    kind = SFTConfig if "batch_size" in values else TrainConfig
    return from_dict(kind, values, source=str(path))


def check_resume(run: Path, old: RunConfig, new: RunConfig, *, anyway: bool = False) -> None:
    """Refuses to go on with `run` in another folder or with settings that would make it another.

    Args:
      anyway: other settings are wanted.

    Raises:
      UserError: they differ in what a resumed run may not change.
    """
    if (new.out, new.name) != (old.out, old.name):
        raise UserError(
            f"--resume {run} goes on in its own folder, not in {new.out / new.name}; drop --out "
            "and --name."
        )
    if (conflicts := resume_conflicts(old, new)) and not anyway:
        raise UserError(
            f"{run} cannot be resumed with changed {', '.join(conflicts)}, because its steps "
            "would no longer be one run; drop these flags, start a new run with --name, or go on "
            "all the same with --resume-anyway."
        )


def check_resume_flags(resume: Path | None, *, checkpoint: str, anyway: bool) -> None:
    """Refuses flags that say how a run is resumed where none is.

    Raises:
      UserError: there is no --resume.
    """
    for flag, given in (("--checkpoint", checkpoint), ("--resume-anyway", anyway)):
        if given and resume is None:
            raise UserError(f"{flag} is for a run to go on with; give its folder as --resume RUN.")


def resume_conflicts(old: RunConfig, new: RunConfig) -> list[str]:
    """The changed fields that a run cannot be resumed with, each as "rl.eps (0.0001 -> 0.1)".

    Empty when `new` continues `old` as if it had never stopped.
    """
    return conflicts_of(to_dict(old), to_dict(new))


def conflicts_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`resume_conflicts` of settings as dictionaries; what only one of them has is no conflict."""
    before, after = flat(old), flat(new)
    fixed = (before.keys() & after.keys()) - RESUMABLE
    if before.get("optim.schedule") != "constant":
        fixed.add("steps")  # the learning rate of every step depends on where the schedule ends
    if before.get("model.lora.dropout"):
        fixed |= before.keys() & {"rl.micro_batches", "micro_batches"}  # each draws its own
    return [
        f"{name} ({before[name]} -> {after[name]})"
        for name in before
        if name in fixed and before[name] != after[name]
    ]


def flat(values: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, where=f"{where}{name}.")
        else:
            found[where + name] = value
    return found
