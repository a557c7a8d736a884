"""`balcap bench update`: updates of packed tokens beside padded ones, in a run of its own.

The run is the default one, without log and held-out images. Every update is computed twice in
turns: packed, as the run goes on, and padded, on weights that learn beside it.
"""

import json as json_text
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from balcap_jax.bench.one_device import OneDevice
from balcap_jax.bench.step import pairs_of, table_of, versions
from balcap_jax.config.commands import TrainConfig
from balcap_jax.errors import UserError
from balcap_jax.models.packing import Room
from balcap_jax.rl.balance import Parts
from balcap_jax.rl.train_state import TrainState
from balcap_jax.rl.update import Batch
from balcap_jax.training.rooms import real_share
from balcap_jax.training.seams import Seams

SIDES = ("padded", "packed")


@dataclass
class Side:
    """One way to compute updates.

    Attributes:
      seconds: of each update that compiled nothing on either side.
      cpu_seconds: of processors that the same took, which other work on the machine prolongs less.
      compiled: seconds of those that compiled something here.
      losses: before each update.
      shares: of the tokens that each update computed, those that are real.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    compiled: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


class BothWays(OneDevice):
    """A run whose updates are computed a second time, on padded slots."""

    def _make_programs(self) -> optax.GradientTransformation:
        optimizer = super()._make_programs()
        self.sides = {name: Side() for name in SIDES}
        self.rooms_met: set[Room | None] = set()
        self._padded: TrainState | None = None
        both = partial(self._update, self.programs.update)
        self.programs = self.programs._replace(update=both)
        return optimizer

    def _update(
        self, update: Callable[..., Any], state: TrainState, batch: Batch, room: Room | None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if self._padded is None:
            self._padded = jax.tree.map(jnp.copy, state)
        given = {"padded": (self._padded, batch, None), "packed": (state, batch, room)}
        new = [name for name in SIDES if given[name][2] not in self.rooms_met]
        made, share_in = {}, self._real_share_in(batch)
        for name in SIDES[:: -1 if self.step % 2 else 1]:
            side, start, cpu = self.sides[name], time.perf_counter(), time.process_time()
            made[name] = update(*given[name])
            side.losses.append(float(made[name][1]["loss"]))
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
            if name in new:
                side.compiled.append(seconds)
            elif not new:
                side.seconds.append(seconds)
                side.cpu_seconds.append(cpu_seconds)
            side.shares.append(share_in(given[name][2]))
        self.rooms_met |= {None, room}
        self._padded, _ = made["padded"]
        return made["packed"]

    def _real_share_in(self, batch: Batch) -> Callable[[Room | None], float]:
        """Of a room, the share of its tokens that are real."""
        mask, valid, prompts = jax.device_get((batch.mask, batch.valid, batch.prompts.mask))
        return partial(
            real_share,
            mask.sum(axis=-1),
            valid,
            prompts.sum(axis=-1),
            length=mask.shape[-1],
            prefix_length=prompts.shape[-1],
            parts=Parts.of(self.mesh, self.micro_batches),
        )


def run(config: TrainConfig, *, steps: int) -> dict[str, Any]:
    """Everything measured, as plain numbers.

    Args:
      config: of the run whose updates these are.
      steps: of the run.

    Raises:
      UserError: `steps` below 1.
    """
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1; raise it.")
    with tempfile.TemporaryDirectory() as scratch:
        config = replace(config, out=Path(scratch), name="run", steps=steps, loggers=())
        with closing(BothWays(config, config.out / config.name, Seams())) as both:
            for _ in range(steps):
                both.make_step()
    return _report(both.sides, both.rooms_met)


def _report(sides: dict[str, Side], rooms: set[Room | None]) -> dict[str, Any]:
    made = sorted(room for room in rooms if room is not None)
    report: dict[str, Any] = {"versions": versions(None), "rooms": made, "sides": {}}
    for name, side in sides.items():
        report["sides"][name] = {
            "real_share": statistics.median(side.shares),
            "seconds": side.seconds,
            "compiled": side.compiled,
            "programs": len(side.compiled),
        }
        if side.seconds:
            report["sides"][name] |= {
                "median": statistics.median(side.seconds),
                "min": min(side.seconds),
                "cpu_median": statistics.median(side.cpu_seconds),
            }
    padded, packed = (sides[name] for name in SIDES)
    if padded.seconds and packed.seconds:
        numbers = report["sides"]
        for ratio, key in (("ratio", "median"), ("cpu_ratio", "cpu_median")):
            report[ratio] = numbers["padded"][key] / numbers["packed"][key]
    report["checksum"] = {
        "first loss, padded": padded.losses[0],
        "first loss, packed": packed.losses[0],
        "largest difference of losses": float(
            np.abs(np.subtract(padded.losses, packed.losses)).max()
        ),
    }
    return report


def run_and_print(*, steps: int = 100, json: bool = False) -> None:
    """`balcap bench update`: a table, or one line of JSON for programs."""
    report = run(TrainConfig(), steps=steps)
    if json:
        print(json_text.dumps(report))  # noqa: T201 - exactly one line, whatever its width
        return
    console = Console()
    table = table_of(
        "updates of the default run: wall-clock seconds",
        ("update", "median", "min", "CPU", "programs", "compiling", "real tokens"),
    )
    for name, side in report["sides"].items():
        keys = ("median", "min", "cpu_median")
        times = (f"{side[key]:.3f}" if key in side else "" for key in keys)
        compiling = f"{sum(side['compiled']):.1f}"
        table.add_row(name, *times, str(side["programs"]), compiling, f"{side['real_share']:.0%}")
    console.print(table)
    console.print(pairs_of("checksum", report["checksum"], ".7f"))
    if "ratio" in report:
        console.print(
            f"The padded update takes {report['ratio']:.2f} times the packed one, and "
            f"{report['cpu_ratio']:.2f} times its CPU seconds."
        )
    console.print("; ".join(f"{name} {value}" for name, value in report["versions"].items()))
