"""Many variants of one configuration, ranked."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from balcap_jax.config.commands import TrainConfig
from balcap_jax.errors import UserError
from balcap_jax.plan.chips import Slice
from balcap_jax.plan.models import Model
from balcap_jax.plan.plan import compile_all, jobs_of, judged
from balcap_jax.plan.worker import Job


def variants(
    config: TrainConfig,
    devices: int,
    *,
    data: Sequence[int],
    tensor: Sequence[int],
    prompts: Sequence[int],
    micro_batches: Sequence[int],
    remat: Sequence[str],
) -> Iterator[TrainConfig]:
    """Every combination that can be run on so many devices; fsdp takes what data and tensor leave.

    An empty sequence stands for what `config` has.
    """
    combinations = itertools.product(
        data or (1,),
        tensor or (1, 2, 4),
        prompts or (config.prompts_per_step,),
        micro_batches or (config.rl.micro_batches,),
        remat or (config.model.remat,),
    )
    for copies, splits, batch, parts, kept in combinations:
        if devices % (copies * splits) or batch % (devices // splits * parts):
            continue
        yield dataclasses.replace(
            config,
            prompts_per_step=batch,
            mesh=dataclasses.replace(
                config.mesh, data=copies, fsdp=devices // (copies * splits), tensor=splits
            ),
            rl=dataclasses.replace(config.rl, micro_batches=parts),
            model=dataclasses.replace(config.model, remat=kept),
        )


def sweep(
    config: TrainConfig,
    model: Model,
    where: Slice,
    *,
    image: tuple[int, int],
    text_tokens: int,
    **choices: Any,
) -> list[dict[str, Any]]:
    """The plans of all variants, most captions per second first; what does not fit comes last.

    A program that several variants share is compiled once.

    Args:
      choices: see `variants`.

    Raises:
      UserError: no variant can be run, or the compiler failed.
    """
    # Of chips that are two devices: as many chips are taken as the compiler will show devices.
    devices = where.devices
    chosen = list(variants(config, devices, **choices))
    if not chosen:
        parts = min(choices["micro_batches"] or (config.rl.micro_batches,))
        raise UserError(
            f"no variant has data x tensor that divide {devices} devices and prompts that divide "
            "by its data shards and micro-batches; try --try-data 1 --try-tensor 1 --try-prompts "
            f"{devices * parts}."
        )
    wanted = [
        jobs_of(variant, model, where, image=image, text_tokens=text_tokens) for variant in chosen
    ]
    distinct = {_key(job): job for jobs in wanted for job in jobs}
    results = dict(zip(distinct, compile_all(list(distinct.values())), strict=True))
    plans = [
        judged(
            variant,
            model,
            where,
            {job.program: results[_key(job)] for job in jobs},
        )
        for variant, jobs in zip(chosen, wanted, strict=True)
    ]
    return sorted(plans, key=_rank)


def _rank(plan: dict[str, Any]) -> tuple[bool, float]:
    speed = plan["step"]["captions_per_second"] if "step" in plan else 0.0
    return (not plan["fits"], -speed)


def _key(job: Job) -> tuple:
    """What the program depends on: the update's micro-batches are nothing to the rollout."""
    config = job.config
    shared = (job.program, config["prompts_per_step"], tuple(config["mesh"].values()))
    if job.program in ("update", "reference", "start"):
        return (*shared, config["rl"]["micro_batches"], config["model"]["remat"])
    return shared
