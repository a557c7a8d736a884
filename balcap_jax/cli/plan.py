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
from balcap_jax.config.sections import MOST_IMAGES, MOST_TOKENS
from balcap_jax.errors import UserError


@dataclass(frozen=True)
class PlanFlags(Settings):
    """Memory and time of a training step on a TPU slice that is not there, from its programs,
    which are compiled for it.
    """

    config: Path  # TOML file of settings, or a name in configs/, as for `balcap train`.
    topology: str | None = None  # Slice: v5e:8x8, v6e:16x16, v5p:4x4x4, ...
    # Published shape in place of the folder in model.path: qwen2.5-vl-3b, qwen2.5-vl-7b,
    # llava-1.5-7b.
    model: str | None = None
    # Pixels of an image, as 896x896; default: the largest that data.max_pixels allows.
    image: str | None = None
    text_tokens: int = 24  # Tokens of a prompt, without those of its image.
    json: bool = False  # JSON instead of tables.
    sweep: bool = False  # Ranking of variants; the --try flags name them.
    try_data: tuple[int, ...] = ()  # Sizes of mesh.data; default: 1.
    try_tensor: tuple[int, ...] = ()  # Sizes of mesh.tensor; default: 1 2 4.
    try_prompts: tuple[int, ...] = ()  # Values of prompts_per_step; default: the config's.
    try_micro_batches: tuple[int, ...] = ()  # Values of rl.micro_batches; default: the config's.
    # Values of model.remat; default: the config's.
    try_remat: tuple[Literal["none", "dots", "attention", "sums", "full"], ...] = ()
    scaling: tuple[str, ...] = ()  # Slices to compile the update for instead.
    prompts_per_chip: float = 1.0  # Images per chip and step of --scaling.
    most_fsdp: int = 64  # Data shards of --scaling beyond which `data` grows.
    plot: Path | None = None  # PNG of --scaling to write.

    def check(self) -> None:
        self._at_least(1, "text_tokens", "most_fsdp")
        self._at_most(MOST_TOKENS, "text_tokens")
        self._positive("prompts_per_chip")
        self._at_most(MOST_IMAGES, "prompts_per_chip")
        for name in ("try_data", "try_tensor", "try_prompts", "try_micro_batches"):
            sizes = getattr(self, name)
            fits = all(1 <= size <= MOST_IMAGES for size in sizes)
            self._require(fits, name, f"must be numbers from 1 to {MOST_IMAGES}")


def plan_command(arguments: list[str]) -> None:
    """`balcap plan ARGUMENTS`."""
    flags = parse(PlanFlags, arguments, "plan")
    config = load_toml(TrainConfig, flags.config)

    from rich.console import Console

    from balcap_jax.plan.chips import EXAMPLES, slice_of
    from balcap_jax.plan.compiler import check_compiler
    from balcap_jax.plan.models import image_of, model_of

    topology = flags.topology or next(iter(flags.scaling), None)
    if topology is None:
        raise UserError(f"--topology is missing; name a slice, such as {EXAMPLES}.")
    where = slice_of(topology)
    model = model_of(config.model.path, shape=flags.model)
    sizes = {"image": image_of(model, config.data, flags.image), "text_tokens": flags.text_tokens}
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
