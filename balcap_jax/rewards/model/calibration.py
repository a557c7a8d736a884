"""How well a judge tells true statements from false ones of the same image, and the line that turns
its logits into chances.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from balcap_jax.rewards.model.score import chances, sigmoid

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


class Calibration(NamedTuple):
    """The line from logits to chances, and how well it tells true from false.

    Attributes:
      alpha, beta: see `chances`.
      auc: within images, on the statements it was fitted on; NaN of none.
      images, statements: what these were.
    """

    alpha: float = 0.0
    beta: float = 0.0
    auc: float = float("nan")
    images: int = 0
    statements: int = 0

    def told(self, name: str) -> str:
        """How well the judge of that name tells true from false, in a line."""
        return (
            f"judge {name}: AUC within images {self.auc:.2f} on one-edit negatives "
            f"({self.statements} statements of {self.images} images; 0.50 is chance), alpha "
            f"{self.alpha:.2f}, beta {self.beta:.2f}"
        )


def fit(
    image: Float[np.ndarray, " n"],
    blank: Float[np.ndarray, " n"],
    true: Bool[np.ndarray, " n"],
    images: Sequence[Hashable],
) -> Calibration:
    """The alpha and beta under which the labels are likeliest, by Newton's method, with a slight
    pull to alpha 0 and beta 0.

    Args:
      image, blank: see `chances`; all finite.
      true: the labels.
      images: of each statement, the name of its image.
    """
    image, blank = np.asarray(image, np.float64), np.asarray(blank, np.float64)
    inputs = np.stack([-blank, np.ones_like(blank)], axis=1)
    found = np.zeros(2)
    for _ in range(50):
        p = sigmoid(image + inputs @ found)
        gradient = inputs.T @ (true - p) - _RIDGE * found
        curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs + _RIDGE * np.eye(2)
        # Far from the best line the curvature says little; no step is longer than this.
        step = np.clip(np.linalg.solve(curvature, gradient), -2.0, 2.0)
        found = found + step
        if np.abs(step).max() < 1e-9:
            break
    alpha, beta = map(float, found)
    auc = auc_within(chances(image, blank, alpha=alpha, beta=beta), true, images)
    return Calibration(alpha, beta, auc, len(set(images)), len(true))
