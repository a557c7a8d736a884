"""`balcap bench device`: all that is worth measuring on an accelerator, for who has it for minutes.

Each part runs in a process of its own, so that one that fails, or takes too much memory or time, is
a row that says so and costs no other; what is measured is written after each part.
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from balcap_jax.bench.process import EndedError, in_process
from balcap_jax.errors import UserError
from balcap_jax.plan.workloads.presets import preset_of
from balcap_jax.runs.folder import write_json_atomic, write_text_atomic

PARTS = ("attention", "step", "run", "hf")
JSON, TABLE = "device.json", "device.md"
_MODULE = "balcap_jax.bench.device_parts"
_LEAST = 20.0  # seconds; a part that has less is not begun
# The parts of ours alone may have nearly all of a GPU; beside torch JAX takes what it needs.
_ALONE = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
_SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

Measure = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is run; see `DeviceBenchFlags`."""

    out: Path
    presets: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS
    rounds: int = 5
    steps: int = 20
    minutes: float = 10.0


class Part(NamedTuple):
    """One process: a name for people, the part of `device_parts` and its arguments."""

    name: str
    part: str
    arguments: dict[str, Any]


def run(
    plan: Plan,
    *,
    command: str,
    measure: Measure = in_process,
    tell: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Runs the parts and writes OUT/device.json and OUT/device.md after each.

    Args:
      command: that this is, for the table.
      measure: runs a part; see `in_process`.
      tell: hears of each part, before and after.
      clock: seconds from anywhere.

    Returns:
      What device.json holds: date, command, device, versions, and a row per result.

    Raises:
      UserError: OUT holds results already or cannot be written, a preset is unknown, or there is
        no device at all.
    """
    if (plan.out / JSON).exists():
        raise UserError(
            f"{plan.out / JSON} exists and is not overwritten; give another folder with --out."
        )
    for preset in plan.presets:
        preset_of(preset)
    began = clock()

    def left() -> float:
        return 60 * plan.minutes - (clock() - began)

    tell("looking at the device")
    try:
        facts = measure(_MODULE, "facts", "{}", seconds=max(left(), 1.0), environment=_SHARED)
    except RuntimeError as error:
        raise UserError(
            f"JAX finds no device to measure ({error}); check its installation."
        ) from error
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        **facts,
        "rows": [],
    }
    _write(plan.out, report)
    for part in parts_of(plan, facts["platform"]):
        start = clock()
        tell(f"{part.name}, {left() / 60:.1f} minutes left")
        rows = _rows_of(part, left(), measure)
        report["rows"] += [{"part": part.name, **row} for row in rows]
        _write(plan.out, report)
        tell(f"{part.name}: {len(rows)} rows in {clock() - start:.0f} s")
    return report


def parts_of(plan: Plan, platform: str) -> list[Part]:
    """In their order: what says most first."""
    presets = plan.presets or ("cpu-small" if platform == "cpu" else "qwen3b",)
    found = []
    for part in plan.parts:
        if part == "run":
            found.append(Part(part, part, {"steps": plan.steps}))
            continue
        for preset in presets:
            arguments: dict[str, Any] = {"preset": preset, "rounds": plan.rounds}
            if part == "hf":  # takes many times as long as ours: one round says enough
                arguments |= {"against": "hf", "rounds": 1}
            found.append(Part(f"{part} {preset}", part, arguments))
    return found


def _rows_of(part: Part, left: float, measure: Measure) -> list[dict[str, Any]]:
    """Its rows, or those that it had and one that says why there are no more."""
    if left < _LEAST:
        return [_none(part, f"not run: {max(left, 0):.0f} s were left; give more --minutes")]
    environment = _SHARED if part.part == "hf" else _ALONE
    try:
        found = measure(
            _MODULE, part.part, json.dumps(part.arguments), seconds=left, environment=environment
        )
        return found["rows"]
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts go on
        known = error.last.get("rows", []) if isinstance(error, EndedError) else []
        return [*known, _none(part, f"failed: {' '.join(str(error).split())}"[:300])]


def _none(part: Part, reason: str) -> dict[str, Any]:
    return {"what": part.name, "seconds": None, "beside": reason}


def _write(out: Path, report: dict[str, Any]) -> None:
    write_json_atomic(out / JSON, report)
    write_text_atomic(out / TABLE, markdown(report))


def markdown(report: dict[str, Any]) -> str:
    """The rows for docs/benchmarks.md, below a line that says where they are from."""
    versions = dict(report["versions"])
    device = versions.pop("device")
    memory = report["memory_bytes"]
    size = f" ({memory / 1e9:.0f} GB for JAX)" if memory else ""
    named = ", ".join(f"{name} {value}" for name, value in versions.items())
    head = f"{report['date']}, `{report['command']}`, {device}{size}, {named}:"
    rows = [
        [row["what"], "" if row["seconds"] is None else _short(row["seconds"]), row["beside"]]
        for row in report["rows"]
    ]
    table = [["what", "seconds", "beside"], ["---"] * 3, *rows]
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in table]
    return "\n".join([head, "", *lines, ""])


def _short(seconds: float) -> str:
    """With four digits that count."""
    return f"{seconds:.4g}"


def run_and_print(plan: Plan, arguments: Sequence[str]) -> None:
    """`balcap bench device ARGUMENTS`: a line for each part, then the table."""
    told = Console(stderr=True)
    command = shlex.join(["balcap", "bench", "device", *arguments])
    report = run(plan, command=command, tell=lambda line: told.print(line, highlight=False))
    print(markdown(report))  # noqa: T201 - to be copied as it is
    told.print(f"{plan.out / JSON} and {plan.out / TABLE} hold it", highlight=False)
