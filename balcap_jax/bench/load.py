"""Times loading a folder beside transformers: seconds and peak memory, a process per load."""

import dataclasses
import importlib.util
import json as json_text
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from balcap_jax.bench.process import in_process, peak_bytes
from balcap_jax.errors import UserError

PAGE = 4096  # bytes
SIDES = ("balcap", "transformers")


@dataclass(frozen=True)
class Load:
    """One load in a process of its own.

    Attributes:
      side: one of SIDES.
      seconds: until all parameters are in memory; imports are not in it.
      parameter_bytes: of the parameters in memory.
      before_bytes, peak_bytes: most memory resident, after the imports and at the end. Pages of
        files that are mapped count.
    """

    side: str
    seconds: float
    parameter_bytes: int
    before_bytes: int
    peak_bytes: int

    @property
    def over_bytes(self) -> int:
        """The peak beyond the parameters."""
        return self.peak_bytes - self.parameter_bytes


def run(folder: str | Path, *, rounds: int = 2) -> list[Load]:
    """Loads `folder` in bfloat16, `rounds` times by each side; every other round starts with the
    other side, since the first to read a file may find it on the disk only.

    Raises:
      UserError: `rounds` is below 1, or a side cannot load the folder.
    """
    if rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1; 2 lets each side begin once.")
    sides = SIDES if importlib.util.find_spec("torch") else SIDES[:1]
    order = [side for i in range(rounds) for side in sides[:: -1 if i % 2 else 1]]
    return [_in_process(side, folder) for side in order]


def table(loads: Sequence[Load]) -> Table:
    """The loads for people, in the order in which they ran."""
    rendered = Table(title="Loading a folder in bfloat16; memory in GB", box=box.SIMPLE)
    for column in ("side", "seconds", "parameters", "peak", "peak - parameters", "before"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for load in loads:
        sizes = (load.parameter_bytes, load.peak_bytes, load.over_bytes, load.before_bytes)
        rendered.add_row(load.side, f"{load.seconds:.1f}", *(f"{n / 1e9:.2f}" for n in sizes))
    return rendered


def versions() -> str:
    """What was compared."""
    names = ["jax", "safetensors", "transformers"]
    names += ["torch"] if importlib.util.find_spec("torch") else []
    return "; ".join(f"{name} {version(name)}" for name in names)


def run_and_print(folder: str | Path, *, json: bool = False, rounds: int = 2) -> None:
    """`balcap bench load`: a table, or JSON for programs."""
    console = Console()
    loads = run(folder, rounds=rounds)
    if json:
        rows = [dataclasses.asdict(load) | {"over_bytes": load.over_bytes} for load in loads]
        console.print_json(data={"versions": versions(), "results": rows})
        return
    console.print(table(loads))
    fastest = {
        side: min((load.seconds for load in loads if load.side == side), default=None)
        for side in SIDES
    }
    if fastest["transformers"] is None:
        console.print("transformers is compared where torch is: pip install 'balcap_jax[test]'.")
    else:
        ratio = fastest["transformers"] / fastest["balcap"]
        console.print(f"transformers takes {ratio:.2f} times our seconds, best of each.")
    console.print(versions())


def measure(side: str, folder: str) -> None:
    """Loads `folder` by `side` in this process and prints the `Load` as a line of JSON."""
    load = {"balcap": _ours, "transformers": _theirs}[side]()
    before, start = peak_bytes(), time.perf_counter()
    size = load(folder)
    found = Load(side, time.perf_counter() - start, size, before, peak_bytes())
    print(json_text.dumps(dataclasses.asdict(found)))  # noqa: T201 - read by the parent


def _ours() -> Callable[[str], int]:
    import jax

    import balcap_jax

    jax.devices()  # the backend starts here, not in the time of the load

    def load(folder: str) -> int:
        _, params = balcap_jax.load_pretrained(folder, dtype="bfloat16")
        return sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    return load


def _theirs() -> Callable[[str], int]:
    import torch
    from transformers import AutoModelForImageTextToText

    def load(folder: str) -> int:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True, trust_remote_code=False
        )
        for parameter in model.parameters():
            # They are maps of the file until used: one number of every page brings them to memory.
            parameter.detach().view(-1)[:: PAGE // parameter.element_size()].sum().item()
        return sum(p.numel() * p.element_size() for p in model.parameters())

    return load


def _in_process(side: str, folder: str | Path) -> Load:
    try:
        return Load(**in_process("balcap_jax.bench.load", side, os.fspath(folder)))
    except RuntimeError as error:
        raise UserError(
            f"{side} cannot load {folder} ({error}); give a folder that both load."
        ) from error
