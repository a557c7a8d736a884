"""What a caption gets by its own photo beyond what others give it: no pay for what fits any photo.

Precision and recall alone let a policy rise by saying what fits most photos: "a person is wearing a
shirt". Each is therefore taken less its mean over other photos of the same call, judged by their
references with the same rules. A caption that does not depend on its photo gets 0 on average,
whatever it says. The idea is that of CIDErBtw (arXiv 2007.06877), which subtracts from CIDEr what a
caption gets by captions of similar photos; here it is every photo of the step.

The functions have TRL's signature and read the columns of `rewards.functions`:

    balcap train --reward.functions balcap_jax.rewards:distinctive_precision \\
        balcap_jax.rewards:distinctive_recall ...
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.function_inputs import Row, rows_of
from balcap_jax.rewards.lexical.judge import judge, photo

_NAMES = ("precision", "recall")
MOST_OTHERS = 16  # photos that a caption is judged by beside its own: more would tell little more


def distinctive_precision(
    prompts: Sequence | None = None, completions: Sequence = (), **columns: Any
) -> list:
    """Precision by the own photo less its mean by other photos of the call, in [-1, 1].

    None, no signal, without references, and where the call holds no other photo. TRL's signature.
    """
    return _distinctive(completions, columns, "precision")


def distinctive_recall(
    prompts: Sequence | None = None, completions: Sequence = (), **columns: Any
) -> list:
    """Recall of the own photo less its mean of other photos of the call, in [-1, 1].

    None, no signal, without references, and where the call holds no other photo. TRL's signature.
    """
    return _distinctive(completions, columns, "recall")


def steps_to_others(count: int, *, most: int = MOST_OTHERS) -> range:
    """How far the other photos that a caption is judged by are from its own, in a circle of
    `count` photos: at most so many, spread over all. None where there is one photo.
    """
    return range(1, count, max(1, (count - 1) // (most - 1)))[:most]


def _distinctive(
    completions: Sequence, columns: Mapping[str, Any], name: str
) -> list[float | None]:
    rows = rows_of(completions, columns)
    photos = list(dict.fromkeys((row.references, row.labels) for row in rows if row.references))
    place = {key: i for i, key in enumerate(photos)}

    def of(row: Row) -> float | None:
        if row.caption is None or not row.references:
            return None
        # By the call alone, so that a row has one value.
        own = place[row.references, row.labels]
        others = [photos[(own + k) % len(photos)] for k in steps_to_others(len(photos))]
        if not others:
            return None
        k = _NAMES.index(name)
        value = _scores(row.caption, *photos[own])[k] - np.mean(
            [_scores(row.caption, *other)[k] for other in others]
        )
        return None if math.isnan(value) else float(value)

    return [of(row) for row in rows]


@lru_cache(maxsize=1 << 15)  # both functions ask for the same, one after the other
def _scores(
    caption: str, references: tuple[str, ...], labels: tuple[str, ...]
) -> Float[np.ndarray, "2"]:
    return rewards_of([judge(caption, photo(references, labels))], _NAMES)[0]
