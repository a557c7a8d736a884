"""`balcap bench`: which benchmark, and its flags. Each is imported when it is run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from balcap_jax.cli.flags import parse
from balcap_jax.config.base import Settings
from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError


@dataclass(frozen=True)
class AdvantageBenchFlags(Settings):
    """Times of the advantage kernels beside numpy and, where installed, TRL's torch code."""

    json: bool = False  # JSON instead of a table.


@dataclass(frozen=True)
class JudgeBenchFlags(Settings):
    """Agreement of the offline judge, and of a bag of words, with people's labels."""

    data: Path  # Folder of human labels; docs/judges.md lists its files.
    json: bool = False  # JSON instead of a table.


@dataclass(frozen=True)
class LoadBenchFlags(Settings):
    """Time and peak memory of loading a folder beside transformers, a process per load."""

    folder: Path  # Hugging Face folder to load.
    # Shape of random weights that are written to the folder first (3b: 7.5 GB on the disk).
    make: Literal["no", "qwen2.5-vl-3b"] = "no"
    rounds: int = 2  # Loads by each side.
    json: bool = False  # JSON instead of a table.

    def check(self) -> None:
        self._at_least(1, "rounds")


@dataclass(frozen=True)
class StepBenchFlags(Settings):
    """Times of rollout and update of a policy with random weights, beside the device's limits."""

    preset: str = "cpu-small"  # Preset: cpu-small, qwen3b, qwen7b or llava7b.
    # Other side, in turns, with ratios: the same in Hugging Face transformers on torch ("hf"), or
    # with --lora whole steps of TRL's GRPOTrainer with peft beside ours ("trl").
    against: Literal["none", "hf", "trl"] = "none"
    rounds: int = 5  # Rollouts and updates by each side, after a first one of each.
    profile: bool = False  # Times of the parts of our rollout and update, too.
    # Adapters of rank 16 on the decoder beside whole weights: memory and times; --against hf then
    # runs peft.
    lora: bool = False
    # A judge on the run's own devices, of the policy's size, beside the update of the same step:
    # the packaged policy on scenes, in place of a preset.
    judge: bool = False
    json: bool = False  # One line of JSON instead of tables.

    def check(self) -> None:
        self._at_least(1, "rounds")
        plain = self.against == "none" and not (self.lora or self.profile)
        default = StepBenchFlags.__dataclass_fields__["preset"].default
        self._require(
            not self.judge or (plain and self.preset == default),
            "judge",
            "is a run of the packaged policy by itself",
            "leave out --preset, --against, --lora and --profile.",
        )
        self._require(
            self.against != "trl" or (self.lora and not self.profile),
            "against",
            "compares whole steps of adapters",
            "add --lora and leave --profile out.",
        )


@dataclass(frozen=True)
class TrainerBenchFlags(Settings):
    """Whole steps of `balcap train` beside those of TRL's own GRPOTrainer, in turns."""

    against: Literal["trl"] = "trl"  # The other trainer.
    model: str = "base"  # Policy of both: "base", or a folder of Qwen2.5-VL.
    data: str = "scenes"  # Images and prompts of both: what --data.path of `balcap train` takes.
    images: int = 8  # Images of a step.
    captions: int = 8  # Captions of an image.
    tokens: int = 112  # Most tokens of a caption.
    dtype: Literal["float32", "bfloat16"] = "float32"  # Type of the computation on both sides.
    # Values of a layer that our update keeps; with "attention" and "full" TRL checkpoints layers.
    remat: Literal["none", "dots", "attention", "sums", "full"] = "none"
    rounds: int = 5  # Steps by each side after a first one.
    memory: bool = True  # Peak memory, too: two more steps by each side, in processes of their own.
    json: bool = False  # One line of JSON instead of a few for people.

    def check(self) -> None:
        self._at_least(1, "images", "tokens", "rounds")
        self._at_least(2, "captions")


@dataclass(frozen=True)
class DeviceBenchFlags(Settings):
    """All that is worth measuring on an accelerator in ten minutes, as a table for the docs.

    Kernels of attention, decoding and update beside the limits of the device, a run, Hugging Face.
    """

    out: Path = Path("device_bench")  # Folder for device.json and device.md, written as it goes.
    # Presets of `balcap bench step`; none given: cpu-small on a CPU, else qwen3b.
    presets: tuple[str, ...] = ()
    # Parts in their order: "attention", "step", "run" (of balcap train), "hf" (Hugging Face).
    parts: tuple[Literal["attention", "step", "run", "hf"], ...] = (
        "attention", "step", "run", "hf",
    )  # fmt: skip
    rounds: int = 5  # Calls of what is timed, after a first one.
    steps: int = 20  # Steps of the run.
    minutes: float = 10.0  # Time for all; what does not fit is ended or not begun, and says so.

    def check(self) -> None:
        self._at_least(1, "rounds", "steps")
        self._positive("minutes")
        self._at_most(10**4, "minutes")
        self._require(len(self.parts) > 0, "parts", "is empty", "name one, or leave it out.")


@dataclass(frozen=True)
class ImagesBenchFlags(Settings):
    """Padding in batches of photos of which a share is large, and images a second of the host."""

    photos: Path  # Photos, as a .jsonl file of {"image", "caption"} rows.
    count: int = 4096  # Photos of an epoch; those of the file, again and again.
    phones: float = 0.1  # Share of them that is enlarged to 4032 x 3024 pixels; the others to 500.
    batch: int = 64  # Photos of a step.
    shards: int = 1  # Parts that the mesh splits a batch in.
    window: int = 32  # Batches that data.group_by_length sorts among; beside it stands 0.
    steps: int = 100  # Steps that are counted.
    side: int = 896  # Sides of the images that the host makes ready, in pixels.
    measured: int = 20  # Number of these; 0: none.
    json: bool = False  # One line of JSON instead of tables.

    def check(self) -> None:
        self._at_least(1, "count", "batch", "shards", "window", "steps")
        self._at_least(0, "measured")
        self._at_least(56, "side")
        self._require(0 <= self.phones <= 1, "phones", "must be a share from 0 to 1")
        self._require(
            self.batch % self.shards == 0, "batch", f"must be a multiple of shards={self.shards}"
        )


@dataclass(frozen=True)
class UpdateBenchFlags(Settings):
    """Times of updates of packed tokens beside padded ones, on captions of the default run."""

    steps: int = 100  # Steps of the run, each with an update by both sides in turns.
    json: bool = False  # One line of JSON instead of tables.

    def check(self) -> None:
        self._at_least(1, "steps")


def bench(arguments: list[str]) -> None:
    """`balcap bench ARGUMENTS`."""
    if arguments[:1] in ([], ["--help"], ["-h"]):
        print(_HELP)
        return
    if arguments[0] not in _BENCHMARKS:
        raise UserError(
            f"{arguments[0]!r} is not a benchmark, known are "
            f"{', '.join(_BENCHMARKS)}"
            f"{did_you_mean(arguments[0], _BENCHMARKS, '`balcap bench {}`')}"
        )
    from balcap_jax.runs.jax_setup import set_up_memory

    set_up_memory()  # as in a run
    _BENCHMARKS[arguments[0]](arguments[1:])


def _advantages(arguments: list[str]) -> None:
    flags = parse(AdvantageBenchFlags, arguments, "bench advantages")

    from balcap_jax.bench.advantages import run_and_print

    run_and_print(json=flags.json)


def _judge(arguments: list[str]) -> None:
    flags = parse(JudgeBenchFlags, arguments, "bench judge")

    from balcap_jax.bench.judge import run_and_print

    run_and_print(flags.data, json=flags.json)


def _load(arguments: list[str]) -> None:
    flags = parse(LoadBenchFlags, arguments, "bench load")
    if flags.make != "no":
        from balcap_jax.plan.workloads.random_folder import config_of, write_random_folder

        write_random_folder(flags.folder, config_of(flags.make))

    from balcap_jax.bench.load import run_and_print

    run_and_print(flags.folder, json=flags.json, rounds=flags.rounds)


def _step(arguments: list[str]) -> None:
    flags = parse(StepBenchFlags, arguments, "bench step")
    if flags.against != "none":  # the sides share a GPU: JAX must not take its memory at the start
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    if flags.judge:
        from balcap_jax.bench import step_judge

        step_judge.run_and_print(json=flags.json, rounds=flags.rounds)
        return
    against = None if flags.against == "none" else flags.against
    if against == "trl":
        from balcap_jax.bench import step_trl

        step_trl.run_and_print(flags.preset, json=flags.json, rounds=flags.rounds)
        return
    if flags.lora:
        from balcap_jax.bench import step_lora

        step_lora.run_and_print(flags.preset, against=against, json=flags.json, rounds=flags.rounds)
        return

    from balcap_jax.bench.step import run_and_print

    run_and_print(
        flags.preset,
        against=against,
        json=flags.json,
        rounds=flags.rounds,
        profile=flags.profile,
    )


def _trainer(arguments: list[str]) -> None:
    flags = parse(TrainerBenchFlags, arguments, "bench trainer")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as in `_step`

    from balcap_jax.bench.trainer import Sizes, run_and_print

    sizes = Sizes(
        model=flags.model,
        data=flags.data,
        images=flags.images,
        captions=flags.captions,
        tokens=flags.tokens,
        dtype=flags.dtype,
        remat=flags.remat,
        rounds=flags.rounds,
    )
    run_and_print(sizes, memory=flags.memory, json=flags.json)


def _device(arguments: list[str]) -> None:
    flags = parse(DeviceBenchFlags, arguments, "bench device")

    from balcap_jax.bench.device import Plan, run_and_print

    plan = Plan(
        flags.out,
        presets=flags.presets,
        parts=flags.parts,
        rounds=flags.rounds,
        steps=flags.steps,
        minutes=flags.minutes,
    )
    run_and_print(plan, arguments)


def _images(arguments: list[str]) -> None:
    flags = parse(ImagesBenchFlags, arguments, "bench images")

    from balcap_jax.bench.images import Sizes, run_and_print

    values = {name: value for name, value in vars(flags).items() if name != "json"}
    run_and_print(Sizes(**values), json=flags.json)


def _update(arguments: list[str]) -> None:
    flags = parse(UpdateBenchFlags, arguments, "bench update")

    from balcap_jax.bench.update import run_and_print

    run_and_print(steps=flags.steps, json=flags.json)


_BENCHMARKS = {
    "advantages": _advantages,
    "device": _device,
    "images": _images,
    "judge": _judge,
    "load": _load,
    "step": _step,
    "trainer": _trainer,
    "update": _update,
}

_HELP = """\
usage: balcap bench advantages [FLAGS]
       balcap bench device [FLAGS]
       balcap bench images PHOTOS [FLAGS]
       balcap bench judge DATA [FLAGS]
       balcap bench load FOLDER [FLAGS]
       balcap bench step [FLAGS]
       balcap bench trainer [FLAGS]
       balcap bench update [FLAGS]

  advantages  the advantage kernels against numpy and, where installed, TRL's torch code
  device      all that is worth measuring on an accelerator in ten minutes, as a table
  images      batches of photos of many sizes: what is padding; images a second of the host
  judge       the offline judge against people's labels, beside a bag of words
  load        seconds and peak memory of loading a folder, beside transformers
  step        rollout and update of a policy, beside transformers and the limits of the device
  trainer     whole steps of `balcap train` beside TRL's own trainer
  update      updates of packed tokens beside padded ones, on captions of the default run"""
