"""`balcap bench trainer --against trl`: steps of `balcap train` beside those of TRL's GRPOTrainer.

Both train one folder on the same images, two reward functions without cost and the same sizes.
"""

import json as json_text
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from balcap_jax.bench.process import in_process, peak_bytes
from balcap_jax.bench.step import versions
from balcap_jax.bench.step_hf import check_installed
from balcap_jax.bench.trainer_sides import (
    AGGREGATION,
    Turns,
    Work,
    has_vllm,
    in_turns,
    our_run,
    train_with_trl,
)
from balcap_jax.config.sections import DataConfig
from balcap_jax.data.sources import open_sources
from balcap_jax.errors import UserError
from balcap_jax.models.families import load_config
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig

MEMORY_STEPS = 2  # of each side, in a process of its own


@dataclass(frozen=True)
class Sizes:
    """What is compared; see `TrainerBenchFlags`."""

    model: str = "base"
    data: str = "scenes"
    images: int = 8
    captions: int = 8
    tokens: int = 112
    dtype: str = "float32"
    remat: str = "none"
    rounds: int = 5


def run(
    sizes: Sizes, *, memory: bool = True, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Everything measured, as plain numbers.

    Args:
      memory: also peak memory, for which each side makes two steps in a process of its own.
      tell: hears what is being done.

    Raises:
      UserError: a bad folder or data, a family that TRL's side is not set up for, or no torch, trl
        or datasets.
    """
    check_installed("trl", "datasets", flag="trl")
    tell(f"{sizes.rounds + 1} steps by each side in turns, after the first imports")
    with tempfile.TemporaryDirectory() as made:
        turns = in_turns(work_of(sizes), Path(made), steps=sizes.rounds + 1)
    sides = _sides(turns)
    report: dict[str, Any] = {
        **asdict(sizes),
        "aggregation": AGGREGATION,
        "sides": sides,
        "ratio": sides["trl"]["median"] / sides["balcap"]["median"],
        "cpu_ratio": sides["trl"]["cpu_median"] / sides["balcap"]["cpu_median"],
        "vllm": _with_vllm(sizes, tell),
        "versions": versions("trl", ["trl"]),
    }
    if memory:
        for side in sides:
            tell(f"{MEMORY_STEPS} steps of {side} in a process of its own, for its memory")
            sides[side]["peak_bytes"] = _memory_of(side, sizes)
    return report


def work_of(sizes: Sizes) -> Work:
    """The policy's folder with images for two steps; the data are those of `--data.path`.

    Raises:
      UserError: see `run`.
    """
    folder = policy_folder(sizes.model)
    if not isinstance(load_config(folder), Qwen2_5_VLConfig):
        raise UserError(
            f"--model {sizes.model} is no Qwen2.5-VL, which alone TRL's side is set up for; choose "
            "a folder of one, or leave it out."
        )
    source, heldout = open_sources(DataConfig(path=sizes.data, heldout=1), seed=0)
    count = min(2 * sizes.images, len(source))
    if count < sizes.images:
        raise UserError(
            f"{sizes.data} has {count} images to train on, fewer than --images {sizes.images}; "
            "give a smaller number."
        )
    examples = [*(source[i] for i in range(count)), heldout[0]]
    return Work(
        folder,
        [(example.image, example.prompt) for example in examples],
        sizes.images,
        sizes.captions,
        sizes.tokens,
        dtype=sizes.dtype,
        rewards=("letters", "brevity"),
        remat=sizes.remat,
    )


def measure(side: str, sizes: str) -> None:
    """Some steps of one side; prints its peak memory as JSON. Runs in a process of its own.

    Args:
      side: "balcap" or "trl".
      sizes: `Sizes` as JSON.
    """
    work = work_of(Sizes(**json_text.loads(sizes)))
    with tempfile.TemporaryDirectory() as made:
        peak = {"balcap": _our_peak, "trl": _trl_peak}[side](work, Path(made))
    print(json_text.dumps({"peak_bytes": peak}))  # noqa: T201 - read by the parent


def _our_peak(work: Work, scratch: Path) -> int:
    import jax

    ours = our_run(work, scratch, steps=MEMORY_STEPS)
    try:
        for _ in range(MEMORY_STEPS):
            ours.make_step()
        on_device = jax.devices()[0].memory_stats() or {}
        return on_device.get("peak_bytes_in_use") or peak_bytes()
    finally:
        ours.close()


def _trl_peak(work: Work, scratch: Path) -> int:
    import torch

    train_with_trl(work, scratch, steps=MEMORY_STEPS)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()


def _memory_of(side: str, sizes: Sizes) -> int:
    try:
        sent = json_text.dumps(asdict(sizes))
        return in_process("balcap_jax.bench.trainer", side, sent)["peak_bytes"]
    except RuntimeError as error:
        raise UserError(
            f"{side} cannot make {MEMORY_STEPS} steps in a process of its own ({error}); leave "
            "memory out with --no-memory, or give smaller sizes."
        ) from error


def _with_vllm(sizes: Sizes, tell: Callable[[str], None]) -> dict[str, Any] | str:
    """TRL with vLLM beside ours, or why not. A failure costs nothing of what is measured."""
    if not has_vllm():
        return "not run: it needs vllm and a GPU that torch sees"
    tell("the same with vLLM as TRL's sampler")
    try:
        with tempfile.TemporaryDirectory() as made:
            turns = in_turns(work_of(sizes), Path(made), steps=sizes.rounds + 1, vllm=True)
    except Exception as error:  # noqa: BLE001 - whatever another package raises
        return f"failed: {type(error).__name__}: {error}"[:300]
    sides = _sides(turns)
    return {"sides": sides, "ratio": sides["trl"]["median"] / sides["balcap"]["median"]}


def _sides(turns: Turns) -> dict[str, dict[str, Any]]:
    return {
        "trl": _side(turns.trl, cpu=turns.trl_cpu),
        "balcap": _side(turns.balcap, turns.compiled, cpu=turns.balcap_cpu),
    }


def _side(
    seconds: list[float], compiled: list[bool] | None = None, *, cpu: list[float]
) -> dict[str, Any]:
    """The first step apart; later ones that compiled are not in the median, unless all did."""
    made = compiled or [False] * len(seconds)
    later = range(1, len(seconds))
    ran = [i for i in later if not made[i]] or list(later)
    median = statistics.median(seconds[i] for i in ran)
    return {
        "first": seconds[0],
        "rounds": seconds[1:],
        "compiled_rounds": sum(made[1:]),
        "median": median,
        "cpu_median": statistics.median(cpu[i] for i in ran),
        "compile": max(seconds[0] - median, 0.0),
    }


def run_and_print(sizes: Sizes, *, memory: bool = True, json: bool = False) -> None:
    """A few lines, or one of JSON."""
    console = Console()
    told = Console(stderr=True)
    report = run(sizes, memory=memory, tell=lambda line: told.print(f"{line} ...", highlight=False))
    if json:
        print(json_text.dumps(report))  # noqa: T201 - exactly one line, whatever its width
        return
    for line in lines(report):
        console.print(line, highlight=False, soft_wrap=True)


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    made = [
        f"{report['model']} on {report['data']}: steps of {report['images']} images with "
        f"{report['captions']} captions of at most {report['tokens']} tokens, {report['dtype']}, "
        f"{report['aggregation']}, {report['rounds']} rounds"
    ]
    made += _of_sides(report["sides"])
    made.append(
        f"TRL takes {report['ratio']:.2f} times our step, {report['cpu_ratio']:.2f} times its "
        "seconds of processors."
    )
    vllm = report["vllm"]
    if isinstance(vllm, str):
        made.append(f"TRL with vLLM: {vllm}.")
    else:
        made += _of_sides(vllm["sides"])
        made.append(f"TRL with vLLM takes {vllm['ratio']:.2f} times our step.")
    return [*made, "; ".join(f"{name} {value}" for name, value in report["versions"].items())]


def _of_sides(sides: dict[str, Any]) -> list[str]:
    made = []
    for name, side in sides.items():
        line = (
            f"{name:>8}  {side['median']:8.3f} s a step ({min(side['rounds']):.3f} ... "
            f"{max(side['rounds']):.3f}), {side['cpu_median']:.3f} s of processors, first "
            f"{side['first']:.1f} s"
        )
        if side["compiled_rounds"]:
            line += f", {side['compiled_rounds']} later ones compiled and are left out"
        if "peak_bytes" in side:
            line += f", peak memory {side['peak_bytes'] / 1e9:.2f} GB"
        made.append(line)
    return made
