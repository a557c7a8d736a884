"""One-edit negatives: true statements of the data's own images, each beside one that is false by
one word. On these a judge shows whether it sees, and on these its chances are fitted.

Of a scene the scene itself is edited, so truth is exact. Of a photo a word of a reference is
replaced: another object that photos of this kind often have, another colour, number or place.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from balcap_jax.data.examples import Example
from balcap_jax.rewards.lexical.evidence import relate
from balcap_jax.rewards.lexical.statements import read
from balcap_jax.rewards.model.scene_questions import Pair, pairs
from balcap_jax.rewards.model.statements import statements

PAIRS = 8  # of an image, at most
_COLOURS = tuple("red orange yellow green blue purple pink black white brown gray".split())
_NUMBERS = ("two", "three", "four", "five", "six")
_PLACES = (
    ("left", "right"),
    ("on", "under"),
    ("above", "below"),
    ("inside", "outside"),
    ("in front of", "behind"),
    ("top", "bottom"),
)


class Labelled(NamedTuple):
    """A statement whose truth is known.

    Attributes:
      image: index of its example.
    """

    image: int
    text: str
    true: bool


def one_edit_negatives(examples: Sequence[Example], *, most: int = PAIRS) -> list[Labelled]:
    """Pairs of a true statement and its one-edit negative, up to `most` of each example; a pure
    function of the examples.

    Examples without a scene and without references have none.
    """
    heads = [_heads(example) for example in examples]
    found = []
    for i, example in enumerate(examples):
        rng = random.Random(f"one edit/{example.id}/{i}")
        for pair in _pairs(example, heads, i, rng, most):
            found += [Labelled(i, pair.true, true=True), Labelled(i, pair.false, true=False)]
    return found


def _pairs(
    example: Example, heads: Sequence[frozenset[str]], i: int, rng: random.Random, most: int
) -> list[Pair]:
    if example.scene is not None:
        found = [pair for _, pair in zip(range(4 * most), pairs(example.scene, rng), strict=False)]
        return list(dict.fromkeys(found))[:most]
    return _word_edits(example, heads, i, rng, most)


# Photos -----------------------------------------------------------------------------------------


def _texts(example: Example) -> tuple[str, ...]:
    texts = example.all_references
    return tuple(text for text in texts if text.strip())


def _heads(example: Example) -> frozenset[str]:
    """The things that its references name."""
    return frozenset(
        s.head
        for text in _texts(example)
        for reading in read(text)
        for s in reading.statements
        if s.kind == "thing"
    )


def _word_edits(
    example: Example, heads: Sequence[frozenset[str]], i: int, rng: random.Random, most: int
) -> list[Pair]:
    told = " ".join(_texts(example)).lower()
    texts = {asked.text: None for text in _texts(example) for asked in statements(text)}
    found: dict[tuple[str, str], Pair] = {}
    for text in texts:
        edits = (
            ("object", _other_objects(text, heads, i)),
            ("colour", _others(text, _COLOURS)),
            ("count", _others(text, _NUMBERS)),
            ("place", _turned(text)),
        )
        for kind, wrong in edits:
            # What a reference says elsewhere is true of the image as well.
            new = [(word, false) for word, false in wrong if not _has(told, word)]
            if new:
                word, false = rng.choice(new)
                found[kind, false] = Pair(kind, text, false)
    chosen = list(found.values())
    rng.shuffle(chosen)
    # Every kind in its turn, so that things do not crowd out what is rarer.
    seen: dict[str, int] = {}
    ranks = []
    for pair in chosen:
        ranks.append(seen.get(pair.kind, 0))
        seen[pair.kind] = ranks[-1] + 1
    order = sorted(range(len(chosen)), key=ranks.__getitem__)
    return [chosen[place] for place in order[:most]]


def _other_objects(text: str, heads: Sequence[frozenset[str]], i: int) -> list[tuple[str, str]]:
    """(new word, statement) with one thing replaced by one that images with the others have; by one
    of any image where none of these has anything else.
    """
    own = heads[i]
    found = []
    for head in sorted(own):
        if not _has(text.lower(), head):
            continue
        others = own - {head}
        near = {new for j, of_j in enumerate(heads) if j != i and others & of_j for new in of_j}
        far = {new for j, of_j in enumerate(heads) if j != i for new in of_j}
        for pool in (near, far):
            # "A dog" and "an animal" may both be true.
            fitting = sorted(
                new for new in pool if all(relate(new, known) == "none" for known in own)
            )
            if fitting:
                found += [(new, _replaced(text, head, new)) for new in fitting]
                break
    return found


def _others(text: str, words: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (new, _replaced(text, old, new))
        for old in words
        if _has(text.lower(), old)
        for new in words
        if new != old
    ]


def _turned(text: str) -> list[tuple[str, str]]:
    """The contrary place."""
    found = []
    for one, other in _PLACES:
        for old, new in ((one, other), (other, one)):
            if _has(text.lower(), old):
                found.append((new, _replaced(text, old, new)))
    return found


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def _replaced(text: str, old: str, new: str) -> str:
    return re.sub(rf"\b{re.escape(old)}\b", new, text, count=1, flags=re.IGNORECASE)
