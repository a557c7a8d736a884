"""`balcap bench step`: rollout and update of a preset, beside Hugging Face and the limits."""

import json as json_text
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from balcap_jax.bench import floors
from balcap_jax.bench.step_hf import HuggingFace, check_installed, write_inputs
from balcap_jax.bench.step_memory import Memory, memory_here, memory_of
from balcap_jax.bench.step_ours import Ours, plain_checksum
from balcap_jax.bench.step_profile import rollout_parts, update_parts
from balcap_jax.errors import UserError
from balcap_jax.plan.workloads.presets import Preset, preset_of
from balcap_jax.runs.cores import usable_cores

PARTS = ("rollout", "update")
# Larger than caches; a GPU needs more work to be busy.
COPY_BYTES = {"cpu": 2**28, "gpu": 2**31}
MATRIX = {"cpu": 2048, "gpu": 8192}

Heard = Callable[[str, float], None]


@dataclass(frozen=True)
class Timing:
    """Seconds of one half of a step.

    Attributes:
      first: the first call, which compiles (ours) or warms up.
      rounds: later ones, in order.
      cpu_rounds: seconds of processors that the same took, which other work on the machine
        prolongs less.
    """

    first: float
    rounds: tuple[float, ...]
    cpu_rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def compile(self) -> float:
        """What the first call took beyond a later one."""
        return max(self.first - self.median, 0.0)


def run(
    name: str,
    *,
    against: str | None = None,
    rounds: int = 5,
    profile: bool = False,
    heard: Heard = lambda what, seconds: None,
) -> dict[str, Any]:
    """Everything measured, as plain numbers.

    The sides take turns within one process, and the order changes every round, so that other work
    on the machine slows both.

    Args:
      name: of the preset.
      against: "hf" or None.
      rounds: of rollout and update by each side, after a first one that is told apart.
      profile: also time the parts of our step.
      heard: of every call that is timed, as soon as it is: "hf rollout, first call", seconds.

    Raises:
      UserError: an unknown preset, `rounds` below 1, or no torch.
    """
    preset = preset_of(name)
    if rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1; 5 gives a steady median.")
    if against is not None:
        check_installed()
    ours = Ours(preset)
    sides: dict[str, Any] = {ours.name: ours}
    firsts: dict[str, dict[str, float]] = {}

    def first(label: str, part: str, function: Callable[[], object]) -> None:
        seconds = firsts.setdefault(label, {})[part] = _seconds(function)
        heard(f"{label} {part}, first call", seconds)

    first(ours.name, "rollout", ours.rollout)
    checksum = plain_checksum(ours) | ours.logprob_checksum()
    memory: dict[str, Memory] = {}
    on_cpu = jax.devices()[0].platform == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        if against is not None:
            write_inputs(ours, Path(folder))
            if on_cpu:
                memory["hf"] = memory_of("hf", name, Path(folder))
            sides["hf"] = HuggingFace(preset, Path(folder))
            first("hf", "rollout", sides["hf"].rollout)
        if on_cpu:
            memory["balcap"] = memory_of("balcap", name, Path(folder))
    for label, side in sides.items():
        first(
            label,
            "update",
            lambda side=side, label=label: checksum.update({f"{label}_loss": side.update()}),
        )
    if not on_cpu:  # a second process would want the same memory
        memory = {label: memory_here(label) for label in sides}
    timings = _timings(sides, firsts, rounds, heard)
    medians = {part: timings["balcap"][part].median for part in PARTS}
    parts = rollout_parts(ours, medians["rollout"])
    report = {
        "preset": name,
        "versions": versions(against),
        "sides": {label: _summary(preset, timings[label], memory[label]) for label in sides},
        "checksum": checksum,
        "limits": _limits(ours, {"decode_step": parts["decode_step"], "update": medians["update"]}),
    }
    if against is not None:
        report["ratios"] = {part: timings["hf"][part].median / medians[part] for part in PARTS} | {
            "memory": memory["hf"].peak_bytes / max(memory["balcap"].peak_bytes, 1)
        }
    if profile:
        report["profile"] = parts | update_parts(ours, medians["update"])
    return report


def versions(against: str | None, more: Sequence[str] = ()) -> dict[str, str]:
    """What was compared, where; `more` are packages of the other side."""
    names = ["jax", "jaxlib"] + (["torch", "transformers", *more] if against is not None else [])
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    return {
        **{name: version(name) for name in names},
        "python": platform.python_version(),
        "device": f"{kind}, {usable_cores()} cores" if device.platform == "cpu" else kind,
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def run_and_print(
    preset: str,
    *,
    against: str | None = None,
    json: bool = False,
    rounds: int = 5,
    profile: bool = False,
) -> None:
    """`balcap bench step`: tables, or one line of JSON for programs."""
    report = run(preset, against=against, rounds=rounds, profile=profile)
    if json:
        print(json_text.dumps(report))  # noqa: T201 - exactly one line, whatever its width
        return
    console = Console()
    for table in tables(report):
        console.print(table)
    if "ratios" in report:
        ratios = report["ratios"]
        console.print(
            f"Hugging Face takes {ratios['rollout']:.2f} times our rollout, "
            f"{ratios['update']:.2f} times our update and {ratios['memory']:.2f} times our memory."
        )
    console.print("; ".join(f"{name} {value}" for name, value in report["versions"].items()))


def tables(report: dict[str, Any]) -> list[Table]:
    """The report for people."""
    times = table_of(
        f"{report['preset']}: wall-clock seconds",
        ("side", "part", "median", "min", "max", "CPU", "tokens/s"),
    )
    once = table_of(
        "first calls, in seconds, and memory",
        ("side", *(f"first {part}" for part in PARTS), "peak memory"),
    )
    for label, side in report["sides"].items():
        for part in PARTS:
            row = side[part]
            times.add_row(
                label,
                part,
                *(f"{row[name]:.3f}" for name in ("median", "min", "max", "cpu_median")),
                f"{row['tokens_per_second']:.0f}",
            )
        firsts = (f"{side[part]['first']:.1f}" for part in PARTS)
        once.add_row(label, *firsts, f"{side['peak_bytes'] / 1e9:.2f} GB")
    limits = table_of(
        "beside the limits of this device, as measured: "
        f"{report['limits']['bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{report['limits']['flops_per_second'] / 1e9:.0f} GFLOP/s",
        ("work", "seconds", "GB", "floor, s", "GFLOP", "floor, s", "reached"),
    )
    for name in ("decode_step", "update"):
        row = report["limits"][name]
        limits.add_row(
            name,
            _short(row["seconds"], 4),
            _short(row["bytes"] / 1e9, 3),
            _short(row["bytes_floor"], 4),
            _short(row["flops"] / 1e9, 1),
            _short(row["flops_floor"], 4),
            f"{row['reached']:.0%}",
        )
    made = [
        times,
        once,
        limits,
        pairs_of("checksum, before the first update", report["checksum"], ".7f"),
    ]
    if "profile" in report:
        made.append(pairs_of("parts, seconds", report["profile"], ".4f"))
    return made


def in_turns(
    sides: dict[str, Any], rounds: int, heard: Heard = lambda what, seconds: None
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By side and part, the seconds of each round: on the wall's clock, and of all cores. The sides
    take turns, each round in the other order.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {
        label: {part: [] for part in PARTS} for label in sides
    }
    for i in range(rounds):
        for label in list(sides)[:: -1 if i % 2 else 1]:
            for part in PARTS:
                before = time.process_time()
                seconds = _seconds(getattr(sides[label], part))
                heard(f"{label} {part}", seconds)
                found[label][part].append((seconds, time.process_time() - before))
    return found


def _timings(
    sides: dict[str, Any], firsts: dict[str, dict[str, float]], rounds: int, heard: Heard
) -> dict[str, dict[str, Timing]]:
    found = in_turns(sides, rounds, heard)
    return {
        label: {part: Timing(firsts[label][part], *zip(*rows, strict=True)) for part, rows in own}
        for label, own in ((label, found[label].items()) for label in sides)
    }


def _summary(preset: Preset, timings: dict[str, Timing], memory: Memory) -> dict[str, Any]:
    tokens = preset.batch * preset.group * preset.completion
    return asdict(memory) | {
        part: {
            "median": timing.median,
            "min": min(timing.rounds),
            "max": max(timing.rounds),
            "cpu_median": statistics.median(timing.cpu_rounds),
            "rounds": timing.rounds,
            "first": timing.first,
            "compile": timing.compile,
            "tokens_per_second": tokens / timing.median,
        }
        for part, timing in timings.items()
    }


def _limits(ours: Ours, seconds: dict[str, float]) -> dict[str, Any]:
    device = "cpu" if jax.devices()[0].platform == "cpu" else "gpu"
    rates = floors.measured_rates(
        ours.preset.dtype, copy_bytes=COPY_BYTES[device], matrix=MATRIX[device]
    )
    works = {"decode_step": floors.decode_work(ours), "update": floors.update_work(ours)}
    found: dict[str, Any] = rates._asdict()
    for name, work in works.items():
        limit = floors.floors(work, rates)
        found[name] = work._asdict() | {
            "seconds": seconds[name],
            "bytes_floor": limit.bytes_seconds,
            "flops_floor": limit.flops_seconds,
            "reached": limit.share(seconds[name]),
        }
    return found


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def table_of(title: str, columns: tuple[str, ...]) -> Table:
    """An empty table."""
    made = Table(title=title, box=box.SIMPLE)
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def pairs_of(title: str, numbers: dict[str, float], form: str) -> Table:
    """Names and numbers."""
    made = Table(title=title, box=box.SIMPLE, show_header=False)
    made.add_column()
    made.add_column(justify="right", no_wrap=True)
    for name, number in numbers.items():
        made.add_row(name, format(number, form))
    return made


def _short(number: float, decimals: int) -> str:
    """With `decimals` after the point, with fewer where it is large."""
    return f"{number:.{decimals if number < 100 else min(decimals, 1)}f}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()
