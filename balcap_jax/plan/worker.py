"""The process that compiles one program and says what it found: numbers in, numbers out, as JSON.

A process of its own, because libtpu is made for one program per process, takes gigabytes for a
while, and must leave nothing behind in the caller.
"""

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.plan.compiler import ENVIRONMENT, check_compiler


@dataclass(frozen=True)
class Job:
    """One program of one configuration.

    Attributes:
      config: a TrainConfig as `to_dict` gives it.
      model: config.json of the policy.
      generation: generation_config.json, where there is one.
      program: one of `plan.programs_of`.
      judge: config.json of a judge on the same devices (judge.kind "model"), where there is one.
      fluency: that of a language model beside it (judge.fluency), where there is one.
    """

    config: dict[str, Any]
    model: dict[str, Any]
    generation: dict[str, Any] | None
    topology: str
    program: str
    image: tuple[int, int]
    text_tokens: int
    judge: dict[str, Any] | None = None
    fluency: dict[str, Any] | None = None


def run_job(job: Job, *, keep_text: Path | None = None) -> dict[str, Any]:
    """`compile_job` in a process of its own.

    Args:
      keep_text: write the compiled program's text here.

    Raises:
      UserError: a mistake in the settings, or the compiler failed.
    """
    environment = os.environ | ENVIRONMENT
    if keep_text is not None:
        environment["BALCAP_PLAN_TEXT"] = str(keep_text)
    # The compiler's cache of JAX does not know what a program for another machine may use.
    environment["JAX_COMPILATION_CACHE_DIR"] = ""
    done = subprocess.run(
        [sys.executable, "-m", "balcap_jax.plan.worker"],
        input=json.dumps(dataclasses.asdict(job)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    answer = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not answer.startswith("{"):
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        remedy = check_compiler() or "if nothing above explains it, report it with this sentence."
        raise UserError(
            f"compiling the {job.program} for {job.topology} failed ({reason[:300]}); {remedy}"
        )
    result = json.loads(answer)
    if "mistake" in result:
        raise UserError(result["mistake"])
    return result


def compile_job(job: Job) -> dict[str, Any]:
    """Traces, compiles and counts.

    Returns:
      What is the same for all programs of a configuration (devices, mesh, bytes of state and batch)
      and, of this program: seconds, bytes by XLA's own account, flops, bytes moved, collectives; or
      `needs` and `limit` in bytes where the compiler refused it as too large.

    Raises:
      UserError: a mistake in the settings.
    """
    from balcap_jax.config.base import from_dict
    from balcap_jax.config.commands import TrainConfig
    from balcap_jax.models.families import FAMILIES
    from balcap_jax.plan.compiler import devices_of
    from balcap_jax.plan.programs import Step, bytes_per_device

    devices = devices_of(job.topology)
    family = FAMILIES[job.model["model_type"]]
    step = Step(
        from_dict(TrainConfig, job.config, source="the plan"),
        family.config.from_hf(job.model, job.generation),
        devices,
        image=tuple(job.image),
        text_tokens=job.text_tokens,
    )
    state, batch, _ = step.inputs
    result: dict[str, Any] = {
        "program": job.program,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "mesh": dict(step.mesh.shape),
        "prefix": int(step.prompt.tokens.shape[1]),
        "patches": int(step.prompt.images.pixels.shape[1]),
        "parameters": bytes_per_device(state.params),
        "optimizer": bytes_per_device(state.opt_state),
        "batch": bytes_per_device(batch),
        "reference": bytes_per_device(step.reference_shapes),
        "judge": bytes_per_device(step.judge_shapes(job.judge, fluency=job.fluency)),
        "waiting": step.config.rollout.overlap_steps * bytes_per_device(step.waiting_shapes()),
        "model_flops": step.model_flops(job.program) / len(devices),
    }
    started = time.perf_counter()
    traced = step.trace(job.program)
    result["trace_seconds"] = time.perf_counter() - started
    started = time.perf_counter()
    try:
        compiled = step.compile(traced)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises; see below
        too_large = refused_for_memory(str(error))
        if too_large is None:
            raise
        result |= too_large
    else:
        result |= _measured(compiled, step)
    result["compile_seconds"] = time.perf_counter() - started
    # Kilobytes on Linux, where alone there is a libtpu.
    result["host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def _measured(compiled: Any, step: Any) -> dict[str, Any]:
    from balcap_jax.plan.costs import costs_of, saved_for_backward
    from balcap_jax.plan.hlo import Program
    from balcap_jax.plan.programs import shard_shapes

    text = compiled.as_text()
    if path := os.environ.get("BALCAP_PLAN_TEXT"):
        Path(path).write_text(text, encoding="utf-8")
    program = Program(text)
    costs = costs_of(program, attended=step.attended())
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "activations": saved_for_backward(program, shard_shapes(step.inputs.state.params)),
        "flops": costs.flops,
        "bytes": costs.bytes,
        "phases": costs.phases,
        "collectives": [
            dataclasses.asdict(c) | {"wire_bytes": c.wire_bytes} for c in costs.collectives
        ],
    }


def refused_for_memory(message: str) -> dict[str, float] | None:
    """What a program `needs` and its `limit`, in bytes, from the compiler's refusal."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
    if found is None:
        return None
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    used, used_unit, limit, limit_unit = found.groups()
    return {"needs": float(used) * unit[used_unit], "limit": float(limit) * unit[limit_unit]}


def main() -> None:
    """One job from stdin, its result as the last line of stdout."""
    try:
        result = compile_job(Job(**json.load(sys.stdin)))
    except UserError as error:
        result = {"mistake": str(error)}
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
