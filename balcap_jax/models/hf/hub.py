"""A policy from the Hugging Face hub, by its name, in huggingface_hub's own cache.

That library does the work: it resumes nothing half (a file appears in the cache when it is whole),
lets several processes ask for the same files, and shows its progress.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from balcap_jax.errors import UserError
from balcap_jax.models.hf.companions import COMPANIONS, PAPERS, TEMPLATES
from balcap_jax.models.hf.declarations import ADAPTERS, QUANTIZED_FILES
from balcap_jax.models.hf.weight_files import INDEX, WEIGHTS, shard_names

# What is read before the weights: it says which files they are in. But for the templates a name has
# no "/" here, so files of the same name in folders of the repository stay there.
_CONFIG = "config.json"
_SMALL = (
    *(_CONFIG, *COMPANIONS, f"{TEMPLATES}/*.jinja", *PAPERS, INDEX),
    *(ADAPTERS[0], *QUANTIZED_FILES),  # to be refused
)
_NAME = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
_FULL = (errno.ENOSPC, errno.EDQUOT)

_kept: dict[tuple[str, str | None], Path] | None = None  # see `remembered`


def is_hub_name(path: str) -> bool:
    """Whether `path` can be the name of a repository, "owner/name", by the hub's rules."""
    wrong = len(path) > 96 or "--" in path or ".." in path or path.endswith(".git")
    return not wrong and _NAME.fullmatch(path) is not None


@contextmanager
def remembered() -> Iterator[dict[tuple[str, str | None], Path]]:
    """Inside, the hub is asked once for a name and revision, and not for what is in the dictionary
    already: (name, revision) -> folder.
    """
    global _kept
    before, _kept = _kept, {}
    try:
        yield _kept
    finally:
        _kept = before


def snapshot(name: str, *, revision: str | None = None) -> Path:
    """The folder in the cache with a whole policy: configuration, processor and safetensors; or
    with an adapter, where the repository holds one alone.

    What is missing there is fetched; where the hub cannot be reached, what is there is used. The
    weights are those that transformers would take, model.safetensors, else those that the index
    names: no second copy in another format, no pickle.

    Args:
      name: "owner/name".
      revision: branch, tag or commit; by default the main branch.

    Raises:
      UserError: there is no such repository, revision or access to it, it has no safetensors, or it
        cannot be fetched now.
    """
    if _kept is None:
        return _snapshot(name, revision)
    if (name, revision) not in _kept:
        folder = _snapshot(name, revision)
        # By its commit, too: so it is named once it is known.
        _kept.update({(name, revision): folder, (name, folder.name): folder})
    return _kept[name, revision]


def _snapshot(name: str, revision: str | None) -> Path:
    with _one_sentence(name, revision):
        folder = _fetch(name, revision, _SMALL)
        if (folder / ADAPTERS[0]).is_file() and not (folder / _CONFIG).is_file():
            what, files = "an adapter", ADAPTERS[:2]
            _fetch(name, folder.name, files)
        else:
            # By its commit: all calls see the same state of a branch that moves in between.
            _fetch(name, folder.name, (WEIGHTS,))
            weights = _weights_of(folder)
            if weights != (WEIGHTS,):
                _fetch(name, folder.name, weights)
            what, files = "a policy", (_CONFIG, *weights)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{_named(name, revision)} has no {missing[0]} at commit {folder.name[:12]}, and "
            f"{what} is {files[0]} and safetensors (pickles and other formats are not read); "
            "choose a repository or revision that has them."
        )
    return folder


def _weights_of(folder: Path) -> tuple[str, ...]:
    """The files of the weights, where config.json and model.safetensors have been asked for."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return (WEIGHTS,)
    shards = tuple(shard_names(folder))
    if not shards:
        raise UserError(
            f"{folder / INDEX} names no files in its weight_map; choose a repository or revision "
            "with a whole index."
        )
    return shards


def _fetch(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    # Here, not above: the import takes a while, and a local folder needs none of it.
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    folder = snapshot_download(
        name,
        revision=revision,
        allow_patterns=list(files),
        # huggingface_hub itself looks at it only when it is imported.
        endpoint=os.environ.get("HF_ENDPOINT") or None,
    )
    return Path(folder)


@contextmanager
def _one_sentence(name: str, revision: str | None) -> Iterator[None]:
    """Turns what huggingface_hub raises into one sentence for the user."""
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except UserError:
        raise
    # RuntimeError is hf_xet's; ValueError and KeyError come of answers that are not a hub's.
    except (errors.HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(_sentence(name, revision, error)) from error


def _sentence(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants, errors  # noqa: PLC0415

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    cache = constants.HF_HUB_CACHE
    cause = error
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        cause = error.__cause__  # why it went on to look in the cache
    status = getattr(getattr(cause, "response", None), "status_code", None)
    named = _named(name, revision)
    if isinstance(cause, errors.GatedRepoError):
        return (
            f"{named} is gated on {endpoint} and not open to you; accept the licence on its page "
            f"{endpoint}/{name} and set HF_TOKEN to a token of that account."
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"{named} is neither a folder here nor a repository on {endpoint} that you can see; "
            "correct the name, or set HF_TOKEN if the repository is private."
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return (
            f"{name!r} on {endpoint} has no revision {revision or constants.DEFAULT_REVISION!r}; "
            "give a branch, a tag or a full commit hash of it."
        )
    if status in (401, 403):
        return (
            f"{endpoint} refuses access to {named} ({status}); accept the licence on its page "
            f"{endpoint}/{name} if it has one and set HF_TOKEN to a valid token that may read it."
        )
    number = getattr(cause, "errno", None)
    if number in _FULL or os.strerror(errno.ENOSPC) in str(cause):
        return (
            f"The disk of the cache {cache} is full and {named} does not fit; free space there or "
            "set HF_HOME to a folder on a larger disk."
        )
    if number is not None and getattr(cause, "filename", None) is not None:
        return (
            f"Cannot write {named} to the cache {cache} ({os.strerror(number)}); fix the "
            "permissions there or set HF_HOME to a folder that you can write to."
        )
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            f"{named} is neither a folder here nor whole in the cache {cache}, and HF_HUB_OFFLINE "
            "forbids fetching it; unset HF_HUB_OFFLINE, or fetch it once where there is a network."
        )
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    return (
        f"{named} is neither a folder here nor whole in the cache {cache}, and could not be "
        f"fetched from {endpoint} ({reason}); check the network and HF_ENDPOINT, then start again."
    )


def _named(name: str, revision: str | None) -> str:
    return f"model path {name!r}" + ("" if revision is None else f" (revision {revision!r})")
