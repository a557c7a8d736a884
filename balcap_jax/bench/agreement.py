"""How well scores agree with people's labels, and how much of it is luck.

Correlation is Pearson's; AUC is the chance that a positive is ranked above a negative. Intervals
are bootstraps over images: captions of one image are not independent.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

ROUNDS = 1000  # samples of a bootstrap

Agreement = Callable[
    [Float[np.ndarray, " n"], Float[np.ndarray, " n"], Int[np.ndarray, " n"]], float
]


def pearson(
    scores: Float[np.ndarray, " n"],
    labels: Float[np.ndarray, " n"],
    images: Int[np.ndarray, " n"] | None = None,
) -> float:
    """Pearson's correlation over all captions; `images` is not read."""
    return float(np.corrcoef(scores, labels)[0, 1])


def within(
    scores: Float[np.ndarray, " n"],
    labels: Float[np.ndarray, " n"],
    images: Int[np.ndarray, " n"],
) -> float:
    """Pearson's correlation of what is left when each image's mean is taken away: what a reward
    that is normalised within the group of one image sees.
    """
    return pearson(_centred(scores, images), _centred(labels, images))


def _centred(
    values: Float[np.ndarray, " n"], images: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    counts = np.bincount(images)
    means = np.bincount(images, values) / np.maximum(1, counts)
    return values - means[images]


def auc(
    scores: Float[np.ndarray, " n"],
    labels: Float[np.ndarray, " n"],
    images: Int[np.ndarray, " n"] | None = None,
) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative), ties count half. NaN where
    all labels are alike; `images` is not read.
    """
    positive, negative = scores[labels > 0.5], np.sort(scores[labels <= 0.5])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, "left")
    ties = np.searchsorted(negative, positive, "right") - below
    return float((below + 0.5 * ties).sum() / (len(positive) * len(negative)))


def numbered(ids: Sequence[str]) -> Int[np.ndarray, " n"]:
    """The place of each id among the sorted distinct ones."""
    place = {id_: i for i, id_ in enumerate(sorted(set(ids)))}
    return np.array([place[id_] for id_ in ids])


def is_held_out(id_: str, seed: int = 0) -> bool:
    """Whether an image is of the half that no rule or constant was chosen on; by its id alone, so
    that a photo stays on its side whatever else is measured.
    """
    return hashlib.sha256(f"{seed}:{id_}".encode()).digest()[0] % 2 == 1


def held_out(ids: Sequence[str], seed: int = 0) -> Bool[np.ndarray, " n"]:
    """`is_held_out` of each."""
    return np.array([is_held_out(id_, seed) for id_ in ids])


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " n"], Int[np.ndarray, " n"]], float],
    images: Int[np.ndarray, " n"],
    *,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> tuple[float, float]:
    """The interval that holds 95 % of a statistic's values on images drawn with replacement.

    Args:
      statistic: of the places of the drawn captions and of the number of the draw that each comes
        from: an image drawn twice is two images.
      images: number of each caption's image, from 0 without gaps.
    """
    order = np.argsort(images, kind="stable")
    starts = np.searchsorted(images[order], np.arange(images.max() + 2))
    members = [order[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(rounds):
        drawn = [members[i] for i in generator.integers(0, len(members), len(members))]
        places = np.concatenate(drawn)
        draws = np.repeat(np.arange(len(drawn)), [len(d) for d in drawn])
        found.append(statistic(places, draws))
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)
