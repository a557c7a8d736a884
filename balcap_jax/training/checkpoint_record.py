"""What a checkpoint says of itself: which folders are steps, and the record beside the arrays.

The record is JSON with the arrays' shapes and checksums, what the run needs beside them, and a
digest of itself.
"""

import hashlib
import json
import re
from typing import Any

import jax
import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.parallel.processes import gather_list, is_alone
from balcap_jax.storage.paths import AnyPath, is_remote

FOLDER = "checkpoints"
PARAMETERS = "parameters"  # snapshots of the weights alone, kept as checkpoints are
STATE, EXTRA, PENDING = "state", "extra", "pending"
STEP = re.compile(r"0|[1-9][0-9]{0,17}")
# What is no fault of the checkpoint's, and must not make an older one be taken.
NOT_ITS_FAULT = re.compile(
    r"Permission denied|Operation not permitted|Input/output error|Stale file handle"
    r"|Transport endpoint is not connected|Too many open files|RESOURCE_EXHAUSTED|Out of memory"
)
_RECORD = "metadata"  # the file in EXTRA
COMMITTED = "commit_success.txt"  # orbax's, the last object of a step in a bucket
_ITEMS = (STATE, EXTRA, "_CHECKPOINT_METADATA")  # one of them at least makes a folder a step


def latest_step_of(run: AnyPath) -> int:
    """The newest committed step of a run as this process sees it, 0 before the first."""
    return max(own_steps(run / FOLDER), default=0)


def own_steps(folder: AnyPath) -> list[int]:
    """The committed steps that this process sees."""
    if not is_remote(folder) and not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if STEP.fullmatch(path.name) and is_committed(path)
    )


def is_committed(path: AnyPath) -> bool:
    """Whether what has the name of a step is one: on a disk it was renamed when it was whole, in a
    bucket its last object is there.
    """
    if is_remote(path):
        return (path / COMMITTED).exists()
    return any((path / item).exists() for item in _ITEMS)


def own_record(folder: AnyPath, step: int) -> dict | str:
    """The record of a step as this process reads it, or what is wrong with it.

    Raises:
      UserError: the disk refuses to read it.
    """
    path = folder / str(step) / EXTRA / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if NOT_ITS_FAULT.search(str(error)):
            raise cannot_read(path, error.strerror or str(error)) from error
        return f"{EXTRA}/{_RECORD}: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{EXTRA}/{_RECORD} is not JSON"
    if not isinstance(record, dict) or not {"leaves", "extra"} <= set(record):
        return f"{EXTRA}/{_RECORD} lacks what was saved"
    digest = record.pop("digest", None)
    if digest is None and "sums" not in record:  # of an older balcap_jax
        return record if isinstance(record["leaves"], dict) else f"{EXTRA}/{_RECORD} is broken"
    if digest != digest_of(record):
        return f"{EXTRA}/{_RECORD} was changed after it was saved"
    if record["step"] != step:
        return f"it is step {record['step']}"
    return record


def agreed(value: Any) -> Any:
    """The value of process 0, on all; plain JSON."""
    return value if is_alone() else gather_list([value])[0]


def digest_of(record: dict) -> str:
    """Of a record without its digest."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def cannot_read(path: AnyPath, reason: str) -> UserError:
    """The error of a disk that refuses to read."""
    return UserError(
        f"Cannot read {path}: {reason}; this says nothing about the checkpoint itself, so fix the "
        "permissions or the storage, then try again."
    )


def describe(tree: Any) -> dict[str, str]:
    """Key path -> "dtype[shape]" of each leaf; saved beside the arrays, compared on restore."""

    def describe(leaf: Any) -> str:
        if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
            leaf = np.asarray(leaf)
        return f"{leaf.dtype}{list(leaf.shape)}"

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): describe(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_same_leaves(saved: dict[str, str], wanted: dict[str, str], *, where: AnyPath) -> None:
    """orbax would cast dtypes and skip what the target lacks; a checkpoint comes back as it was.

    Raises:
      UserError: naming the first key paths of each difference.
    """
    differences = [
        *(f"{path} is missing" for path in wanted if path not in saved),
        *(f"{path} is unexpected" for path in saved if path not in wanted),
        *(
            f"{path} is {saved[path]}, not {wanted[path]}"
            for path in wanted
            if path in saved and saved[path] != wanted[path]
        ),
    ]
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(
            f"{where} was saved with other settings of the model or the optimizer: "
            f"{'; '.join(differences[:5])}{more}; resume with the settings of that run."
        )
