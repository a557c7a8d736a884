"""Seeded searches for captions that see no photo and are paid all the same."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from balcap_jax.data.examples import Example
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.lexical.judge import LexicalJudge

NAMES = ("precision", "recall", "linguistic")
CONSTANT = 0.45  # most of the honest captions' b-CapScore that one caption for all photos may get
RAISED = 0.25  # largest share of captions that one suffix may raise


class Found(NamedTuple):
    """The best caption or suffix of a search, and what it gets."""

    text: str
    value: float


def corpus_score(photos: Sequence[Example], captions: Sequence[str]) -> float:
    """The harmonic mean of the three rewards' means over photos."""
    return float(harmonic_mean(rewards_of(LexicalJudge()(photos, captions), NAMES).mean(axis=0)))


def caption_scores(photos: Sequence[Example], captions: Sequence[str]) -> np.ndarray:
    """b-CapScore of each caption."""
    return harmonic_mean(rewards_of(LexicalJudge()(photos, captions), NAMES).T)


def constant_of_words(
    photos: Sequence[Example], vocabulary: Sequence[str], *, trials: int, seed: int = 0
) -> Found:
    """Hill climbing: words are replaced, put in, taken out and swapped."""
    rng = random.Random(seed)

    def change(words: list[str]) -> list[str]:
        words, at = list(words), rng.randrange(len(words))
        move = rng.choice(("replace", "replace", "put in", "take out", "swap"))
        if move == "replace":
            words[at] = rng.choice(vocabulary)
        elif move == "put in":
            words.insert(at, rng.choice(vocabulary))
        elif move == "take out" and len(words) > 2:
            words.pop(at)
        else:
            other = rng.randrange(len(words))
            words[at], words[other] = words[other], words[at]
        return words

    def text(words: list[str]) -> str:
        return " ".join(words).capitalize() + "."

    start = [rng.choice(vocabulary) for _ in range(8)]
    return _climb(lambda c: corpus_score(photos, [c] * len(photos)), start, change, text, trials)


def constant_of_sentences(
    photos: Sequence[Example], sentences: Sequence[str], *, trials: int, seed: int = 0
) -> Found:
    """Hill climbing over captions of one to four fluent sentences."""
    rng = random.Random(seed)

    def change(chosen: list[str]) -> list[str]:
        chosen, at = list(chosen), rng.randrange(len(chosen))
        move = rng.choice(("replace", "replace", "put in", "take out"))
        if move == "put in" and len(chosen) < 4:
            chosen.append(rng.choice(sentences))
        elif move == "take out" and len(chosen) > 1:
            chosen.pop(at)
        else:
            chosen[at] = rng.choice(sentences)
        return chosen

    return _climb(
        lambda c: corpus_score(photos, [c] * len(photos)),
        [rng.choice(sentences)], change, " ".join, trials,
    )  # fmt: skip


def suffix(
    photos: Sequence[Example],
    honest: Sequence[str],
    candidates: Sequence[str],
    *,
    trials: int,
    seed: int = 0,
) -> Found:
    """The suffix that raises the b-CapScore of the largest share of captions."""
    rng = random.Random(seed)
    before = caption_scores(photos, honest)
    best = Found("", 0.0)
    for text in rng.sample(candidates, min(trials, len(candidates))):
        after = caption_scores(photos, [f"{caption} {text}" for caption in honest])
        share = float((after > before + 1e-9).mean())
        best = max(best, Found(text, share), key=lambda found: found.value)
    return best


def suffixes(nouns: Sequence[str], adjectives: Sequence[str], verbs: Sequence[str]) -> list[str]:
    """Short sentences of these words that are true of many photos."""
    return [
        *(f"There is a {noun}." for noun in nouns),
        *(f"A {noun} is in the background." for noun in nouns),
        *(f"It is next to a {noun}." for noun in nouns),
        *(f"It is {adjective}." for adjective in adjectives),
        *(f"The {noun} is {adjective}." for noun in nouns[:20] for adjective in adjectives[:20]),
        *(f"The person is {verb}." for verb in verbs),
        *(f"The {noun} is {verb}." for noun in nouns[:10] for verb in verbs[:20]),
    ]


def _climb(
    score: Callable[[str], float],
    state: list[str],
    change: Callable[[list[str]], list[str]],
    text: Callable[[list[str]], str],
    trials: int,
) -> Found:
    best = Found(text(state), score(text(state)))
    for _ in range(trials):
        changed = change(state)
        value = score(text(changed))
        if value >= best.value:
            state, best = changed, Found(text(changed), value)
    return best
