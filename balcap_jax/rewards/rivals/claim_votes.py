"""FEEDQUILL-style rewards: the units of a caption, each verified by several judges.

FEEDQUILL (arXiv:2503.07906) splits a response into primitive units, lets several open models verify
each, and takes the share of correct units as precision and counts for recall. Its code is not
public. Our choices: a unit is correct where more than half of the judges say so ("majority"), or to
the share that say so ("mean"); the recall score is the number of correct units; a caption that one
of the judges did not answer for has no signal, since with fewer judges its units would be measured
by another rule than those it is compared with.
"""

import numpy as np
from jaxtyping import Bool, Float

from balcap_jax.config.claim_rivals import Vote


def correctness(votes: Bool[np.ndarray, "j u"], *, vote: Vote) -> Float[np.ndarray, " u"]:
    """How far each of u units is correct, from 0 to 1, by the votes of j judges."""
    share = votes.mean(axis=0, dtype=np.float64)
    return share if vote == "mean" else (share > 0.5).astype(np.float64)


def claims_precision(correct: Float[np.ndarray, " u"]) -> float:
    """Share of the units that are correct; 0 for a caption without any, as precision is."""
    return float(correct.mean()) if correct.size else 0.0


def claims_recall(correct: Float[np.ndarray, " u"]) -> float:
    """Number of correct units: not bounded, only compared within a group."""
    return float(correct.sum())
