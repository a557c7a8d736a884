"""From what the compiler said to what a user asks: does it fit, how long does a step take.

Times are of the published peak rates of the chip: no program reaches them, so a real step takes
longer. What the chips wait for each other (latency) and the host's work are not in them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from balcap_jax.plan.chips import Chip


class Memory(NamedTuple):
    """Bytes of one device while a program runs.

    Attributes:
      parameters, optimizer: the training state, which stays.
      activations: what the backward pass finds kept of the layers; part of XLA's temporaries.
      temporary: the rest of them, with the program itself and results that are no inputs.
      inputs: the batch.
      reference: the parameters of a reference policy of its own, which stay as well.
      judge: those of a judge on the same devices.
      waiting: batches of later steps whose captions are with their judge.
    """

    parameters: float
    optimizer: float
    activations: float
    temporary: float
    inputs: float
    reference: float = 0.0
    judge: float = 0.0
    waiting: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)


def memory_of(result: Mapping[str, Any]) -> Memory:
    """Of one program; all of the state and of the batch is there whether or not it reads them."""
    state = (result["parameters"], result["optimizer"])
    resident = (result["reference"], result["judge"], result["waiting"])
    if "needs" in result:  # refused: only the sum is known, and it has no state that is not read
        read = result["parameters"] + (result["optimizer"] if result["program"] == "update" else 0)
        return Memory(*state, 0.0, max(result["needs"] - read, 0.0), result["batch"], *resident)
    temporary = result["temporary"] + result["code"] + result["results"]
    activations = min(result["activations"], result["temporary"])
    return Memory(*state, activations, temporary - activations, result["batch"], *resident)


class Seconds(NamedTuple):
    """Of one program, at the chip's peak rates.

    Attributes:
      compute: flops, or bytes of memory where those take longer, phase by phase.
      wires: the collectives, over one axis of the torus.
    """

    compute: float
    wires: float

    @property
    def overlapped(self) -> float:
        """If all communication hides behind computation, or the other way round."""
        return max(self)

    @property
    def serial(self) -> float:
        """If none does."""
        return sum(self)


def seconds_of(result: Mapping[str, Any], chip: Chip, *, devices_per_chip: int = 1) -> Seconds:
    """Of a program that was compiled."""
    share = 1 / devices_per_chip
    compute = sum(
        max(flops / (chip.flops * share), moved / (chip.bandwidth * share))
        for flops, moved in result["phases"]
    )
    wires = sum(c["wire_bytes"] for c in result["collectives"]) / (chip.wire_of_axis * share)
    return Seconds(compute, wires)


class Step(NamedTuple):
    """Of a whole training step: images encoded, captions sampled, the policy updated; what comes
    between steps, such as evaluation, is not in it.

    Attributes:
      overlapped, serial: see `Seconds`, the sum over the programs.
      mfu: the model's own flops by what the chip could have done in `serial` seconds.
      update_mfu: the same of the update alone.
    """

    overlapped: float
    serial: float
    mfu: float
    update_mfu: float


def step_of(
    results: Mapping[str, Mapping[str, Any]],
    chip: Chip,
    *,
    updates: int = 1,
    devices_per_chip: int = 1,
) -> Step:
    """From the results of all programs.

    Args:
      updates: of one rollout.
    """
    times = {name: updates if name == "update" else 1 for name in results if name != "evaluation"}
    seconds = {
        name: seconds_of(result, chip, devices_per_chip=devices_per_chip)
        for name, result in results.items()
    }
    serial = sum(times[name] * seconds[name].serial for name in times)
    useful = sum(times[name] * results[name]["model_flops"] for name in times)
    peak = chip.flops / devices_per_chip
    update = results["update"]["model_flops"] / (seconds["update"].serial * peak)
    return Step(
        overlapped=sum(times[name] * seconds[name].overlapped for name in times),
        serial=serial,
        mfu=useful / (serial * peak),
        update_mfu=update,
    )


def wire_bytes_by_kind(collectives: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """Kind -> (how many run, bytes that a device sends in them), the most bytes first."""
    runs: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for collective in collectives:
        runs[collective["kind"]] += collective["times"]
        sent[collective["kind"]] += collective["wire_bytes"]
    return {kind: (runs[kind], size) for kind, size in sent.most_common()}


def advice(
    program: str, settings: Mapping[str, Any], *, mesh: Mapping[str, int], kv_heads: int
) -> str:
    """Which setting to change where `program` does not fit, the cheapest first.

    Args:
      settings: the TrainConfig as `to_dict` gives it.
      mesh: its sizes, none of them -1.
    """
    shards = mesh["data"] * mesh["fsdp"]
    prompts, parts = settings["prompts_per_step"], settings["rl"]["micro_batches"]
    if program == "evaluation":
        return f"set --evaluation.batch-size {max(1, settings['evaluation']['batch_size'] // 2)}"
    if program == "update" and settings["model"]["remat"] != "full":
        return "set --model.remat full"
    if program in ("update", "reference", "start") and prompts % (2 * parts * shards) == 0:
        return f"set --rl.micro-batches {2 * parts}"
    if mesh["data"] > 1:
        return f"set --mesh.data 1 --mesh.fsdp {shards}"
    if mesh["fsdp"] % 2 == 0 and 2 * mesh["tensor"] <= kv_heads:
        return f"set --mesh.tensor {2 * mesh['tensor']} --mesh.fsdp {mesh['fsdp'] // 2}"
    if prompts % (2 * parts * shards) == 0:
        return f"set --prompts-per-step {prompts // 2}"
    return "take a larger slice, or lower --rollout.max-new-tokens"
