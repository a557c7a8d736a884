"""Held-out evaluation: one caption per image, judged, summed up and written down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from balcap_jax.config import REWARDS
from balcap_jax.data.examples import Example
from balcap_jax.metrics import caption_row
from balcap_jax.report import evaluation_summary
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.verdicts import Judge, Verdict
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.runs import disk_errors, write_jsonl_atomic

PICTURES = 24  # held-out images that the gallery shows


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
    groups = captioner.captions(params, examples, key, batch_size=size)
    return score_captions(judge, examples, [group[0] for group in groups])


def score_captions(
    judge: Judge, examples: Sequence[Example], captions: Sequence[str]
) -> tuple[dict[str, Any], list[dict]]:
    """(summary, a row per caption): all three rewards, the linguistic one unmasked."""
    verdicts: list[Verdict | None] = judge(examples, captions)
    rewards = rewards_of(verdicts, REWARDS)
    words = np.array([len(caption.split()) for caption in captions])
    rhos = words / np.array([max(len(e.reference.split()), 1) for e in examples])
    rows = [
        caption_row(
            id=example.id,
            caption=caption,
            reference=example.reference,
            rewards=dict(zip(REWARDS, rewards[i], strict=True)),
            verdict=verdicts[i],
            units=judge.reference_units(example) if verdicts[i] is not None else (),
            rho=rhos[i],
            image=f"evaluation/images/{i:03d}.png" if i < PICTURES else None,
        )
        for i, (example, caption) in enumerate(zip(examples, captions, strict=True))
    ]
    return evaluation_summary(rewards, words, rhos), rows


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
                example.image.save(run / row["image"])
    write_jsonl_atomic(run / "evaluation" / f"{when}.jsonl", rows)
