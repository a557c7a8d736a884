"""Makes `assets/lexicon/collocations.npz`, which word follows which in English:

    python -m balcap_jax.rewards.lexical.build_collocations WORDNET SYMSPELL OUT

WORDNET holds the files of WordNet 3.0 (`data.noun` and its like), of which the pairs of words that
stand beside each other in the glosses and examples are taken, and the verbs without an object.
SYMSPELL holds `frequency_dictionary_en_82_765.txt` and
`frequency_bigramdictionary_en_243_342.txt` of symspellpy 6.10.1, counts of words and of the most
frequent pairs in Google's books. The same files give the same bytes. No caption of a data set is
read.
"""

import re
import sys
from pathlib import Path

import numpy as np

from balcap_jax.rewards.lexical.tables import packed

_SLIP = 0.2  # of the count that chance would bring
_PARTS = ("noun", "verb", "adj", "adv")
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")


def build(wordnet: Path, symspell: Path) -> dict[str, np.ndarray]:
    """The arrays as `collocations.py` reads them."""
    counts = {
        word: int(count) for word, count in _lines(symspell / "frequency_dictionary_en_82_765.txt")
    }
    total = sum(counts.values())

    def expected(one: str, other: str) -> float:
        return counts.get(one, 0) * counts.get(other, 0) / total

    written = {
        (one, other): int(count)
        for one, other, count in _lines(symspell / "frequency_bigramdictionary_en_243_342.txt")
    }
    least = min(written.values())
    # A pair that is much rarer than chance is a slip. The glosses tell of the pairs alone that are
    # too rare for the list of the books.
    pairs = {pair for pair, count in written.items() if count >= _SLIP * expected(*pair)}
    pairs |= {pair for pair in _glossed(wordnet) if expected(*pair) < least}
    pairs = {(one, other) for one, other in pairs if one in counts and other in counts}
    words = sorted({word for pair in pairs for word in pair})
    place = {word: at for at, word in enumerate(words)}
    keys = np.sort(
        np.array([place[one] * len(words) + place[other] for one, other in pairs], np.int64)
    )
    shares = np.array([np.log10(counts[word] / total) for word in words])
    return {
        "words": packed(words),
        # The decadic logarithm of a word's share, in steps of 1/16 below 1.
        "rarity": np.round(-16 * shares).astype(np.uint8),
        "steps": np.diff(keys, prepend=np.int64(0)).astype(np.uint32),
        "intransitive": packed(_intransitive(wordnet)),
    }


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]


def _glossed(wordnet: Path) -> set[tuple[str, str]]:
    """Neighbours in the definitions and examples."""
    found = set()
    for part in _PARTS:
        for line in (wordnet / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            for piece in re.split(r'[;"()]', line.split(" | ", 1)[1].lower()):
                words = _WORD.findall(piece)
                found.update(zip(words, words[1:], strict=False))
    return found


# Frames of wninput(5WN) in which a verb has an object.
_WITH_OBJECT = frozenset((8, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 24, 25, 30, 31))
_SENSES = 3  # of a verb, the most frequent first


def _intransitive(wordnet: Path) -> list[str]:
    """Verbs that have no object in any of their most frequent senses."""
    framed = {}
    for line in (wordnet / "data.verb").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split(" | ")[0].split()
            at = 4 + 2 * int(fields[3], 16)
            at += 1 + 4 * int(fields[at])
            framed[fields[0]] = {int(fields[at + 2 + 3 * i]) for i in range(int(fields[at]))}
    found = []
    for line in (wordnet / "index.verb").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            senses = fields[-int(fields[2]) :][:_SENSES]
            if fields[0].isalpha() and not any(framed[s] & _WITH_OBJECT for s in senses):
                found.append(fields[0])
    return found


def main() -> None:
    """Reads argv[1] and argv[2], writes argv[3]."""
    wordnet, symspell, out = map(Path, sys.argv[1:])
    with out.open("wb") as file:
        np.savez_compressed(file, **build(wordnet, symspell))


if __name__ == "__main__":
    main()
