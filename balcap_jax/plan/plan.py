"""One configuration on one slice: every program of its step compiled, and what comes of it."""

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.judge import POLICY, RULES
from balcap_jax.plan.chips import Slice
from balcap_jax.plan.estimate import advice, memory_of, seconds_of, step_of, wire_bytes_by_kind
from balcap_jax.plan.models import Model, model_of
from balcap_jax.plan.supply import supply_of
from balcap_jax.plan.worker import Job, run_job
from balcap_jax.runs.cores import usable_cores
from balcap_jax.training.programs import reads_start

_LONGEST_FIRST = ("update", "reference", "start", "rollout", "evaluation", "encode")


def programs_of(config: TrainConfig) -> tuple[str, ...]:
    """The programs of a run, in the order in which a step takes them, evaluation last.

    The captions of held-out images are a program to look at only where it has more images at once
    than a step: otherwise it is the rollout's and takes less.
    """
    reference = ("reference",) if config.rl.kl_coef else ()
    start = ("start",) if reads_start(config) else ()
    larger = config.evaluation.batch_size > config.prompts_per_step
    evaluation = ("evaluation",) if larger and config.data.heldout else ()
    return ("encode", "rollout", *reference, *start, "update", *evaluation)


def jobs_of(
    config: TrainConfig,
    model: Model,
    where: Slice,
    *,
    image: tuple[int, int],
    text_tokens: int,
    programs: Sequence[str] | None = None,
) -> list[Job]:
    """What to compile; of these programs, by default all of `programs_of`."""
    judge = model_of(config.judge.model).hf if config.judge.kind == "model" else None
    fluency = None
    if config.judge.fluency != RULES:
        start = config.judge.fluency == POLICY
        fluency = model.hf if start else model_of(config.judge.fluency).hf
    return [
        Job(
            config=to_dict(config),
            model=model.hf,
            generation=model.generation,
            topology=where.name,
            program=program,
            image=image,
            text_tokens=text_tokens,
            judge=judge,
            fluency=fluency,
        )
        for program in (programs_of(config) if programs is None else programs)
    ]


def compile_all(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The results in order; a process each, as many at a time as there are cores, at most two: a
    compiler takes gigabytes.
    """
    at_a_time = min(2, usable_cores())
    with ThreadPoolExecutor(at_a_time) as pool:
        order = sorted(range(len(jobs)), key=lambda i: _LONGEST_FIRST.index(jobs[i].program))
        running = {i: pool.submit(run_job, jobs[i]) for i in order}
        return [running[i].result() for i in range(len(jobs))]


def plan(
    config: TrainConfig, model: Model, where: Slice, *, image: tuple[int, int], text_tokens: int
) -> dict[str, Any]:
    """Compiles the programs of a step and judges them.

    Returns:
      What `--json` prints; bytes, flops and seconds are of one device.

    Raises:
      UserError: a mistake in the settings, or the compiler failed.
    """
    jobs = jobs_of(config, model, where, image=image, text_tokens=text_tokens)
    results = {job.program: result for job, result in zip(jobs, compile_all(jobs), strict=True)}
    return judged(config, model, where, results)


def judged(
    config: TrainConfig, model: Model, where: Slice, results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """`plan` from the results of the compiler."""
    first = results["update"]
    per_chip = first["devices"] // where.chips
    limit = where.chip.usable / per_chip
    programs = {}
    for name, result in results.items():
        memory = memory_of(result)
        fits = memory.total <= limit and "needs" not in result
        programs[name] = {
            "fits": fits,
            "bytes": memory._asdict() | {"total": memory.total},
            "left_bytes": limit - memory.total,
            "compile_seconds": result["compile_seconds"],
            "compile_host_bytes": result["host_bytes"],
            "model_flops": result["model_flops"],
        }
        if not fits:
            programs[name]["change"] = advice(
                name,
                to_dict(config),
                mesh=first["mesh"],
                kv_heads=model.config.text.num_key_value_heads,
            )
        if "needs" in result:
            continue
        seconds = seconds_of(result, where.chip, devices_per_chip=per_chip)
        programs[name] |= {
            "flops": result["flops"],
            "moved_bytes": result["bytes"],
            "wire_bytes": sum(c["wire_bytes"] for c in result["collectives"]),
            "collectives": {
                kind: {"runs": runs, "wire_bytes": sent}
                for kind, (runs, sent) in wire_bytes_by_kind(result["collectives"]).items()
            },
            "seconds": {
                "compute": seconds.compute,
                "wires": seconds.wires,
                "overlapped": seconds.overlapped,
                "serial": seconds.serial,
            },
        }
    answer = {
        "name": config.name,
        "model": model.name,
        "topology": where.name,
        "chips": where.chips,
        "devices_per_chip": per_chip,
        "mesh": first["mesh"],
        "prompts_per_step": config.prompts_per_step,
        "group_size": config.rollout.group_size,
        "max_new_tokens": config.rollout.max_new_tokens,
        "prefix": first["prefix"],
        "patches": first["patches"],
        "micro_batches": config.rl.micro_batches,
        "remat": config.model.remat,
        "limit_bytes": limit,
        "fits": all(program["fits"] for program in programs.values()),
        "programs": programs,
        "versions": versions(),
    }
    if not any("needs" in result for result in results.values()):
        step = step_of(
            results,
            where.chip,
            updates=config.rl.updates_per_rollout,
            devices_per_chip=per_chip,
        )
        answer["step"] = step._asdict() | {
            "captions_per_second": config.prompts_per_step * config.rollout.group_size / step.serial
        }
        answer["supply"] = supply_of(config, answer)
    return answer


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    packages = {}
    for package in ("jax", "libtpu"):
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            packages[package] = "unknown"
    return {"python": platform.python_version(), **packages}
