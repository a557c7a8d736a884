"""One cell in a process of its own: `python -m balcap_jax.evidence.cell_run FOLDER [CORES]`.

The folder has a cell.json; a result.json is there when the cell is done. What was killed in between
goes on from its last checkpoint when the same is called again.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.evidence.files import CELL, RESULT, RUN, STARTS, read_json
from balcap_jax.runs.cores import usable_cores
from balcap_jax.runs.folder import RunLock

DONE, MISTAKE, STOPPED, TAKEN = 0, 2, 3, 75  # exit codes


def run_cell(folder: Path) -> bool:
    """Computes one cell, or what is left of it; whether it is done. Its lock is held by the caller.

    Raises:
      UserError: a mistake in its settings or data, or another code than the one that planned it.
    """
    if (folder / RESULT).exists():
        return True
    _with_cache()
    from balcap_jax.evidence.code_version import code_version  # noqa: PLC0415

    cell = read_json(folder / CELL)
    if cell["code"] != (code := code_version()):
        raise UserError(
            f"{folder} is a cell of the code {cell['code']}, and this is {code}; start "
            "`balcap reproduce` again in a new --out."
        )
    if cell["kind"] == "trl":
        from balcap_jax.evidence.trl_cell import run_with_trl  # noqa: PLC0415

        run_with_trl(folder, cell, beside=_facts(cell, "torch", "trl"))
        return True
    return _train(folder, cell)


def _train(folder: Path, cell: dict[str, Any]) -> bool:
    """A run of `balcap train`, new or resumed."""
    from balcap_jax.config.base import from_dict  # noqa: PLC0415
    from balcap_jax.config.commands import TrainConfig  # noqa: PLC0415
    from balcap_jax.evidence.cell_loop import CellLoop, write_cell  # noqa: PLC0415
    from balcap_jax.training.start import run_task  # noqa: PLC0415

    run = folder / RUN
    begun = (run / "config.json").exists()
    if run.exists() and not begun:  # killed before it was a run
        shutil.rmtree(run)
    settings = {**cell["settings"], "out": str(folder), "name": RUN}
    config = from_dict(TrainConfig, settings, source=str(folder / CELL))

    class Loop(CellLoop):
        starts, start_key = folder.parent.parent / STARTS, cell["start"]

    def write(loop: CellLoop) -> None:
        write_cell(loop, beside=_facts(cell))

    run_task(Loop, config, write_outcome=write, resume=run if begun else None)
    if not (folder / RESULT).exists():
        return False
    shutil.rmtree(run, ignore_errors=True)
    return True


def _facts(cell: dict[str, Any], *packages: str) -> dict[str, Any]:
    """What result.json says of how it was made; `packages` are those of the other side."""
    from importlib.metadata import version  # noqa: PLC0415

    import jax  # noqa: PLC0415

    names = ("jax", "jaxlib", "numpy", *packages)
    return {
        "cell": cell,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in names}
        | {"python": ".".join(map(str, sys.version_info[:3]))},
        "device": jax.devices()[0].device_kind,
        "cores": usable_cores(),
    }


def _with_cache() -> None:
    """All programs are kept for the next cell, the many small ones as well."""
    import jax  # noqa: PLC0415

    from balcap_jax.runs.jax_setup import set_up_jax  # noqa: PLC0415

    set_up_jax()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def main(arguments: list[str]) -> int:
    """Returns one of the exit codes."""
    folder = Path(arguments[0])
    if len(arguments) > 1:
        os.sched_setaffinity(0, [int(core) for core in arguments[1].split(",")])
    try:
        lock = RunLock(folder)
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the log of the cell
        return TAKEN
    with lock:
        try:
            return DONE if run_cell(folder) else STOPPED
        except UserError as error:
            print(error, file=sys.stderr)  # noqa: T201
            return MISTAKE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
