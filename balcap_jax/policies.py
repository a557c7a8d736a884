"""Where a policy lives: the one in the package, a run's, or any Hugging Face folder."""

from pathlib import Path

from balcap_jax.errors import UserError

BASE = "base"  # the policy that ships in the package
SCRATCH = "scratch"  # a new one; for supervised training only
POLICY = "policy"  # a run's trained policy, as a Hugging Face folder

_ASSETS = Path(__file__).parent / "assets"


def policy_folder(path: str) -> Path:
    """The Hugging Face folder that `model.path` means: "base", a run's folder, or the folder
    itself.

    Raises:
      UserError: there is no such folder.
    """
    folder = _ASSETS / BASE if path == BASE else Path(path)
    if (folder / POLICY / "config.json").is_file():
        folder = folder / POLICY
    if not folder.is_dir():
        raise UserError(
            f"model path {path!r} is not a folder; give 'base', the folder of a finished run or a "
            "Hugging Face folder."
        )
    return folder
