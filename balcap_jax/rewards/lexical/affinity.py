"""How well the words of a sentence fit each other in meaning: what is like that, does that, is done
to that or stands in that, by what a language model expects.

The asset is made by `build_affinity.py`: for each relation a vector of each word, whose products
are how much likelier, in nats, a word is behind one than behind any. No caption of a data set is in
it. `collocations.py` asks whether neighbours were ever written; here an article or a preposition
may stand between two words, and words that nobody put together can fit.
"""

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from balcap_jax.rewards.lexical.tables import read_table, unpacked
from balcap_jax.rewards.lexical.words import Sentence, Word

LIMIT = 2.0  # nats that one pair can speak for or against a sentence
_PHRASE = frozenset("ADJ NOUN NUM DET POSS QUANT".split())
_BETWEEN = frozenset("AUX ADV REL".split())  # a thing and what it does
_DOERS = 2  # "a child in a striped shirt plays": not always the nearest one
# They say what belongs to what, and nothing of their own.
_BELONGING = frozenset("of with without off for from like".split())


class _Relation(NamedTuple):
    """Vectors of the words that come first, and of those that come second."""

    first: dict[str, np.ndarray]
    second: dict[str, np.ndarray]
    mean: float


@cache
def _relations() -> dict[str, _Relation]:
    arrays = read_table("affinity")

    def vectors(side: str, name: str, role: str) -> dict[str, np.ndarray]:
        scale = arrays[f"{side}_scale {name}"].astype(np.float32)
        words = unpacked(arrays[f"words {role}"])
        return dict(zip(words, arrays[f"{side} {name}"] * scale, strict=True))

    names = [name.removeprefix("mean ") for name in arrays if name.startswith("mean ")]
    return {
        name: _Relation(
            vectors("left", name, name.split()[0]),
            vectors("right", name, name.split()[-1]),
            float(arrays[f"mean {name}"]),
        )
        for name in names
    }


@lru_cache(maxsize=1 << 16)
def expected(relation: str, one: str, other: str) -> float | None:
    """How much likelier `other` is where `one` stands in this relation to it than where anything
    does, in nats from -LIMIT to LIMIT; None where a word is not known.

    Args:
      relation: two parts of speech, "ADJ NOUN"; with a dot between, any preposition stands there.
      one: the dictionary form of the first word.
      other: that of the second one.
    """
    first, second, mean = _relations()[relation]
    if one not in first or other not in second:
        return None
    return float(np.clip(first[one] @ second[other] + mean, -LIMIT, LIMIT))


def affinity(sentence: Sentence) -> tuple[float, ...]:
    """`expected` of all pairs of a sentence whose words are known; where one of several words can
    be the first, of the one that fits best.
    """
    found = []
    for relation, ones, other in pairs(sentence.words):
        values = [expected(relation, one, other) for one in ones]
        found.append(max((v for v in values if v is not None), default=None))
    return tuple(value for value in found if value is not None)


class Pair(NamedTuple):
    """A relation, the words that can be its first one, and its second, as dictionary forms."""

    relation: str
    ones: tuple[str, ...]
    other: str


def pairs(words: Sequence[Word]) -> Iterator[Pair]:
    """The relations in which words stand."""
    for at, word in enumerate(words):
        before = words[at - 1] if at else None
        if word.tag == "NOUN":
            if before is not None and before.tag == "NOUN":
                yield Pair("NOUN NOUN", (before.lemma,), word.lemma)
            if _is_head(words, at):
                yield from _described(words, at)
                yield from _held(words, at)
        elif word.tag == "PREP" and before is not None and before.tag in ("NOUN", "VERB"):
            yield Pair(f"{before.tag} PREP", (before.lemma,), word.text)
        elif word.tag == "VERB":
            nearest = _last(words, at, _BETWEEN)
            if nearest is not None and words[nearest].tag == "NOUN":
                heads = [i for i in range(nearest, -1, -1) if _is_head(words, i)]
                yield Pair("NOUN VERB", tuple(words[i].lemma for i in heads[:_DOERS]), word.lemma)


def _is_head(words: Sequence[Word], at: int) -> bool:
    """Whether a noun is the last of its phrase, which is what the phrase names."""
    return words[at].tag == "NOUN" and (at + 1 == len(words) or words[at + 1].tag != "NOUN")


def _described(words: Sequence[Word], noun: int) -> Iterator[Pair]:
    """The adjectives of a phrase, all of them said of its last noun."""
    for at in range(noun - 1, -1, -1):
        if words[at].tag == "ADJ":
            yield Pair("ADJ NOUN", (words[at].lemma,), words[noun].lemma)
        elif words[at].tag != "NOUN":
            return


def _held(words: Sequence[Word], noun: int) -> Iterator[Pair]:
    """The verb or the preposition that a phrase stands behind, and what that one belongs to."""
    opener = _last(words, noun, _PHRASE)
    if opener is None:
        return
    if words[opener].tag == "VERB":
        yield Pair("VERB NOUN", (words[opener].lemma,), words[noun].lemma)
    elif words[opener].tag == "PREP":
        if words[opener].text not in _BELONGING:
            yield Pair("PREP NOUN", (words[opener].text,), words[noun].lemma)
        holder = _last(words, opener, frozenset({"ADV"}))
        if holder is not None and words[holder].tag in ("NOUN", "VERB"):
            relation = f"{words[holder].tag} . NOUN"
            yield Pair(relation, (words[holder].lemma,), words[noun].lemma)


def _last(words: Sequence[Word], at: int, passed: frozenset[str]) -> int | None:
    """The place before `at` whose word is of none of these parts of speech."""
    return next((i for i in range(at - 1, -1, -1) if words[i].tag not in passed), None)
