"""The offline judge as reward functions that TRL and verl call.

TRL calls `function(prompts=..., completions=..., **columns)` with a list per argument, an entry per
completion, and takes None for "no signal". verl calls `compute_score` once per completion, or
`compute_scores` once per batch.

References come from the first of the columns `references`, `captions`, `reference`, `caption` that
a row has, each a text or a list of texts; labels of known objects from `boxes`, a list of texts, of
{"label": ...} or of [label, left, top, right, bottom]. What is none of these is refused: a mistake
in the columns must not look like a bad caption.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from balcap_jax.config.sections import REWARDS
from balcap_jax.errors import UserError
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.function_inputs import (
    decoded,
    labels_of,
    listed,
    plain,
    rows_of,
    shown,
    text_of,
    texts_of,
    truth_of,
)
from balcap_jax.rewards.lexical.judge import judge, photo


def lexical_precision(
    prompts: Sequence | None = None, completions: Sequence = (), **columns: Any
) -> list:
    """Precision in [0, 1] per completion; None without references. TRL's signature."""
    return [found["precision"] for found in _rewards(completions, columns)]


def lexical_recall(
    prompts: Sequence | None = None, completions: Sequence = (), **columns: Any
) -> list:
    """Recall in [0, 1] per completion; None without references. TRL's signature."""
    return [found["recall"] for found in _rewards(completions, columns)]


def lexical_linguistic(
    prompts: Sequence | None = None, completions: Sequence = (), **columns: Any
) -> list:
    """Linguistic quality in [0, 1] per completion; None without references. TRL's signature."""
    return [found["linguistic"] for found in _rewards(completions, columns)]


def lexical_reward(
    prompts: Sequence | None = None, completions: Sequence = (), **columns: Any
) -> list:
    """b-CapScore in [0, 1], the harmonic mean of the three, per completion. TRL's signature.

    The three as functions of their own, normalised apart (`multi_objective_aggregation` in TRL's
    GRPO settings), tell captions apart that have the same mean.
    """
    return [found["b_capscore"] for found in _rewards(completions, columns)]


def compute_score(
    data_source: Any = None,
    solution_str: str | None = None,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """verl's signature: `score` is b-CapScore in [0, 1], beside it the three rewards.

    Args:
      data_source: not read.
      solution_str: the caption.
      ground_truth: a reference, a list or an array of references, or a dictionary that has them as
        "target" (or "references", "captions", "answer" and the like).
      extra_info: may hold `boxes`.
      kwargs: what else verl passes (`reward_router_address`, `reward_model_tokenizer` and the
        `reward_kwargs` of its settings); not read.

    Returns:
      NaN where there is no signal, which verl has no other word for; leave such rows out.

    Raises:
      UserError: the caption is no text, or ground truth or boxes are in no known form.
    """
    del data_source, kwargs
    extra = decoded(plain(extra_info))
    if extra is not None and not isinstance(extra, Mapping):
        raise UserError(
            f"extra_info is {shown(extra)}, which must be a dictionary such as "
            '{"boxes": ["dog"]}; give one or None.'
        )
    found = _scores(
        text_of(solution_str, where="solution_str"),
        texts_of(truth_of(ground_truth), where="ground_truth"),
        labels_of((extra or {}).get("boxes"), where='extra_info["boxes"]'),
    )
    values = {name: math.nan if value is None else value for name, value in found.items()}
    return {"score": values["b_capscore"], **{name: values[name] for name in REWARDS}}


def compute_scores(
    data_sources: Sequence | None = None,
    solution_strs: Sequence[str] = (),
    ground_truths: Sequence = (),
    extra_infos: Sequence | None = None,
    **kwargs: Any,
) -> list[dict[str, float]]:
    """`compute_score` of a batch, as verl's `BatchRewardManager` calls it.

    Raises:
      UserError: as `compute_score`, or the arguments have not one length.
    """
    del data_sources, kwargs
    solution_strs = listed(solution_strs, "solution_strs")
    ground_truths = listed(ground_truths, "ground_truths")
    infos = [None] * len(solution_strs)
    infos = infos if extra_infos is None else listed(extra_infos, "extra_infos")
    sizes = {len(solution_strs), len(ground_truths), len(infos)}
    if len(sizes) > 1:
        raise UserError(
            f"solution_strs, ground_truths and extra_infos have {len(solution_strs)}, "
            f"{len(ground_truths)} and {len(infos)} entries, which must be one each; give one per "
            "completion."
        )
    return [
        compute_score(None, solution, truth, info)
        for solution, truth, info in zip(solution_strs, ground_truths, infos, strict=True)
    ]


def verdict_reward_of(function: Any) -> str | None:
    """The reward of the offline judge that `function` stands for, None for any other function.

    A trainer of this package asks the judge once for all three, and knows their names.
    """
    return _VERDICT_REWARDS.get(function) if inspect.isfunction(function) else None


_VERDICT_REWARDS = dict(
    zip((lexical_precision, lexical_recall, lexical_linguistic), REWARDS, strict=True)
)


def _rewards(completions: Sequence, columns: Mapping[str, Any]) -> list[dict[str, float | None]]:
    return [_scores(*row) for row in rows_of(completions, columns)]


def _scores(
    caption: str | None, references: tuple[str, ...], labels: tuple[str, ...]
) -> dict[str, float | None]:
    if not references or caption is None:
        return dict.fromkeys((*REWARDS, "b_capscore"))
    rewards = rewards_of([judge(caption, photo(references, labels))], REWARDS)[0]
    found = {name: float(value) for name, value in zip(REWARDS, rewards, strict=True)}
    found["b_capscore"] = float(harmonic_mean(rewards))
    return {name: None if math.isnan(value) else value for name, value in found.items()}
