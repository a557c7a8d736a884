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
from contextlib import suppress
from typing import Any

import numpy as np

from balcap_jax.config.sections import REWARDS
from balcap_jax.errors import UserError
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.lexical.judge import judge, photo
from balcap_jax.runs import safe_json

_COLUMNS = ("references", "captions", "reference", "caption")
# Where a ground truth of verl has its references.
_TRUTHS = ("target", "targets", *_COLUMNS, "ground_truth", "answer", "answers", "solution")


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
    extra = _decoded(_plain(extra_info))
    if extra is not None and not isinstance(extra, Mapping):
        raise UserError(
            f"extra_info is {_shown(extra)}, which must be a dictionary such as "
            '{"boxes": ["dog"]}; give one or None.'
        )
    found = _scores(
        _text(solution_str, where="solution_str"),
        _texts(_truth(ground_truth), where="ground_truth"),
        _labels((extra or {}).get("boxes"), where='extra_info["boxes"]'),
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
    solution_strs = _listed(solution_strs, "solution_strs")
    ground_truths = _listed(ground_truths, "ground_truths")
    infos = [None] * len(solution_strs)
    infos = infos if extra_infos is None else _listed(extra_infos, "extra_infos")
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
    completions = _listed(completions, "completions")
    count = len(completions)
    given = {name: _column(columns.get(name), name, count) for name in (*_COLUMNS, "boxes")}
    rows = []
    for i, completion in enumerate(completions):
        found = (
            _texts(given[name][i], where=f'row {i} of the column "{name}"') for name in _COLUMNS
        )
        references = next((texts for texts in found if texts), ())
        labels = _labels(given["boxes"][i], where=f'row {i} of the column "boxes"')
        rows.append(_scores(_text(completion, where=f"completion {i}"), references, labels))
    return rows


def _listed(values: Any, name: str) -> Sequence:
    """An argument of one entry per completion.

    Raises:
      UserError: it is a single text, or nothing that has places.
    """
    values = _plain(values)
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__getitem__"):
        raise UserError(
            f"{name} is {_shown(values)}, which must be a list with an entry for each completion; "
            "give it so."
        )
    return values


def _column(value: Any, name: str, count: int) -> Sequence:
    """A column as one entry per completion; None for each where there is no such column."""
    if value is None:
        return [None] * count
    value = _plain(value)
    if isinstance(value, str | Mapping) or not hasattr(value, "__len__") or len(value) != count:
        raise UserError(
            f'the column "{name}" is {_shown(value)}, which must be a list with one entry for each '
            f"of the {count} completions; give it so."
        )
    return value


def _scores(
    caption: str | None, references: tuple[str, ...], labels: tuple[str, ...]
) -> dict[str, float | None]:
    if not references or caption is None:
        return dict.fromkeys((*REWARDS, "b_capscore"))
    rewards = rewards_of([judge(caption, photo(references, labels))], REWARDS)[0]
    found = {name: float(value) for name, value in zip(REWARDS, rewards, strict=True)}
    found["b_capscore"] = float(harmonic_mean(rewards))
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def _text(completion: Any, *, where: str) -> str | None:
    """A completion as text: TRL gives chat messages for chat prompts. None for a turn that says
    nothing, because it only calls a tool.

    Raises:
      UserError: it is neither.
    """
    value = _plain(completion)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        content = value[-1].get("content")
        if isinstance(content, str):
            return content
        if content is None and ("role" in value[-1] or "content" in value[-1]):
            return None
        if isinstance(content, list) and all(map(_is_part, content)):
            return "".join(part["text"] for part in content if part.get("type") == "text")
    raise UserError(
        f"{where} is {_shown(value)}, which must be a text or a list of messages like "
        '{"role": "assistant", "content": "A dog."}; give it so.'
    )


def _is_part(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        return False
    return value["type"] != "text" or isinstance(value.get("text"), str)


def _truth(value: Any) -> Any:
    """The references of a ground truth of verl, out of the dictionary that may hold them.

    Raises:
      UserError: a dictionary has them under no known name.
    """
    value = _decoded(_plain(value))
    if not isinstance(value, Mapping):
        return value
    for name in _TRUTHS:
        if not _is_missing(value.get(name)):
            return _decoded(value[name])
    if value.keys() & set(_TRUTHS):
        return None
    raise UserError(
        f"ground_truth is {_shown(value)}, a dictionary without references; put them under "
        '"target", as a text or a list of texts.'
    )


def _decoded(value: Any) -> Any:
    """What stands in a JSON text, as data sets in Parquet keep dictionaries and lists: no caption
    is one.
    """
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with suppress(ValueError):
            return safe_json.loads(value)
    return value


def _texts(value: Any, *, where: str) -> tuple[str, ...]:
    """References from a text, a list or an array of texts; none for None, NaN and blank ones.

    Raises:
      UserError: it is in none of these forms.
    """
    value = _plain(_decoded(value))
    if _is_missing(value):
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(
        isinstance(text, str) or _is_missing(text) for text in texts
    ):
        raise UserError(
            f"{where} is {_shown(value)}, which must be a text or a list of texts; give the "
            "references so."
        )
    return tuple(text for text in texts if isinstance(text, str) and text.strip())


def _labels(value: Any, *, where: str) -> tuple[str, ...]:
    """Labels from a list of boxes; none for None.

    Raises:
      UserError: a box is in no known form.
    """
    value = _plain(_decoded(value))
    if _is_missing(value):
        return ()
    if isinstance(value, Mapping) and isinstance(_plain(value.get("label")), list):
        value = _plain(value["label"])  # a list of objects, as `datasets` keeps it
    labels = [_label(box) for box in value] if isinstance(value, list) else [None]
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise UserError(
            f'{where} is {_shown(value)}, which must be a list of labels, of {{"label": ...}} or '
            "of [label, left, top, right, bottom]; give the boxes so."
        )
    return tuple(labels)


def _label(box: Any) -> Any:
    box = _plain(box)
    if isinstance(box, Mapping):
        return box.get("label")
    return box[0] if isinstance(box, list) and box else box


def _plain(value: Any) -> Any:
    """Arrays and columns of tables, also those of one text, and tuples as lists and texts."""
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "iloc"):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
