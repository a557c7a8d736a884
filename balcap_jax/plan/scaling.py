"""Weak scaling on paper: the update compiled for ever larger slices, prompts per chip held."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balcap_jax.config.commands import TrainConfig
from balcap_jax.errors import UserError
from balcap_jax.plan.chips import Slice, slice_of
from balcap_jax.plan.estimate import memory_of, seconds_of, wire_bytes_by_kind
from balcap_jax.plan.models import Model
from balcap_jax.plan.plan import compile_all, jobs_of


def scaling(
    config: TrainConfig,
    model: Model,
    topologies: Sequence[str],
    *,
    prompts_per_chip: float,
    most_fsdp: int,
    image: tuple[int, int],
    text_tokens: int,
) -> list[dict[str, Any]]:
    """One row per slice, in order.

    `tensor` is that of the config; `fsdp` grows with the slice up to `most_fsdp`, then `data` does.

    Raises:
      UserError: a slice cannot hold the mesh, or the compiler failed.
    """
    slices = [slice_of(name) for name in topologies]
    configs = [
        _sized(config, where, prompts_per_chip=prompts_per_chip, most_fsdp=most_fsdp)
        for where in slices
    ]
    jobs = [
        job
        for where, sized in zip(slices, configs, strict=True)
        for job in jobs_of(
            sized, model, where, image=image, text_tokens=text_tokens, programs=("update",)
        )
    ]
    rows = []
    results = compile_all(jobs)
    for where, sized, result in zip(slices, configs, results, strict=True):
        if "needs" in result:
            raise UserError(
                f"the update does not fit on {where.name}; start --scaling from a larger slice or "
                "lower --prompts-per-chip."
            )
        seconds = seconds_of(result, where.chip, devices_per_chip=result["devices"] // where.chips)
        rows.append(
            {
                "topology": where.name,
                "chips": where.chips,
                "mesh": result["mesh"],
                "prompts_per_step": sized.prompts_per_step,
                "flops": result["flops"],
                "moved_bytes": result["bytes"],
                "wire_bytes": sum(c["wire_bytes"] for c in result["collectives"]),
                "collectives": {
                    kind: {"runs": runs, "wire_bytes": sent}
                    for kind, (runs, sent) in wire_bytes_by_kind(result["collectives"]).items()
                },
                "total_bytes": memory_of(result).total,
                "seconds": {"compute": seconds.compute, "wires": seconds.wires},
                "compile_seconds": result["compile_seconds"],
            }
        )
    return rows


def _sized(
    config: TrainConfig, where: Slice, *, prompts_per_chip: float, most_fsdp: int
) -> TrainConfig:
    tensor = max(config.mesh.tensor, 1)
    shards, rest = divmod(where.devices, tensor)
    prompts = round(prompts_per_chip * where.chips)
    if rest:
        raise UserError(
            f"mesh.tensor={tensor} does not divide the {where.devices} devices of {where.name}; "
            "choose another slice for --scaling, or another mesh.tensor."
        )
    if prompts % (shards * config.rl.micro_batches):
        raise UserError(
            f"{where.name} with tensor={tensor} has {shards} data shards, which do not divide "
            f"{prompts} prompts in {config.rl.micro_batches} micro-batches; change "
            "--prompts-per-chip."
        )
    fsdp = min(shards, most_fsdp)
    return dataclasses.replace(
        config,
        prompts_per_step=prompts,
        mesh=dataclasses.replace(config.mesh, data=shards // fsdp, fsdp=fsdp, tensor=tensor),
    )


def plot(rows: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Seconds of computation and of communication over chips, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chips = [row["chips"] for row in rows]
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for key, label, marker in (
        ("compute", "computation (flops or memory)", "o"),
        ("wires", "communication (one torus axis)", "s"),
    ):
        axes.plot(chips, [row["seconds"][key] for row in rows], marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(chips, [str(count) for count in chips])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("chips")
    axes.set_ylabel("seconds per update at peak rates")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
