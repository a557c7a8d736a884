"""`balcap bench update`: updates of packed tokens beside padded ones, on captions of a real run.

The base policy captions scenes with the settings of the default run; both updates learn from these
captions in turns, each with weights of its own that it moves.
"""

import json as json_text
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from rich.console import Console

from balcap_jax.bench.step import pairs_of, table_of, versions
from balcap_jax.config.commands import TrainConfig
from balcap_jax.errors import UserError
from balcap_jax.models.packing import Room
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.rl.balance import Parts
from balcap_jax.rl.train_state import TrainState, init_state
from balcap_jax.rl.update import Batch
from balcap_jax.runs.device_clock import DeviceClock
from balcap_jax.training.opening import open_policy
from balcap_jax.training.programs import make_programs
from balcap_jax.training.rooms import Rooms, least_room, real_share
from balcap_jax.training.seams import Seams, open_data
from balcap_jax.training.trained import trained_of

SIDES = ("padded", "packed")


@dataclass
class Side:
    """One way to compute updates.

    Attributes:
      seconds: of each update that compiled nothing.
      cpu_seconds: of processors that the same took, which other work on the machine prolongs less.
      compiled: seconds of those that did.
      losses: before each update.
    """

    state: TrainState
    seconds: list[float]
    cpu_seconds: list[float]
    compiled: list[float]
    losses: list[float]


@dataclass(frozen=True)
class Lesson:
    """A rollout to learn from, and what a run would know of its lengths."""

    batch: Batch
    least: Room | None
    counts: tuple[np.ndarray, np.ndarray, np.ndarray]


def run(config: TrainConfig, *, steps: int, rollouts: int) -> dict[str, Any]:
    """Everything measured, as plain numbers.

    Args:
      config: of the run whose updates these are.
      steps: updates by each side.
      rollouts: batches of captions, which are learned from again and again.

    Raises:
      UserError: `steps` or `rollouts` below 1.
    """
    if min(steps, rollouts) < 1:
        raise UserError(f"steps={steps} and rollouts={rollouts} must be at least 1; raise them.")
    config = replace(config, steps=steps)
    mesh = make_mesh(devices=jax.devices()[:1])
    source, _ = open_data(config, Seams())
    opened = open_policy(config, mesh)
    clock = DeviceClock()
    programs = make_programs(config, opened.policy, opened.processor, mesh, clock=clock)
    sizes = {
        "length": config.rollout.max_new_tokens,
        "parts": Parts.of(mesh, config.rl.micro_batches),
    }
    made = []
    for i in range(rollouts):
        examples = [source[i * config.prompts_per_step + j] for j in range(config.prompts_per_step)]
        made.append(_lesson(programs, opened.params, examples, mesh, seed=i, sizes=sizes))
    clock.close()

    def side() -> Side:
        trained = trained_of(config, opened.policy)
        state = init_state(mesh, opened.params, programs.optimizer, trained=trained)
        return Side(state, [], [], [], [])

    sides, rooms, shares, seen = {name: side() for name in SIDES}, Rooms(), [], set()
    for i in range(steps):
        lesson = made[i % rollouts]
        room = None if lesson.least is None else rooms.choose(lesson.least)
        prefix_length = lesson.batch.prompts.mask.shape[1]
        shares.append(real_share(*lesson.counts, room, prefix_length=prefix_length, **sizes))
        for name in SIDES[:: -1 if i % 2 else 1]:
            taken = room if name == "packed" else None
            one, start, cpu = sides[name], time.perf_counter(), time.process_time()
            one.state, metrics = programs.update(one.state, lesson.batch, taken)
            one.losses.append(float(metrics["loss"]))
            seconds = time.perf_counter() - start
            first = (taken, prefix_length) not in seen
            if first:
                one.compiled.append(seconds)
            else:
                one.seconds.append(seconds)
                one.cpu_seconds.append(time.process_time() - cpu)
            seen.add((taken, prefix_length))
    padded_share = statistics.mean(
        real_share(*x.counts, None, prefix_length=x.batch.prompts.mask.shape[1], **sizes)
        for x in made
    )
    return _report(sides, rooms, {"padded": padded_share, "packed": statistics.mean(shares)})


def _lesson(
    programs: Any, params: dict, examples: list, mesh: Any, *, seed: int, sizes: dict[str, Any]
) -> Lesson:
    generation = programs.captioner.generate(params, examples, jax.random.key(seed))
    rollout = generation.rollout
    mask, prompts = jax.device_get((rollout.mask, generation.prompts.mask))
    rng = np.random.default_rng(seed)
    batch = Batch(
        prompts=generation.prompts,
        tokens=rollout.tokens,
        mask=rollout.mask,
        old_logprobs=rollout.logprobs,
        advantages=shard_batch(mesh, rng.standard_normal(mask.shape[:2], np.float32)),
        valid=shard_batch(mesh, np.ones(mask.shape[:2], bool)),
        features=generation.features,
    )
    counts = mask.sum(axis=-1), np.ones(mask.shape[:2], bool), prompts.sum(axis=-1)
    least = least_room(*counts, prefix_length=prompts.shape[1], **sizes)
    return Lesson(batch, least, counts)


def _report(sides: dict[str, Side], rooms: Rooms, shares: dict[str, float]) -> dict[str, Any]:
    report: dict[str, Any] = {"versions": versions(None), "rooms": rooms.made, "sides": {}}
    for name, side in sides.items():
        report["sides"][name] = {
            "real_share": shares[name],
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


def run_and_print(*, steps: int = 100, rollouts: int = 20, json: bool = False) -> None:
    """`balcap bench update`: a table, or one line of JSON for programs."""
    report = run(TrainConfig(), steps=steps, rollouts=rollouts)
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
