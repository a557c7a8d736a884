"""DCScore (DeCapBench, arXiv:2503.07906): how much of what people see in an image is told rightly.

A caption is split into facts. Each is verified by image and reference, and matched to one of the
facts that people wrote, or to none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from balcap_jax.evaluation.statistics import Measure

_TINY = 1e-8  # the official code adds it to the lower side of each F1


class InvalidImageError(ValueError):
    """An image that has no DCScore: no fact, or no relevant one."""


class Scores(NamedTuple):
    """Of one image, each from 0 to 1."""

    f1_relevant: float
    f1: float
    precision: float
    recall: float


def scores(
    relevance: Sequence[Any],
    verification: Sequence[Any],
    matched_oracle_id: Sequence[Any],
    *,
    oracle_facts: int,
) -> Scores:
    """The scores of one trial.

    With S the facts, N `oracle_facts`, c(k) the number of facts matched to the oracle fact k and E
    the verified facts without a match:

        precision = verified / |S|
        recall    = (E + sum over verified matched facts of 1 / c(k)) / (N + E)
        f1        = 2 P R / (P + R + 1e-8)

    The relevant variant keeps the facts of relevance 1; its c(k) are still of all facts.

    Args:
      relevance: 1 for a fact that describes the image; what does not equal 1 is not relevant.
      verification: 1 for a true fact; what does not equal 1, such as the text "1", is not true.
      matched_oracle_id: any value names an oracle fact, and is not looked for among them; None and
        the text "None" name none.
      oracle_facts: their number N.

    Raises:
      InvalidImageError: there is no fact, or no relevant one.
    """
    facts = list(zip(relevance, verification, matched_oracle_id, strict=True))
    counts = Counter(match for _, _, match in facts if not _is_none(match))
    relevant = [fact for fact in facts if fact[0] == 1]
    if not relevant:
        raise InvalidImageError("no relevant fact" if facts else "no fact")
    f1_relevant, _, _ = _f1(relevant, counts, oracle_facts)
    return Scores(f1_relevant, *_f1(facts, counts, oracle_facts))


def _f1(
    facts: Sequence[tuple[Any, Any, Any]], counts: Mapping[Any, int], oracle_facts: int
) -> tuple[float, float, float]:
    """(f1, precision, recall)"""
    verified = [match for _, is_true, match in facts if is_true == 1]
    extra = sum(map(_is_none, verified))
    covered = sum(1 / counts[match] for match in verified if not _is_none(match))
    precision = len(verified) / len(facts)
    total = oracle_facts + extra
    recall = (extra + covered) / total if total else 0.0
    return 2 * precision * recall / (precision + recall + _TINY), precision, recall


def _is_none(match: Any) -> bool:
    return match is None or match == "None"


def mean_scores(
    relevance: Mapping[str, Any],
    verifications: Sequence[Sequence[tuple[str, Any]]],
    matches: Sequence[Mapping[str, Any]],
    *,
    oracle_facts: int,
) -> Scores:
    """The means over all pairs of a verification and a matching, 9 of 3 and 3: of the F1s, not the
    F1 of means.

    Args:
      relevance: by the text of each fact.
      verifications: (text of a fact, verification); a text that comes twice counts twice.
      matches: by text.

    Raises:
      InvalidImageError: as `scores`.
    """
    trials = [
        scores(
            [relevance[fact] for fact, _ in verified],
            [value for _, value in verified],
            [matched[fact] for fact, _ in verified],
            oracle_facts=oracle_facts,
        )
        for verified in verifications
        for matched in matches
    ]
    return Scores(*(float(mean) for mean in np.mean(trials, axis=0)))


def dcscore(image: Scores) -> float:
    """Of one image, from 0 to 1: the mean of both F1s."""
    return (image.f1_relevant + image.f1) / 2


def measures(items: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    """DCScore over images, in 0..100.

    `official` drops all images without a score. `strict` drops those alone of which the judge gave
    no answer; a caption in which it found no fact, or no relevant one, tells nothing and counts.

    Args:
      items: `score` from 0 to 1, or None, and `failed`, why the judge gave no answer, or None.
    """
    known = np.array([item["score"] is not None for item in items], np.float64)[:, None]
    asked = np.array([item["failed"] is None for item in items], np.float64)[:, None]
    values = np.array([item["score"] or 0.0 for item in items], np.float64)[:, None]
    strict = np.array([item.get("strict_score") or 0.0 for item in items], np.float64)[:, None]
    return {
        "official": Measure(values * known, known),
        "strict": Measure(strict * asked, asked),
    }


def filled(items: Sequence[Mapping[str, Any]], *, best: bool) -> list[dict[str, Any]]:
    """The items, with the least or the most that those without an answer could have got."""
    score = float(best)
    return [
        dict(item)
        if item["failed"] is None
        else {**item, "score": score, "strict_score": score, "failed": None}
        for item in items
    ]
