"""How well a judge tells true statements from false ones of the same image, and the line that turns
its logits into chances.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

LEAST_AUC = 0.70  # within images; half is chance
_RIDGE = 1e-2  # keeps the fit finite where one line tells all apart


def auc_within(
    scores: Float[np.ndarray, " n"], true: Bool[np.ndarray, " n"], images: Sequence[Hashable]
) -> float:
    """Share of pairs of a true and a false statement of one image whose true one scores higher; a
    tie is half of it.

    NaN scores are no signal and left out. NaN where no image has a pair.
    """
    known = ~np.isnan(scores)
    won, pairs = 0.0, 0
    groups: dict[Hashable, list[int]] = {}
    for i in np.flatnonzero(known):
        groups.setdefault(images[i], []).append(int(i))
    for places in groups.values():
        own, truth = np.asarray(scores)[places].astype(np.float64), np.asarray(true)[places]
        gaps = own[truth][:, None] - own[~truth][None]
        won += float(((np.sign(gaps) + 1) / 2).sum())
        pairs += gaps.size
    return won / pairs if pairs else float("nan")
