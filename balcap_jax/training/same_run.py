"""Whether a checkpoint is of the run that is to go on: its settings, its data and its logs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from balcap_jax.config.files import conflicts_of
from balcap_jax.config.sections import MEMORY
from balcap_jax.errors import UserError
from balcap_jax.rewards.judges import check_same_judge
from balcap_jax.rewards.rivals.rivals import check_same_rivals
from balcap_jax.runs.folder import plain
from balcap_jax.training.adapter_run import check_base
from balcap_jax.training.checkpoint import Restored
from balcap_jax.training.fingerprint import INVALID, UNSIZED, differences, fingerprint
from balcap_jax.training.other_files import FUNCTIONS, PROCESSOR, code_of, is_other, other_files

if TYPE_CHECKING:
    from balcap_jax.training.task_run import TaskRun


def look_at_data(run: "TaskRun", without: Sequence[int] = (), unsized: Sequence[int] = ()) -> None:
    """Fills `run.data_facts`; see `fingerprint` and `other_files`."""
    in_memory = run.config.data.path == MEMORY
    run.data_facts = fingerprint(
        run.config.data,
        run.source,
        run.heldout,
        in_memory=in_memory,
        without=without,
        unsized=unsized,
    )
    run.data_facts |= other_files(run.config, run.folder)
    run.data_facts[FUNCTIONS] = code_of(run.functions())


def check_same_run(run: "TaskRun", found: Restored, *, anyway: bool) -> None:
    """Process 0 compares what the checkpoint says of its run, and tells what is amiss.

    Raises:
      UserError: see `TaskRun.restore`.
    """
    extra, step, last = found.extra, found.step, run.config.steps
    if step > last:
        fit = [str(other) for other in run.checkpoints.own_steps() if other <= last]
        back = f", or go back with --checkpoint {' or '.join(fit)}" if fit else ""
        raise UserError(
            f"{run.run} is at step {step}, which is past the last one by steps={last}; give "
            f"--steps {step} or more{back}."
        )
    check_base(extra, run.base_digest, run=run.run, path=run.config.model.path)
    if "judge" in run.summary:
        check_same_judge(extra["summary"]["judge"], run.summary["judge"], run=run.run)
    if "rivals" in run.summary:
        then = extra["summary"].get("rivals", {})
        check_same_rivals(then, run.summary["rivals"], run=run.run)
    for broken in found.broken:
        run.say(f"the checkpoint of step {broken} is not intact")
    if found.broken:
        run.say(f"going on from step {step}, the newest that is intact")
    unknown = [] if found.checked else ["checksums"]
    changed = []
    if "settings" in extra:
        changed += conflicts_of(extra["settings"], plain(run.settings))
    else:
        unknown.append("settings")
    then = extra.get("data") or {}
    look_at_data(run, without=then.get(INVALID, ()), unsized=then.get(UNSIZED, ()))
    if then:
        changed += differences(then, _comparable(run.data_facts, then))
        for name, code in then.get(FUNCTIONS, {}).items():
            if run.data_facts[FUNCTIONS].get(name, code) != code:
                run.say(f"the code of the reward function {name} is not what it was then")
    else:
        unknown.append("data")
    if unknown:
        run.say(
            f"the checkpoint of step {step} is of an older balcap_jax: its "
            f"{' and '.join(unknown)} cannot be checked"
        )
    if changed and not anyway:
        raise UserError(
            f"{run.run} was saved at step {step} with other data or settings, which differ "
            f"in {', '.join(changed)}; restore them, start a new run with --name, or go on all "
            "the same with --resume-anyway."
        )
    if changed:
        run.say(f"going on although these differ: {', '.join(changed)}")
    rows = run.metrics.rows_to(step)
    if "logged" in extra and rows < extra["logged"]:
        run.say(
            f"{run.run / 'metrics.jsonl'} holds {rows} of the {extra['logged']} rows up to "
            f"step {step}; the others are lost, and the curves begin later"
        )


def _comparable(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a checkpoint can be compared with: one of an older balcap_jax knows of no
    files but those of the data. Reward functions may be fixed, which is told elsewhere.
    """
    facts = {**plain(now), FUNCTIONS: then.get(FUNCTIONS)}
    if PROCESSOR in then:
        return facts
    return {name: value for name, value in facts.items() if not is_other(name)}
