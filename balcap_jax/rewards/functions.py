"""The offline judge as reward functions that TRL and verl call.

TRL calls `function(prompts=..., completions=..., **columns)` with a list per argument, an entry per
completion, and takes None for "no signal". verl calls `compute_score` once per completion.

References come from the first of the columns `references`, `captions` (lists of texts),
`reference`, `caption` (one text) that a row has; labels of known objects from `boxes`, a list of
texts, of {"label": ...} or of [label, left, top, right, bottom].
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

from balcap_jax.config.sections import REWARDS
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.lexical.judge import judge, photo

_COLUMNS = ("references", "captions", "reference", "caption")


def lexical_precision(prompts: Sequence, completions: Sequence, **columns: Any) -> list:
    """Precision in [0, 1] per completion; None without references. TRL's signature."""
    return [found["precision"] for found in _rewards(completions, columns)]


def lexical_recall(prompts: Sequence, completions: Sequence, **columns: Any) -> list:
    """Recall in [0, 1] per completion; None without references. TRL's signature."""
    return [found["recall"] for found in _rewards(completions, columns)]


def lexical_linguistic(prompts: Sequence, completions: Sequence, **columns: Any) -> list:
    """Linguistic quality in [0, 1] per completion; None without references. TRL's signature."""
    return [found["linguistic"] for found in _rewards(completions, columns)]


def lexical_reward(prompts: Sequence, completions: Sequence, **columns: Any) -> list:
    """b-CapScore in [0, 1], the harmonic mean of the three, per completion. TRL's signature.

    The three as functions of their own, normalised apart (`multi_objective_aggregation` in TRL's
    GRPO settings), tell captions apart that have the same mean.
    """
    return [found["b_capscore"] for found in _rewards(completions, columns)]


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None
) -> dict[str, float]:
    """verl's signature: `score` is b-CapScore in [0, 1], beside it the three rewards.

    Args:
      data_source: not read.
      solution_str: the caption.
      ground_truth: a reference or a list of references.
      extra_info: may hold `boxes`.

    Returns:
      NaN where there is no signal, which verl has no other word for; leave such rows out.
    """
    boxes = (extra_info or {}).get("boxes") or ()
    found = _scores(solution_str, _texts(ground_truth), boxes)
    values = {name: math.nan if value is None else value for name, value in found.items()}
    return {"score": values["b_capscore"], **{name: values[name] for name in REWARDS}}


def verdict_reward_of(function: Any) -> str | None:
    """The reward of the offline judge that `function` stands for, None for any other function.

    A trainer of this package asks the judge once for all three, and knows their names.
    """
    return _VERDICT_REWARDS.get(function) if inspect.isfunction(function) else None


_VERDICT_REWARDS = dict(
    zip((lexical_precision, lexical_recall, lexical_linguistic), REWARDS, strict=True)
)


def _rewards(completions: Sequence, columns: dict[str, Any]) -> list[dict[str, float | None]]:
    boxes = columns.get("boxes") or [()] * len(completions)
    rows = []
    for i, completion in enumerate(completions):
        given = [columns[name][i] for name in _COLUMNS if columns.get(name) is not None]
        references = next((texts for texts in map(_texts, given) if texts), ())
        rows.append(_scores(_text(completion), references, boxes[i] or ()))
    return rows


def _scores(caption: str, references: tuple[str, ...], boxes: Sequence) -> dict[str, float | None]:
    if not references:
        return dict.fromkeys((*REWARDS, "b_capscore"))
    labels = tuple(_label(box) for box in boxes)
    rewards = rewards_of([judge(caption, photo(references, labels))], REWARDS)[0]
    found = {name: float(value) for name, value in zip(REWARDS, rewards, strict=True)}
    found["b_capscore"] = float(harmonic_mean(rewards))
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def _text(completion: Any) -> str:
    """A completion as text: TRL gives chat messages for chat prompts."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else list(value or ())
    return tuple(text for text in texts if isinstance(text, str) and text.strip())


def _label(box: Any) -> str:
    if isinstance(box, str):
        return box
    return str(box["label"] if isinstance(box, dict) else box[0])
