"""Where a policy lives: the one in the package, a run's, any Hugging Face folder, or the hub."""

from pathlib import Path

from balcap_jax.errors import UserError
from balcap_jax.models.hf.adapter_config import CONFIG
from balcap_jax.models.hf.hub import is_hub_name, snapshot
from balcap_jax.storage.local import fetched
from balcap_jax.storage.paths import as_path

BASE = "base"  # the policy that ships in the package
SCRATCH = "scratch"  # a new one; for supervised training only
START = "start"  # the files of a new policy but its weights, in the folder of the run
POLICY = "policy"  # a run's trained policy, as a Hugging Face folder
ADAPTER = "adapter"  # a run's trained adapter, as a folder of PEFT

_ASSETS = Path(__file__).parents[2] / "assets"


def policy_folder(path: str | Path, *, revision: str | None = None) -> Path:
    """The Hugging Face folder that `model.path` means: "base", a run's folder, the folder itself,
    or a repository of the hub, "owner/name", which is fetched where the cache lacks it.

    An existing folder wins over a repository of the same name.

    Args:
      path: a Path is never taken for a repository.
      revision: branch, tag or commit of the repository.

    Raises:
      UserError: there is no such folder, or see `hub.snapshot`; or a revision of a local folder.
    """
    folder = _ASSETS / BASE if path == BASE else as_path(path)
    if (folder / POLICY / "config.json").is_file():
        folder = folder / POLICY
    if not folder.is_dir():
        if isinstance(path, str) and is_hub_name(path):
            return snapshot(path, revision=revision)
        raise UserError(
            f"model path {str(path)!r} is not a folder; give 'base', the folder of a finished run, "
            "a Hugging Face folder or the name 'owner/name' of a repository on the hub."
        )
    if revision is not None:
        raise UserError(
            f"revision {revision!r} has no effect on the local folder {str(path)!r}; leave it out "
            "or give the name 'owner/name' of a repository on the hub."
        )
    if (folder / "checkpoints").is_dir() and (folder / "metrics.jsonl").is_file():
        raise UserError(
            f"model path {str(path)!r} is a run that has not written its policy yet; finish it "
            f"with `balcap train --resume {path}`, or take a checkpoint by `balcap export {path} "
            "OUT` and give OUT."
        )
    return fetched(folder)


def commit_of(path: str, folder: Path) -> str | None:
    """The commit of the hub's repository `path` that `folder` is; None where it is no snapshot."""
    return folder.name if is_hub_name(path) and not Path(path).is_dir() else None


def adapter_folder(path: str) -> Path:
    """The folder of PEFT that `model.lora.start` means: itself, the adapter of a run, or a
    repository of the hub.

    Raises:
      UserError: there is no such adapter.
    """
    folder = as_path(path)
    if (folder / ADAPTER / CONFIG).is_file():
        return fetched(folder / ADAPTER)
    if not folder.is_dir() and is_hub_name(path):
        return snapshot(path)
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"model.lora.start {path!r} is no adapter; give a folder with {CONFIG}, a run that "
            "trained adapters, or the name 'owner/name' of an adapter on the hub."
        )
    return fetched(folder)
