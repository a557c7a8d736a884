"""What becomes of the folders of steps: old ones, half-done ones, and those that are in the way.

At any moment a step is whole or none: on a disk it leaves by a rename, in a bucket its last object
goes first.
"""

import shutil
from collections.abc import Iterable
from typing import Any

from balcap_jax.runs.folder import cannot_write
from balcap_jax.storage.paths import AnyPath, is_remote
from balcap_jax.training.checkpoint_record import COMMITTED, STEP, is_committed

_TRASH = "deleted"
_UNFINISHED = ".orbax-checkpoint-tmp"


def remove_unfinished(folder: AnyPath) -> None:
    """Removes what kill -9 or a failed save left.

    Args:
      folder: of all steps.
    """
    for path in folder.iterdir():  # type: ignore[attr-defined]
        if is_remote(path):
            if STEP.fullmatch(path.name) and not is_committed(path):
                path.rmtree()
        elif path.name == _TRASH or _UNFINISHED in path.name:
            # Errors are ignored: a failed save's last threads may still be writing here.
            shutil.rmtree(path, ignore_errors=True)


def remove_steps(folder: AnyPath, steps: Iterable[int]) -> None:
    """Removes committed steps."""
    old: list[Any] = [folder / str(step) for step in steps]
    if is_remote(folder):
        for path in old:
            (path / COMMITTED).unlink()  # from here on it is none
            path.rmtree()
        return
    trash: Any = folder / _TRASH
    for path in old:
        trash.mkdir(exist_ok=True)
        path.rename(trash / path.name)
    shutil.rmtree(trash, ignore_errors=True)


def set_aside(folder: AnyPath, steps: Iterable[int]) -> list[str]:
    """Gives what has the names of steps another one.

    Returns:
      The names.
    """
    moved = []
    for step in steps:
        name = f"aside-{step}"
        number = 1
        while (folder / name).exists():  # type: ignore[attr-defined]
            number += 1
            name = f"aside-{step}-{number}"
        _move(folder / str(step), folder / name)
        moved.append(name)
    return moved


def check_space(folder: AnyPath, needed: int) -> None:
    """Refuses a save that cannot fit before orbax starts it and fills the disk.

    Args:
      needed: bytes.

    Raises:
      UserError: less are free.
    """
    if is_remote(folder):
        return
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise cannot_write(
            folder,
            f"No space left on device (a checkpoint takes up to {needed / 1e6:.1f} MB, "
            f"{free / 1e6:.1f} MB are free)",
        )


def _move(path: Any, to: Any) -> None:
    """Renames a step. A bucket copies it; both are whole or none at any moment."""
    if not is_remote(path):
        path.rename(to)
        return
    names = sorted(path.files_below(), key=lambda name: name == COMMITTED)
    for name in names:
        (path / name).copy_to(to / name)
    (path / COMMITTED).unlink(missing_ok=True)
    path.rmtree()
