"""Held-out evaluation: one caption per image, judged, summed up and written down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from balcap_jax.config.sections import REWARDS
from balcap_jax.data.examples import Example
from balcap_jax.parallel.processes import any_process, gather_list
from balcap_jax.reporting.report import evaluation_summary
from balcap_jax.reporting.rows import caption_row
from balcap_jax.rewards.callables import Completions, TrainerState
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.runs.folder import disk_errors, write_jsonl_atomic
from balcap_jax.storage.local import written_locally
from balcap_jax.training.interrupts import Stopped
from balcap_jax.training.judge_queue import JudgeQueue

PICTURES = 24  # held-out images that the gallery shows
PICTURE_SIDE = 480  # pixels at most: twice what a page shows, since photos have ten times that


def evaluate(
    captioner: Captioner,
    params: dict,
    judge: JudgeQueue,
    examples: Sequence[Example],
    state: TrainerState,
    *,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Any], list[dict]]:
    """(summary, a row per example) of one caption per held-out image.

    The same seed draws with the same keys whatever the parameters, so before and after differ by
    the policy alone. All rewards of the judge are given, also those that are not trained on.

    Raises:
      RewardFunctionError: see `RewardFunctions`.
      Stopped: on all processes, where one has been interrupted.
    """
    key = evaluation_key(seed)
    size = min(batch_size, len(examples))
    order = captioner.processor.shortest_first(examples)

    def look() -> None:  # many held-out images take longer than a preemption leaves time
        if any_process(judge.stopped):
            raise Stopped

    own = list(
        captioner.local_captions(params, examples, key, batch_size=size, order=order, look=look)
    )
    places = [place for place, _ in own]
    completions = Completions(
        examples=[examples[place] for place in places],
        captions=[group[0].text for _, group in own],
        ids=[group[0].ids for _, group in own],
    )
    try:
        rows = caption_rows(judge, completions, state, places=places)
        told: list = list(zip(places, rows, strict=True))
    except Stopped:
        told = [None]
    # Each host judges its own captions; in the order of the examples they are the whole again.
    told = gather_list(told)
    if None in told:
        raise Stopped
    rows = [row for _, row in sorted(told, key=_place)]
    return summary_of(rows, names=reward_names(judge)), rows


def evaluation_key(seed: int) -> Key[Array, ""]:
    """The key that all evaluations of a run draw with."""
    return jax.random.fold_in(jax.random.key(seed), 2**31 - 1)  # no training step has this number


def reward_names(judge: JudgeQueue) -> tuple[str, ...]:
    """Names of the rewards of held-out captions."""
    return (*(REWARDS if judge.judges else ()), *judge.other_names)


def caption_rows(
    judge: JudgeQueue, completions: Completions, state: TrainerState, *, places: Sequence[int]
) -> list[dict]:
    """A row per caption.

    Args:
      places: of the captions in the evaluation; the first ones have pictures.
    """
    answered = judge.score(completions, state)
    by_judge = rewards_of(answered.verdicts, REWARDS if judge.judges else ())
    rewards = np.concatenate([by_judge, answered.others.rewards], axis=1)
    names = reward_names(judge)
    examples, captions = completions.examples, completions.captions
    return [
        caption_row(
            id=example.id,
            caption=caption,
            reference=example.reference,
            references=example.references,
            rewards=dict(zip(names, rewards[i], strict=True)),
            verdict=verdict,
            units=judge.reference_units(example) if verdict is not None else (),
            rho=len(caption.split()) / max(len(example.reference.split()), 1),
            image=f"evaluation/images/{place:03d}.png" if place < PICTURES else None,
            extra={name: column[i] for name, column in answered.others.extra.items()},
        )
        for i, (place, example, caption, verdict) in enumerate(
            zip(places, examples, captions, answered.verdicts, strict=True)
        )
    ]


def summary_of(rows: Sequence[dict], *, names: Sequence[str]) -> dict[str, Any]:
    """The table's numbers of rows of `caption_rows`."""
    rewards = [[row["rewards"][name] for name in names] for row in rows]
    rewards = np.array(rewards, np.float32).reshape(-1, len(names))
    words = np.array([row["words"] for row in rows])
    return evaluation_summary(rewards, words, np.array([row["rho"] for row in rows]), names=names)


def _place(numbered: Sequence) -> int:
    return numbered[0]


def write_evaluation(
    run: Path, when: str, rows: Sequence[dict], examples: Sequence[Example]
) -> None:
    """Writes `evaluation/<when>.jsonl` and the pictures that its rows name.

    Raises:
      UserError: the disk is full.
    """
    folder = run / "evaluation" / "images"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for row, example in zip(rows, examples, strict=True):
            if row["image"] is not None and not (run / row["image"]).exists():
                picture = example.image.copy()
                picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
                with written_locally(run / row["image"]) as file:
                    picture.save(file)
    write_jsonl_atomic(run / "evaluation" / f"{when}.jsonl", rows)
