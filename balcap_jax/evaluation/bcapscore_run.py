"""b-CapScore of captions by the judges of training: lexical, scene, a model that is asked, or one
on the devices.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import REWARDS, DataConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.photos import Photos
from balcap_jax.data.sources import open_rows
from balcap_jax.errors import UserError
from balcap_jax.reporting.rows import assertion_row
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.judges import fit_judge, make_judge, resolve_kind
from balcap_jax.rewards.llm.accounting import listing
from balcap_jax.rewards.verdicts import FittedJudge, MeteredJudge, Verdict
from balcap_jax.runs.progress import training_progress

_BATCH = 64  # captions at once, times the calls of a judge that is asked


def open_examples(path: Path) -> Photos:
    """The images of a data file, by their ids.

    Raises:
      UserError: it cannot be read, or an image cannot.
    """
    rows = open_rows(DataConfig(path=str(path)), path, split="train")
    return Photos(rows, name=str(path), max_bad_images=0)


def judge_captions(
    judge_config: JudgeConfig, captions: Mapping[str, str], examples: Photos, *, data: Path
) -> tuple[list[dict[str, Any]], str, dict[str, float]]:
    """(an item of each caption, the judge in words, what was spent).

    Raises:
      UserError: see `make_judge`; the judge tells too few true statements from false ones, or has
        no verdict for too many captions.
    """
    config = resolve_kind(judge_config, examples[0])
    judge = make_judge(config, data=data, example=examples[0])
    named = _name_of(config)
    places = [i for i in range(len(examples)) if examples.row(i).id in captions]
    items: list[dict[str, Any]] = []
    try:
        if isinstance(judge, FittedJudge):
            fit_judge(judge, examples)
        with training_progress("bcapscore", len(places)) as advance:
            for start in range(0, len(places), _BATCH):
                batch = [examples[place] for place in places[start : start + _BATCH]]
                texts = [captions[example.id] for example in batch]
                verdicts = judge(batch, texts)
                why = judge.last_failures if isinstance(judge, MeteredJudge) else ""
                for example, text, verdict in zip(batch, texts, verdicts, strict=True):
                    units = () if verdict is None else judge.reference_units(example)
                    items.append(_item(example, text, verdict, units, why))
                advance(len(items), "")
        spent = judge.lap() if isinstance(judge, MeteredJudge) else {}
    finally:
        if isinstance(judge, MeteredJudge):
            judge.close()
    _check_failures(items, config)
    return items, named, spent


def _check_failures(items: Sequence[Mapping[str, Any]], judge: JudgeConfig) -> None:
    reasons = Counter(item["failed"] for item in items if item["failed"] is not None)
    if reasons.total() > judge.max_failure_share * len(items):
        raise UserError(
            f"{reasons.total()} of {len(items)} captions have no verdict of judge.kind="
            f"{judge.kind!r} ({listing(reasons)}), more than the share judge.max_failure_share="
            f"{judge.max_failure_share} that a result may lack; give data that this judge knows "
            "(scene needs scenes, lexical references), fix its server, or set another --judge.kind."
        )


def _name_of(judge: JudgeConfig) -> str:
    """As titles have it."""
    if judge.kind == "model":
        return f"{Path(judge.model).name} on the devices"
    return judge.model if judge.kind == "llm" else judge.kind


def _item(
    example: Example, caption: str, verdict: Verdict | None, units: Sequence[str], why: str
) -> dict[str, Any]:
    base = {"id": example.id, "caption": caption, "reference": example.reference}
    if verdict is None:
        reason = why or "no verdict"
        return {**base, **dict.fromkeys(REWARDS), "failed": reason, "assertions": [], "units": []}
    rewards = rewards_of([verdict], REWARDS)[0].astype(np.float64)
    return {
        **base,
        **{
            name: None if np.isnan(value) else float(value)
            for name, value in zip(REWARDS, rewards, strict=True)
        },
        "failed": None,
        "assertions": [assertion_row(assertion) for assertion in verdict.assertions],
        "units": [
            {"text": text, "covered": covered}
            for text, covered in zip(units, verdict.covered, strict=True)
        ],
    }


def counts(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Captions without a verdict, and those that lack a reward."""
    failed = sum(item["failed"] is not None for item in items)
    lacking = sum(any(item[name] is None for name in REWARDS) for item in items)
    return {"failed": failed, "no_signal": lacking - failed}
