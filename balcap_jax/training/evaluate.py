"""Held-out evaluation: one caption per image, judged, summed up and written down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from balcap_jax.config.sections import REWARDS
from balcap_jax.data.examples import Example
from balcap_jax.parallel.processes import gather_list
from balcap_jax.reporting.report import evaluation_summary
from balcap_jax.reporting.rows import caption_row
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.verdicts import Judge, Verdict
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.runs.folder import disk_errors, write_jsonl_atomic

PICTURES = 24  # held-out images that the gallery shows
PICTURE_SIDE = 480  # pixels at most: twice what a page shows, since photos have ten times that


def evaluate(
    captioner: Captioner,
    params: dict,
    judge: Judge,
    examples: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Any], list[dict]]:
    """(summary, a row per example) of one caption per held-out image.

    The same seed draws with the same keys whatever the parameters, so before and after differ by
    the policy alone.
    """
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)  # no training step has this number
    size = min(batch_size, len(examples))
    own = list(captioner.local_captions(params, examples, key, batch_size=size))
    places = [place for place, _ in own]
    rows = caption_rows(
        judge, [examples[i] for i in places], [group[0] for _, group in own], places=places
    )
    # Each host judges its own captions; in the order of the examples they are the whole again.
    rows = [row for _, row in sorted(gather_list(list(zip(places, rows, strict=True))), key=_place)]
    return summary_of(rows), rows


def caption_rows(
    judge: Judge,
    examples: Sequence[Example],
    captions: Sequence[str],
    *,
    places: Sequence[int],
) -> list[dict]:
    """A row per caption.

    Args:
      places: of the captions in the evaluation; the first ones have pictures.
    """
    if not captions:  # a host without a share of a small evaluation
        return []
    verdicts: list[Verdict | None] = judge(examples, captions)
    rewards = rewards_of(verdicts, REWARDS)
    words = np.array([len(caption.split()) for caption in captions])
    rhos = words / np.array([max(len(e.reference.split()), 1) for e in examples])
    return [
        caption_row(
            id=example.id,
            caption=caption,
            reference=example.reference,
            references=example.references,
            rewards=dict(zip(REWARDS, rewards[i], strict=True)),
            verdict=verdicts[i],
            units=judge.reference_units(example) if verdicts[i] is not None else (),
            rho=rhos[i],
            image=f"evaluation/images/{place:03d}.png" if place < PICTURES else None,
        )
        for i, (place, example, caption) in enumerate(zip(places, examples, captions, strict=True))
    ]


def summary_of(rows: Sequence[dict]) -> dict[str, Any]:
    """The table's numbers of rows of `caption_rows`."""
    rewards = [[row["rewards"][name] for name in REWARDS] for row in rows]
    rewards = np.array(rewards, np.float32).reshape(-1, len(REWARDS))
    words = np.array([row["words"] for row in rows])
    return evaluation_summary(rewards, words, np.array([row["rho"] for row in rows]), names=REWARDS)


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
                picture.save(run / row["image"])
    write_jsonl_atomic(run / "evaluation" / f"{when}.jsonl", rows)
