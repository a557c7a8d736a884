"""The files that a run reads beside its data, as digests that a resumed run is compared with:
processor and template of its policy, models that judge, reference units, reward functions.
"""

import glob
import hashlib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.judge import POLICY, JudgeConfig
from balcap_jax.models.hf.companions import COMPANIONS, TEMPLATES
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.rewards.function_names import RewardFunction
from balcap_jax.rewards.llm.stored_units import units_path
from balcap_jax.rewards.rivals.rubric_files import rubrics_path
from balcap_jax.runs.contents import pieces
from balcap_jax.storage.local import fetched

_FILES = "files of "
PROCESSOR = f"{_FILES}the processor of model.path"  # in every record that has any of these
_UNITS = "reference units beside data.path"
FUNCTIONS = "code of reward functions"
_PIECES = 64  # MB of a larger file that are read


def other_files(config: TrainConfig | SFTConfig, folder: Path) -> dict[str, str]:
    """Digests by what they are of.

    Args:
      folder: that the run starts from.

    Raises:
      UserError: there is no folder of a judge's model.
    """
    found = {PROCESSOR: processor_digest(folder)}
    if not isinstance(config, TrainConfig):
        return found
    for judge in (config.judge, config.audit):
        found |= _of_judge(judge, folder)
        units = units_path(config.data.path)
        if judge.kind == "llm" and units.is_file():
            found[_UNITS] = _digest(units.parent, [units.name])
    files = dict(config.reward.files)
    if config.reward.judge.kind == "llm" and "rubric" in config.reward.rivals:
        files.setdefault("reward.rubric.file", str(rubrics_path(config.data.path)))
    for setting, file in files.items():
        path = fetched(file)
        found[f"{_FILES}{setting}"] = _digest(path.parent, [glob.escape(path.name)])
    return found


def processor_digest(folder: Path) -> str:
    """Of the files of tokenizer, processor and templates in a model folder."""
    return _digest(folder, (*COMPANIONS, f"{TEMPLATES}/*.jinja"))


def is_other(name: str) -> bool:
    """Whether a fact of this name is one of `other_files`."""
    return name.startswith(_FILES) or name == _UNITS


def _of_judge(judge: JudgeConfig, start: Path) -> dict[str, str]:
    weights = ("*.safetensors", "*.index.json", "config.json", *COMPANIONS)
    found = {}
    for setting, name in judge.device_models.items():
        folder = start if name == POLICY else policy_folder(name)
        found[f"{_FILES}{judge.room}{setting}"] = _digest(folder, weights)
    return found


def code_of(functions: Sequence[RewardFunction]) -> dict[str, str]:
    """A digest of the source of each function, by its name; without those that have none."""
    found = {}
    for function in functions:
        inner = getattr(function.call, "func", function.call)  # of functools.partial
        try:
            source = inspect.getsource(inner if inspect.isroutine(inner) else type(inner))
        except (OSError, TypeError):  # typed into a shell, or of C
            continue
        found[function.name] = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()[:16]
    return found


def _digest(folder: Path, patterns: Iterable[str]) -> str:
    """Of names, sizes and contents."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\0".encode("utf-8", "surrogateescape"))
        for piece in pieces(path, most=_PIECES):
            digest.update(piece)
    return digest.hexdigest()
