"""Linguistic quality of a caption: clarity, fluency and coherency, from the text alone.

- clarity: words that are known, sentences that say one thing (no lists of alternatives, no keyword
  lists, no symbols) and are no longer than people write;
- fluency: a verb, a capital, a full stop, words that agree, and neighbours that grammar allows;
- coherency: nothing is told twice or taken back, and sentences do not all begin alike.

Whatever the grammar, words that nobody puts beside each other (`collocations.py`) or that do not
fit each other (`affinity.py`) make no sense, and all three fall with it.

A sentence counts by its number of words, so that good short ones do not hide a bad long one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from balcap_jax.rewards.lexical.affinity import affinity
from balcap_jax.rewards.lexical.collocations import association
from balcap_jax.rewards.lexical.grammar import mistakes
from balcap_jax.rewards.lexical.statements import Reading, Statement, read
from balcap_jax.rewards.lexical.vocabulary import COLOURS
from balcap_jax.rewards.lexical.words import Sentence, Word, is_known

_LONGEST = 40  # words of a sentence; people stay below
_SYMBOLS = re.compile(r"[^\w\s.,;:!?'’\"“”()&%/-]|https?:|www\.")
# Pairs of tags that no sentence has, by their first tag; "." is the end.
_FORBIDDEN = {
    "DET": "DET PREP CONJ AUX PRON REL TO VERB-S , .",
    "POSS": "DET PREP CONJ AUX PRON VERB-S , .",
    "PREP": "AUX CONJ VERB-S",
    "ADJ": "DET PRON VERB-S",
    "NOUN": "DET PRON NUM",
    "PRON": "NOUN ADJ PRON",
    "NUM": "DET PREP PRON VERB-S .",
    "VERB": "VERB-S AUX",
    "VERB-S": "VERB-S AUX VERB",
    "AUX": "VERB-S REL .",
    "CONJ": "CONJ . ,",
    "TO": "PREP CONJ AUX VERB-S . ,",
    ",": ", .",
}
_PAIRS = frozenset((one, other) for one, others in _FORBIDDEN.items() for other in others.split())
# Log-odds of a sentence's words at which it makes no sense, and from which on it makes good sense:
# the mean over neighbours that are written beside each other, and 0.6 of the mean
# over pairs that a language model expects. A short sentence is given the benefit of so many
# neighbours and pairs that say nothing.
_SENSELESS, _SENSIBLE = -0.32, -0.16
_NEIGHBOURS, _FITTING, _AFFINITY = 1, 5, 0.6
_DAMPED = 0.9  # what clarity and coherency lose of a sentence without sense
_SLIPS = 1  # places that grammar does not allow in a sentence, however long, that still tells
_STRANDED = frozenset("of with at from for into onto".split())


class Quality(NamedTuple):
    """Each from 0 to 1."""

    clarity: float
    fluency: float
    coherency: float


@lru_cache(maxsize=1 << 12)
def quality(text: str) -> Quality:
    """The linguistic quality of a caption; all 0 for one without words."""
    readings = read(text)
    if not readings:
        return Quality(0.0, 0.0, 0.0)
    lengths = [len(reading.sentence.words) for reading in readings]
    symbols = len(_SYMBOLS.findall(text)) / sum(lengths)
    # One pattern filled in again and again is a list, however sound each sentence is.
    patterned = max(0.0, _patterned(readings) - 0.3)
    senses = [sense(reading.sentence) for reading in readings]
    damped = 1 - _DAMPED * (1 - _mean(senses, lengths))
    return Quality(
        max(0.0, _mean(map(_clarity, readings), lengths) - 3 * symbols) * damped,
        _mean([_fluency(r.sentence) * s for r, s in zip(readings, senses, strict=True)], lengths)
        * (1 - patterned),
        _coherency(readings) * damped,
    )


@lru_cache(maxsize=1 << 12)
def sense(sentence: Sentence) -> float:
    """From 0 for words that stand together by chance to 1 for words that people put so."""
    beside, expected = association(sentence.text), affinity(sentence)
    odds = sum(beside) / (len(beside) + _NEIGHBOURS)
    odds += _AFFINITY * sum(expected) / (len(expected) + _FITTING)
    return min(1.0, max(0.0, (odds - _SENSELESS) / (_SENSIBLE - _SENSELESS)))


def _mean(values: Iterable[float], weights: Sequence[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


# Sentence by sentence -----------------------------------------------------------------------------


def _clarity(reading: Reading) -> float:
    words = [w for w in reading.sentence.words if w.tag != ","]
    # One unknown word may be a name or new; more are noise.
    unknown = max(0, sum(not is_known(w.text) for w in words) - 1) / len(words)
    alternatives = sum(w.text in ("or", "either") for w in words)
    score = max(0.0, 1 - 3 * unknown) * 0.7**alternatives * min(1.0, _LONGEST / len(words))
    return score * (0.3 if _is_list(reading.sentence) or len(words) < 2 else 1.0)


def _is_list(sentence: Sentence) -> bool:
    """Keywords in a row: things without a verb that says anything of them."""
    commas = sum(w.tag == "," for w in sentence.words)
    nouns = sum(w.tag == "NOUN" for w in sentence.words)
    joints = sum(w.tag in ("VERB", "PREP", "AUX", "TO", "CONJ", "REL") for w in sentence.words)
    return nouns + commas >= 4 and joints * 4 < nouns + commas or _run(sentence.words) > 4


def _run(words: Sequence[Word]) -> int:
    """The most nouns and adjectives in a row; commas do not break it."""
    longest = run = 0
    for word in words:
        if word.tag != ",":
            run = run + 1 if word.tag in ("NOUN", "ADJ") else 0
        longest = max(longest, run)
    return longest


def is_sound(sentence: Sentence) -> bool:
    """Whether `sentence` is one: words that are known, in an order that grammar allows, joined by
    a verb or a preposition, and no list of keywords, alternatives, colours or numbers. What is
    told outside of sound sentences tells nothing.
    """
    words = [w for w in sentence.words if w.tag != ","]
    unknown = sum(not is_known(w.text) for w in words)
    listed = max(
        sum(w.text in COLOURS for w in words),
        sum(w.tag == "NUM" and w.text != "one" for w in words),
    )
    return (
        len(words) > 1
        and words[0].tag != "AUX"  # a question
        and 3 * unknown < len(words)
        and listed < 5
        and not any(w.text in ("or", "either") for w in words)
        and not _is_list(sentence)
        and (_is_joined(sentence) or _is_name(sentence))
        and _order(sentence) >= 0.6
        and _wrong(sentence) <= _SLIPS
    )


def _is_joined(sentence: Sentence) -> bool:
    return any(w.tag in ("VERB", "AUX", "PREP", "TO") for w in sentence.words)


def _is_name(sentence: Sentence) -> bool:
    """The bare name of one thing, "Two brown dogs.", which is no sentence and yet understood."""
    first, *others = [w.tag for w in sentence.words]
    return first in ("DET", "NUM", "QUANT") and set(others) <= {"ADJ", "NOUN"} and len(others) < 4


def _order(sentence: Sentence) -> float:
    """1 for an order of words that grammar allows; falls with the share of places that it does
    not.
    """
    return max(0.0, 1 - 4 * _wrong(sentence) / (len(sentence.words) + 1))


@lru_cache(maxsize=1 << 12)
def _wrong(sentence: Sentence) -> int:
    """At how many places grammar does not allow what stands there."""
    tags = [_tag(w) for w in sentence.words] + ["."]
    wrong = sum(pair in _PAIRS for pair in zip(tags, tags[1:], strict=False))
    wrong += sentence.words[-1].text in _STRANDED
    wrong += mistakes(sentence)
    wrong += max(0, _run(sentence.words) - 4)
    pairs = zip(sentence.words, sentence.words[1:], strict=False)
    wrong += sum(_stumbles(one.text, other.text) for one, other in pairs)
    return wrong + max(0, sum(w.tag == "CONJ" for w in sentence.words) - 1 - len(tags) // 8)


def _fluency(sentence: Sentence) -> float:
    verb = any(w.tag in ("VERB", "AUX") for w in sentence.words)
    whole = 1.0 if verb else 0.8 if _is_joined(sentence) else 0.3
    start = 1.0 if sentence.text[0].isupper() or sentence.text[0].isdigit() else 0.9
    end = 1.0 if sentence.closed else 0.9
    return _order(sentence) * whole * start * end * min(1.0, _LONGEST / len(sentence.words))


def _stumbles(one: str, other: str) -> bool:
    """A word twice in a row, or the wrong article."""
    if one == "a":
        return other[0] in "aeio" and not other.startswith(("one", "eu"))
    return one == other or (one == "an" and other[0] not in "aeiouh")


def _tag(word: Word) -> str:
    finite = word.tag == "VERB" and word.text != word.lemma and word.text.endswith("s")
    return "VERB-S" if finite else word.tag


# The caption as a whole ---------------------------------------------------------------------------


def _coherency(readings: Sequence[Reading]) -> float:
    """Falls by twice the share of words that tell nothing new, statements taken back and openings
    used again.
    """
    told: list[Statement] = [s for reading in readings for s in reading.statements]
    words = [w.lemma for reading in readings for w in reading.sentence.words]
    again = _repeated([*zip(words, words[1:], words[2:], strict=False)])
    sentences = [tuple(w.lemma for w in reading.sentence.words) for reading in readings]
    copies = _repeated(sentences)
    openings = _repeated([s[:3] for s in sentences]) if len(sentences) > 2 else 0.0
    nouns = [s.head for s in told if s.kind == "thing"]
    crowded = max(0.0, _repeated(nouns) - 0.4)
    same = 0.5 * max(openings, _patterned(readings))
    bad = max(again, copies) + same + crowded + _taken_back(told)
    sound = sum(len(r.sentence.words) for r in readings if is_sound(r.sentence)) / len(words)
    return max(0.0, 1 - 2 * bad) * (0.4 + 0.6 * sound)


def _patterned(readings: Sequence[Reading]) -> float:
    """Share of sentences with the same parts of speech as an earlier one, from four on."""
    patterns = [tuple(w.tag for w in reading.sentence.words) for reading in readings]
    return _repeated(patterns) if len(patterns) > 3 else 0.0


def _repeated(items: Sequence) -> float:
    """Share of the items that came before."""
    return 1 - len(set(items)) / len(items) if items else 0.0


def _taken_back(told: Sequence[Statement]) -> float:
    """How much is denied by what was told before, "no dog" and "a dog": from 0 to 0.5."""
    said: dict[tuple, bool] = {}
    colours: Counter[str] = Counter()
    wrong = 0
    for s in told:
        key = (s.kind, s.head, s.value, s.other)
        wrong += said.setdefault(key, s.negated) != s.negated
        if s.kind == "attribute" and s.value in COLOURS:
            colours[s.head] += 1
    wrong += sum(max(0, n - 3) for n in colours.values())
    return min(0.5, 0.15 * wrong)
