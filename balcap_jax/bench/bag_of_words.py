"""The baseline that a judge of words must beat: which words two texts share, no grammar."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

_STOP = frozenset(
    """a an the of in on at to and or with for from by is are was were be been being it its this
    that there their his her as while which who some into over near next""".split()
)
# What sentences say that analyse or judge a picture more than they describe it.
CUES = frozenset(
    """suggests suggesting suggest indicates indicating likely possibly probably may might could
    appears seems creating creates adding adds overall atmosphere sense feeling enjoying showcasing
    highlighting highlights implies implying evident such common because perhaps would
    experience""".split()
)


@lru_cache(maxsize=1 << 16)
def content_words(text: str) -> frozenset[str]:
    """Words of `text` in lower case, without stop words and without the s of plurals."""
    words = re.findall(r"[a-z]+", text.lower())
    return frozenset(word.removesuffix("s") for word in words if word not in _STOP)


def precision(caption: str, known: Iterable[str]) -> float:
    """Share of the caption's words that any of the texts `known` has; 0 for no words."""
    words = content_words(caption)
    union = frozenset().union(*map(content_words, known))
    return len(words & union) / len(words) if words else 0.0


def recall(caption: str, references: Sequence[str]) -> float:
    """Share of a reference's words that the caption has, mean over the references."""
    words = content_words(caption)
    shares = [len(words & content_words(r)) / max(1, len(content_words(r))) for r in references]
    return sum(shares) / len(shares)


def descriptive(text: str) -> float:
    """Minus the number of cue words: the more, the less `text` describes."""
    return -float(sum(word in CUES for word in re.findall(r"[a-z]+", text.lower())))
