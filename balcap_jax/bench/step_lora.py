"""`balcap bench step --lora`: the update of adapters beside that of whole weights, and PEFT's."""

import json as json_text
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from balcap_jax.bench.step import in_turns, versions
from balcap_jax.bench.step_hf import HuggingFace, check_installed, write_inputs
from balcap_jax.bench.step_ours import Ours
from balcap_jax.plan.workloads.presets import preset_of

RANK = 16


def run(name: str, *, against: str | None = None, rounds: int = 5) -> dict[str, Any]:
    """Everything measured, as plain numbers: bytes of the compiled update, seconds of the sides,
    which take turns.

    Args:
      name: of the preset.
      against: "hf": transformers with adapters of peft on the decoder, too.
      rounds: of update and rollout by each side, after a first one.

    Raises:
      UserError: an unknown preset, or no torch or peft.
    """
    preset = preset_of(name)
    if against is not None:
        check_installed("peft")
    sides: dict[str, Any] = {"full": Ours(preset), "lora": Ours(preset, lora=RANK)}
    for side in sides.values():
        side.rollout()
    report: dict[str, Any] = {"preset": name, "rank": RANK, "versions": versions(against, ["peft"])}
    report["bytes"] = {label: compiled_bytes(side) for label, side in sides.items()}
    with tempfile.TemporaryDirectory() as folder:
        if against is not None:
            write_inputs(sides["lora"], Path(folder))
            sides["peft"] = HuggingFace(preset, Path(folder), lora=RANK)
            sides["peft"].rollout()
        times = _times(sides, rounds)
    report["seconds"] = times
    whole, adapters = (report["bytes"][label]["total"] for label in ("full", "lora"))
    report["ratios"] = {
        "bytes": adapters / whole,
        "update": times["lora"]["update"] / times["full"]["update"],
        "rollout": times["lora"]["rollout"] / times["full"]["rollout"],
    }
    if against is not None:
        for part in ("update", "rollout"):
            report["ratios"][f"peft_{part}"] = times["peft"][part] / times["lora"][part]
    return report


def compiled_bytes(side: Ours) -> dict[str, int]:
    """Arguments and temporaries of the compiled update, by XLA's account; `total` is their sum."""
    with jax.set_mesh(side.mesh):
        compiled = side.apply.__wrapped__.lower(side.state, side.batch).compile()
    memory = compiled.memory_analysis()
    found = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    return found | {"total": sum(found.values())}


def _times(sides: dict[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds by side and part, after a first round that compiles."""
    return {
        label: {
            part: statistics.median(wall for wall, _ in times[1:]) for part, times in own.items()
        }
        for label, own in in_turns(sides, rounds + 1).items()
    }


def run_and_print(
    preset: str, *, against: str | None = None, json: bool = False, rounds: int = 5
) -> None:
    """Tables, or one line of JSON."""
    report = run(preset, against=against, rounds=rounds)
    if json:
        print(json_text.dumps(report))  # noqa: T201 - exactly one line, whatever its width
        return
    table = Table(title=f"{preset}: adapters of rank {RANK} on the decoder", box=box.SIMPLE)
    for column in ("", "arguments", "temporaries", "MB", "update, s", "rollout, s"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, seconds in report["seconds"].items():
        sizes = report["bytes"].get(label)
        held = ("arguments", "temporaries", "total")
        megabytes = ["-"] * 3 if sizes is None else [f"{sizes[name] / 1e6:.0f}" for name in held]
        table.add_row(label, *megabytes, *(f"{seconds[p]:.3f}" for p in ("update", "rollout")))
    console = Console()
    console.print(table)
    ratios = report["ratios"]
    console.print(
        f"Adapters take {ratios['bytes']:.2f} of the memory of whole weights, "
        f"{ratios['update']:.2f} of the seconds of their update and {ratios['rollout']:.2f} of "
        "those of their rollout."
    )
    if against is not None:
        console.print(
            f"transformers with peft takes {ratios['peft_update']:.2f} times our update and "
            f"{ratios['peft_rollout']:.2f} times our rollout."
        )
    console.print("; ".join(f"{name} {value}" for name, value in report["versions"].items()))
