"""Where a policy lives: the one in the package, a run's, any Hugging Face folder, or the hub."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from balcap_jax.errors import UserError
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.hf.hub import is_hub_name, snapshot
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.models.policy import VisionLanguagePolicy

BASE = "base"  # the policy that ships in the package
SCRATCH = "scratch"  # a new one; for supervised training only
START = "start"  # the files of a new policy but its weights, in the folder of the run
POLICY = "policy"  # a run's trained policy, as a Hugging Face folder

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
    folder = _ASSETS / BASE if path == BASE else Path(path)
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
    return folder


def commit_of(path: str, folder: Path) -> str | None:
    """The commit of the hub's repository `path` that `folder` is; None where it is no snapshot."""
    return folder.name if is_hub_name(path) and not Path(path).is_dir() else None


def load_to_train(
    folder: Path, *, mesh: Mesh, dtype: str, attention: str, remat: str
) -> tuple[VisionLanguagePolicy, Params]:
    """The policy that computes in `dtype`, and float32 parameters, each device with its part.

    Raises:
      UserError: see `load_pretrained`; or the attention cannot run here.
    """
    policy, params = load_pretrained(folder, dtype="float32", mesh=mesh)
    return (
        dataclasses.replace(policy, dtype=jnp.dtype(dtype), attention=attention, remat=remat),
        params,
    )
