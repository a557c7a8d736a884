"""The numbers of a step: of its rewards and of the lengths of its captions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from balcap_jax.config.sections import REWARDS
from balcap_jax.rewards.capscore import b_capscore
from balcap_jax.runs.logs import RHO_EDGES


def score_of(scores: Mapping[str, float], names: Sequence[str]) -> float | None:
    """One number of an evaluation, to choose the best checkpoint by: b-CapScore where its three
    rewards exist, else the mean of the mean rewards. None where the judge gave no signal.

    Args:
      scores: `heldout/...`, see `evaluation_summary`.
      names: of the rewards that are trained on.
    """
    score = scores.get("heldout/b_capscore")
    if score is None:
        means = [scores[f"heldout/{name}"] / (100 if name in REWARDS else 1) for name in names]
        score = float(np.mean(means))
    return float(score) if np.isfinite(score) else None


def step_scores(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The rewards of a step in a few words: b-CapScore, and what is not a part of it."""
    means = {name: row[f"reward/{name}/mean"] for name in names}
    score = b_capscore(means)
    parts = [] if score is None else [f"b-CapScore {0.0 if np.isnan(score) else score:.1f}"]
    rest = [name for name in names if score is None or name not in REWARDS]
    return ", ".join([*parts, *(f"{name} {means[name]:.3g}" for name in rest)])


def reward_metrics(
    names: Sequence[str],
    judged: Float[np.ndarray, "b g k"],
    before_mask: Float[np.ndarray, "b g k"],
    after_mask: Float[np.ndarray, "b g k"],
) -> dict[str, float]:
    """Per reward `name`, under `reward/<name>/`:

    `mean`, `std` over the captions with a signal, as judged; `constant_groups`, the
    share of groups with a signal whose rewards after the mask are all the same, so that they teach
    nothing; `masked`, the share of captions with a signal whose reward the mask changed;
    `no_signal`, the share of captions the judge gave none.

    A share or mean of nothing is NaN.

    Args:
      judged: by judge and functions; NaN = no signal.
      before_mask: as a study changes them; the same without one.
      after_mask: what advantages are made of.
    """
    row = {}
    for k, name in enumerate(names):
        raw, shown, kept = judged[..., k], before_mask[..., k], after_mask[..., k]
        signal = ~np.isnan(raw)
        row |= {
            f"reward/{name}/mean": _mean(raw[signal]),
            f"reward/{name}/std": _std(raw[signal]),
            f"reward/{name}/constant_groups": _constant_groups(kept),
            # NaN != x, so a reward that the mask dropped counts as changed.
            f"reward/{name}/masked": _mean((shown != kept)[signal]),
            f"reward/{name}/no_signal": _mean(~signal),
        }
    return row


def length_metrics(
    lengths: Num[np.ndarray, "b g"],
    reference_lengths: Num[np.ndarray, " b"],
    words: Num[np.ndarray, "b g"],
    truncated: Bool[np.ndarray, "b g"],
) -> dict[str, Any]:
    """Lengths of the sampled captions: `rho/mean`, `rho/std`, `rho/hist`, `words`, `truncated`.

    rho = length / reference length, in the unit of the mask; as there, a reference of length 0
    counts as 1. `rho/hist` counts the captions up to each of `RHO_EDGES`, and above the last.
    `truncated` is the share that hit the token limit.
    """
    rho = (lengths / np.maximum(reference_lengths, 1)[:, None]).reshape(-1)
    return {
        "rho/mean": _mean(rho),
        "rho/std": _std(rho),
        "rho/hist": rho_histogram(rho),
        "words": _mean(words),
        "truncated": _mean(truncated),
    }


def rho_histogram(rho: Num[np.ndarray, " n"]) -> list[int]:
    """Counts per bin `(lower, upper]` of `RHO_EDGES`, the last bin open; sums to n."""
    bins = np.searchsorted(np.asarray(RHO_EDGES), rho, side="left")
    return np.bincount(bins, minlength=len(RHO_EDGES) + 1).tolist()


def _mean(values: Num[np.ndarray, "..."] | Bool[np.ndarray, "..."]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else np.nan


def _std(values: Num[np.ndarray, "..."]) -> float:
    return float(values.std(dtype=np.float64)) if values.size else np.nan


def _constant_groups(rewards: Float[np.ndarray, "b g"]) -> float:
    signal = ~np.isnan(rewards)
    highest = np.where(signal, rewards, -np.inf).max(axis=1)
    lowest = np.where(signal, rewards, np.inf).min(axis=1)
    return _mean((highest == lowest)[signal.any(axis=1)])
