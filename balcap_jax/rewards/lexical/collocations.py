"""Whether words that stand beside each other do so in English, from counts that the package ships.

The asset is made by `build_collocations.py` from the glosses of WordNet and the most frequent pairs
of words in books; no caption of a data set is in it. A pair of rare words is seldom seen, so that
its absence says little; a pair of frequent words that nobody wrote says much.
"""

import re
from functools import cache, lru_cache

import numpy as np

from balcap_jax.rewards.lexical.tables import read_table, unpacked

_WORD = re.compile(r"[a-z]+(?:['’-][a-z]+)*|[^\sa-z'’-]")
# By how often a pair would be met if its words had nothing to do with each other, in powers of ten:
# log-odds that the writer meant it, where the pair is known and where it is not. Measured on
# captions against the same captions with each word replaced by one of the same part of speech.
_EXPECTED = (3, 4, 5, 6, 7)
_KNOWN = (2.6, 1.55, 0.65, 0.4, 0.3, 0.1)
_UNKNOWN = (-0.3, -0.3, -0.75, -1.6, -2.9, -1.5)
_TEXTS = 11.7  # decadic logarithm of the number of words that were counted
_UNSEEN = 96  # rarity of a word that has no count, in steps of 1/16


@cache
def _table() -> tuple[dict[str, int], np.ndarray, frozenset[int]]:
    """Places of words, their rarity, and pairs as one number each."""
    arrays = read_table("collocations")
    places = {word: at for at, word in enumerate(unpacked(arrays["words"]))}
    keys = np.cumsum(arrays["steps"].astype(np.int64))
    return places, arrays["rarity"], frozenset(keys.tolist())


@lru_cache(maxsize=1 << 16)
def meant(one: str, other: str) -> float:
    """Log-odds that a writer put `other` right behind `one` for what they mean, over their standing
    there by chance.
    """
    places, rarity, pairs = _table()
    first, second = places.get(one), places.get(other)
    rare = sum(_UNSEEN if at is None else int(rarity[at]) for at in (first, second))
    level = sum(_TEXTS - rare / 16 >= power for power in _EXPECTED)
    known = first is not None and second is not None and first * len(places) + second in pairs
    return (_KNOWN if known else _UNKNOWN)[level]


@cache
def _without_object() -> frozenset[str]:
    return frozenset(unpacked(read_table("collocations")["intransitive"]))


def is_intransitive(verb: str) -> bool:
    """Whether a verb (its dictionary form) has no object in any of its frequent senses."""
    return verb in _without_object()


def association(text: str) -> tuple[float, ...]:
    """`meant` of each pair of neighbours of `text`; what stands between commas is no neighbour."""
    words = _WORD.findall(text.lower().replace("’", "'"))
    return tuple(
        meant(one, other)
        for one, other in zip(words, words[1:], strict=False)
        if one[0].isalpha() and other[0].isalpha()
    )
