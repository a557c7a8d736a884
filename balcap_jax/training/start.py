"""The story of a run, whatever its task: its folder, its processes, its signals and its end."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from balcap_jax.errors import called_in_python
from balcap_jax.parallel import processes
from balcap_jax.runs.folder import RunLock, new_run, remove_half_written
from balcap_jax.training.checkpoint import latest_step_of
from balcap_jax.training.hub_folders import fetched_by_one_host
from balcap_jax.training.interrupts import Interrupts, Stopped
from balcap_jax.training.plan_of_run import announce_run
from balcap_jax.training.seams import Seams
from balcap_jax.training.task_run import TaskRun


def run_task(
    task: type[TaskRun],
    config: Any,
    *,
    write_outcome: Callable[[Any], None],
    resume: Path | None = None,
    seams: Seams | None = None,
    checkpoint: str = "",
    resume_anyway: bool = False,
) -> Path:
    """Trains by `config` in OUT/NAME, or goes on with the run in `resume`.

    Ends early, with everything saved, on SIGTERM, SIGINT (Ctrl-C) and SIGHUP; a second one ends the
    process at once. On several hosts (`processes`), all call this.

    Args:
      write_outcome: writes what a finished run leaves.
      checkpoint: of `resume`: "best" or the number of a step; "": the newest that is intact.
      resume_anyway: other data or settings than those of the checkpoint are wanted.

    Returns:
      The run's folder.

    Raises:
      UserError: a mistake in settings or data, a full disk, or a callback that raises.
      Stopped: a signal came before anything was saved.
    """
    run = config.out / config.name if resume is None else resume
    flags = {"--checkpoint": checkpoint, "--resume-anyway": resume_anyway}
    with (
        processes.joined(
            config.dist, facts=lambda: processes.facts_of(config, resume=resume) | flags, run=run
        ),
        ExitStack() as held,
        Interrupts() as interrupts,
    ):
        if not processes.is_alone():  # all must end in the same place
            held.enter_context(interrupts.held())
        try:
            if resume is None:
                processes.on_process_zero(
                    lambda: held.enter_context(new_run(config.out, config.name))
                )
            processes.on_process_zero(lambda: held.enter_context(RunLock(run)))
            processes.on_process_zero(lambda: remove_half_written(run))
            processes.check_shared(run)
            with (
                fetched_by_one_host(config, run.parent),
                closing(task(config, run, seams or Seams(), interrupts)) as loop,
            ):
                announce_run(loop)
                loop.restore(checkpoint, anyway=resume_anyway)
                loop.evaluate_once("before")
                loop.loop()
                if not loop.done:
                    raise Stopped(interrupts.number)
                loop.evaluate_once("after")
                write_outcome(loop)
        except Stopped as stopped:
            if not _say_stopped(run, config.steps, command=task.command):
                raise Stopped(interrupts.number) from stopped
    return run


def _say_stopped(run: Path, steps: int, *, command: str) -> bool:
    """Tells how to go on; whether there is anything saved to go on from."""
    step = latest_step_of(run)
    if not processes.is_process_zero():
        return bool(step)
    if step:
        print(f"stopped at step {step} of {steps}, all saved; go on with:")
    elif (run / "config.json").exists():
        print("stopped before the first step was made; start with:")
    else:
        print("stopped before the run began; start it again")
        return False
    here = f"trainer.train(), or in another process Trainer(resume={str(run)!r}, ...).train()"
    print(f"  {here if called_in_python() else f'balcap {command} --resume {run}'}", flush=True)
    return bool(step)
