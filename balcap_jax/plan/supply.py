"""What hosts, judge and bucket must supply so that a slice never waits for them.

A step is at the chips' peak rates, so a real one takes longer and asks for less of all of these.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from balcap_jax.config.commands import TrainConfig

CHIPS_PER_HOST = 4  # of the machine types that slices of several hosts are made of
EPOCH = 90_000  # images

# Measured or assumed, to be replaced by what is at hand; docs/scale.md says where each is from.
IMAGES_PER_THREAD = 22.0  # a second, opened and cut to patches
CALL_SECONDS = 4.0  # of a judge that sees the image
CALLS_PER_CAPTION = {"joint": 1, "separate": 3}
PROMPT_TOKENS, ANSWER_TOKENS = 2409, 630  # per caption, its share of the image's units included
HOST_BYTES_PER_SECOND = 1e9  # to the bucket


class Need(NamedTuple):
    """One thing that a run of this step needs.

    Attributes:
      what: in words, with its unit.
      needed: how much.
      has: how much the settings give; None where no setting decides.
      change: the setting that gives more.
    """

    what: str
    needed: float
    has: float | None
    change: str

    @property
    def share(self) -> float:
        """Of what there is; above 1 the devices wait."""
        return 0.0 if self.has is None else self.needed / self.has


def hosts_of(chips: int) -> int:
    return -(-chips // CHIPS_PER_HOST)


def needs_of(config: TrainConfig, answer: Mapping[str, Any]) -> list[Need]:
    """What a step of `plan`'s answer, which has a "step", needs each second.

    Args:
      answer: of `plan`.
    """
    hosts, seconds = hosts_of(answer["chips"]), answer["step"]["serial"]
    ahead = config.rollout.overlap_steps > 0
    images = answer["prompts_per_step"] / seconds / hosts
    needs = [
        Need(
            "images ready, per host and second",
            images,
            config.data.workers * IMAGES_PER_THREAD,
            "data.workers",
        )
    ]
    if config.judge.kind == "llm":
        captions = answer["prompts_per_step"] * answer["group_size"] / seconds
        calls = captions * CALLS_PER_CAPTION[config.judge.calls]
        under_way = Need(
            f"judge calls under way per host, at {CALL_SECONDS:g} s each",
            calls * CALL_SECONDS / hosts,
            config.judge.concurrency,
            "judge.concurrency",
        )
        if not ahead:  # the chips wait for all calls of a step, however many are under way
            under_way = Need(
                f"seconds of a step that chips wait for the judge, at {CALL_SECONDS:g} s a call",
                max(under_way.share * seconds, CALL_SECONDS),
                seconds,
                "rollout.overlap_steps",
            )
        needs += [
            under_way,
            Need("judge calls a second, all hosts", calls, None, "judge.kind, or more servers"),
            Need(
                "tokens that judges write a second",
                captions * ANSWER_TOKENS,
                None,
                "judge.kind, or more servers",
            ),
            Need("tokens that judges read a second", captions * PROMPT_TOKENS, None, ""),
        ]
    state = _state_bytes(answer)
    shards = answer["mesh"]["fsdp"] * answer["mesh"]["tensor"]
    writers = min(hosts, max(shards // (CHIPS_PER_HOST * answer["devices_per_chip"]), 1))
    return [
        *needs,
        Need(
            f"bytes to the bucket per host and second, {state / 1e9:.0f} GB every "
            f"{config.checkpoint.every} steps from {writers} hosts",
            state / writers / (config.checkpoint.every * seconds),
            HOST_BYTES_PER_SECOND,
            "checkpoint.every, checkpoint.parameters_every",
        ),
    ]


def _state_bytes(answer: Mapping[str, Any]) -> float:
    """Of parameters and moments, each once, whatever the number of copies."""
    held = answer["programs"]["update"]["bytes"]
    shards = answer["mesh"]["fsdp"] * answer["mesh"]["tensor"]
    return (held["parameters"] + held["optimizer"]) * shards


def supply_of(config: TrainConfig, answer: Mapping[str, Any]) -> dict[str, Any]:
    """`needs_of` for JSON, with what an epoch costs and what the devices would wait for first."""
    needs = needs_of(config, answer)
    hours = EPOCH / answer["prompts_per_step"] * answer["step"]["serial"] / 3600
    first = max(needs, key=lambda need: need.share)
    return {
        "hosts": hosts_of(answer["chips"]),
        "epoch_images": EPOCH,
        "epoch_hours": hours,
        "epoch_chip_hours": hours * answer["chips"],
        "needs": [need._asdict() | {"share": need.share} for need in needs],
        "first": first.what,
        "change": first.change,
    }
