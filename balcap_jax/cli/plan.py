"""`balcap plan`: flags, then one call, then tables or JSON."""

import json as json_text
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from balcap_jax.cli.flags import parse
from balcap_jax.config.base import Settings
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import load_toml
from balcap_jax.errors import UserError


@dataclass(frozen=True)
class PlanFlags(Settings):
    """Compiles the programs of a training step for a TPU slice that is not there, and says whether
    they fit and how long they would take.
    """

    config: Path  # A TOML file of settings, as for `balcap train`.
    topology: str | None = None  # The slice: v5e:8x8, v6e:16x16, v5p:4x4x4, ...
    # A published shape in place of the folder in model.path: qwen2.5-vl-3b, qwen2.5-vl-7b,
    # llava-1.5-7b.
    model: str | None = None
    image: str | None = None  # Pixels of an image, as 896x896; default: about 1000 image tokens.
    text_tokens: int = 24  # Of a prompt, without those of its image.
    json: bool = False  # Print JSON instead of tables.
    sweep: bool = False  # Try variants and rank them; the --try flags say which.
    try_data: tuple[int, ...] = ()  # Sizes of mesh.data; default: 1.
    try_tensor: tuple[int, ...] = ()  # Sizes of mesh.tensor; default: 1 2 4.
    try_prompts: tuple[int, ...] = ()  # Values of prompts_per_step; default: the config's.
    try_micro_batches: tuple[int, ...] = ()  # Values of rl.micro_batches; default: the config's.
    try_remat: tuple[Literal["none", "dots", "attention", "full"], ...] = ()  # The same.
    scaling: tuple[str, ...] = ()  # Compile the update for each of these slices instead.
    prompts_per_chip: float = 1.0  # Of --scaling.
    most_fsdp: int = 64  # Of --scaling: beyond this many data shards, `data` grows.
    plot: Path | None = None  # Of --scaling: a PNG to write.


def plan_command(arguments: list[str]) -> None:
    """`balcap plan ARGUMENTS`."""
    flags = parse(PlanFlags, arguments, "plan")

    from rich.console import Console

    from balcap_jax.plan.chips import EXAMPLES, slice_of
    from balcap_jax.plan.compiler import check_compiler
    from balcap_jax.plan.models import image_of, model_of

    config = load_toml(TrainConfig, flags.config)
    topology = flags.topology or next(iter(flags.scaling), None)
    if topology is None:
        raise UserError(f"--topology is missing; name a slice, such as {EXAMPLES}.")
    where = slice_of(topology)
    model = model_of(config.model.path, shape=flags.model)
    sizes = {"image": image_of(model.config, flags.image), "text_tokens": flags.text_tokens}
    note = check_compiler()
    if note:
        sys.stderr.write(f"balcap: note: {note}\n")
    if flags.scaling:
        from balcap_jax.plan.scaling import plot, scaling
        from balcap_jax.plan.tables import scaling_table

        answer = scaling(
            config,
            model,
            flags.scaling,
            prompts_per_chip=flags.prompts_per_chip,
            most_fsdp=flags.most_fsdp,
            **sizes,
        )
        if flags.plot is not None:
            plot(answer, flags.plot, title=f"{model.name}, {where.chip.name}: one update")
        shown = [scaling_table(answer)]
    elif flags.sweep:
        from balcap_jax.plan.sweep import sweep
        from balcap_jax.plan.tables import sweep_table

        answer = sweep(
            config,
            model,
            where,
            data=flags.try_data,
            tensor=flags.try_tensor,
            prompts=flags.try_prompts,
            micro_batches=flags.try_micro_batches,
            remat=flags.try_remat,
            **sizes,
        )
        shown = [sweep_table(answer)]
    else:
        from balcap_jax.plan.plan import plan
        from balcap_jax.plan.tables import plan_tables

        answer = plan(config, model, where, **sizes)
        shown = plan_tables(answer)
    if flags.json:
        sys.stdout.write(json_text.dumps(answer) + "\n")
        return
    screen = Console()
    for part in shown:
        screen.print(part, highlight=False, soft_wrap=isinstance(part, str))
