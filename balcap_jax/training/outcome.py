"""What a finished run leaves: the policy, summary.json, the pictures, and a table on the screen."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from balcap_jax.data.photos import Photos
from balcap_jax.models.hf.folders import POLICY
from balcap_jax.parallel import processes
from balcap_jax.reporting.report import report, summary_table
from balcap_jax.runs.folder import SUMMARY, write_json_atomic
from balcap_jax.runs.stopwatch import peak_memory_mb
from balcap_jax.training.adapter_run import write_policy
from balcap_jax.training.loop import TrainingLoop
from balcap_jax.training.task_run import TaskRun


def write_outcome(loop: TrainingLoop) -> None:
    """Ends a run on rewards: process 0 writes, the others hand it their parts of the parameters.

    Raises:
      UserError: the disk is full.
    """
    params = processes.to_process_zero(loop.state.params)
    loop.judge.share_totals()  # with the held-out captions
    loop.checkpoints.wait()
    processes.on_process_zero(lambda: _write(loop, params))


def _write(loop: TrainingLoop, params: dict) -> None:
    run, reward = loop.run, loop.config.reward
    programs = loop.programs
    loop.summary["judge"] |= loop.judge.totals
    if loop.judge.totals:
        loop.summary["judge"]["price_per_1000"] = loop.judge.price_per_1000
    shapes = programs.captioner.shapes | programs.tester.shapes
    finish(loop, params, shapes=shapes)
    # After the loggers are closed: it reads what they have written.
    made = report(run, band=(reward.tau_l, reward.tau_u))
    screen = Console()
    screen.print(summary_table(loop.summary))
    if spent := loop.judge.totals.get("price"):
        screen.print(
            f"judging took {spent:.2f} for {loop.judge.totals['captions']:,.0f} captions: "
            f"{loop.judge.price_per_1000:.2f} for 1,000",
            highlight=False,
        )
    tell(loop, [*made, run / SUMMARY, run / POLICY])


def finish(
    loop: TaskRun, params: dict, *, shapes: Iterable[tuple], dtype: str | None = None
) -> None:
    """Writes policy and summary.json, and closes the run.

    Args:
      shapes: of the prompts that programs were compiled for.
      dtype: of the written weights; default: `model.dtype`.

    Raises:
      UserError: the disk is full.
    """
    write_policy(
        loop.run,
        POLICY,
        loop.policy,
        params,
        model=loop.config.model,
        source=loop.folder,
        dtype=dtype,
    )
    loop.summary |= _facts(loop) | {"prompt_shapes": sorted(shapes)}
    write_json_atomic(loop.run / SUMMARY, loop.summary)
    loop.compilations.close()
    loop.close()


def tell(loop: TaskRun, paths: Iterable[Path]) -> None:
    """Prints what was compiled and what was written."""
    screen = Console()
    screen.print(_compiled(loop), highlight=False, soft_wrap=True)
    for path in paths:
        screen.print(f"  {path}", highlight=False, soft_wrap=True)


def _facts(loop: TaskRun) -> dict[str, Any]:
    """What summary.json says of the run beside its scores."""
    bad = loop.source.bad.reasons if isinstance(loop.source, Photos) else ()
    return {
        "seconds": round(loop.seconds + time.perf_counter() - loop.started, 1),
        "steps": loop.step,
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "bad_images": len(bad),
        "skipped_updates": int(jax.device_get(loop.state.skipped)),
        "programs": loop.compilations.programs,
        "compile_seconds": round(loop.compilations.seconds, 1),
        **({"stopped": loop.stopped} if loop.stopped else {}),
    }


def _compiled(loop: TaskRun) -> str:
    """What was compiled, and why."""
    counts, shapes = loop.compilations, loop.summary["prompt_shapes"]
    sizes = ", ".join(f"{t} tokens + {p} patches in {w} windows" for t, p, w in shapes)
    return (
        f"{counts.programs} programs were made ready in {counts.seconds:.0f} s, "
        f"{counts.from_cache} of them from the cache; shapes of prompts: {sizes}"
    )
