"""Makes `assets/lexicon/wordnet.json.gz` from the files of WordNet 3.0:

    python -m balcap_jax.rewards.lexical.build_lexicon FOLDER OUT

FOLDER holds `data.noun`, `index.noun` and their like, as the archive of wordnet.princeton.edu or
Debian's package wordnet-base has them. The same files give the same bytes.

What captions of photos hardly ever use is left out, so that the package stays small: names (capital
letters), terms of more than two words, senses after the fourth, glosses.
"""

import gzip
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

SENSES = 4  # of a lemma, the most frequent first
# Lexicographer files whose pairs of words ("fire hydrant") are kept; `lexnames(5WN)` numbers them.
PAIRED = frozenset({5, 6, 8, 13, 14, 15, 17, 18, 20, 27})
_PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


def build(folder: Path) -> dict[str, Any]:
    """The lexicon as JSON holds it; `wordnet.py` says what its fields mean."""
    counts = _counts(folder / "cntlist.rev")
    lexicon: dict[str, Any] = {}
    for part, letter in _PARTS.items():
        synsets = _synsets(folder / f"data.{part}")
        index = {
            lemma: offsets[:SENSES]
            for lemma, offsets in _index(folder / f"index.{part}")
            if _wanted(lemma, synsets[offsets[0]], part)
        }
        kept = _closure(index, synsets)
        place = {offset: at for at, offset in enumerate(sorted(kept))}
        lexicon[letter] = {
            "senses": {lemma: [place[o] for o in offsets] for lemma, offsets in index.items()},
            "counts": {lemma: counts[part, lemma] for lemma in index if counts.get((part, lemma))},
            "category": [synsets[offset]["category"] for offset in sorted(kept)],
            "parents": [
                sorted(place[p] for p in synsets[offset]["parents"] if p in place)
                for offset in sorted(kept)
            ],
            "opposites": [
                sorted(place[p] for p in synsets[offset]["opposites"] if p in place)
                for offset in sorted(kept)
            ],
        }
    return lexicon


def _wanted(lemma: str, first: dict, part: str) -> bool:
    words = lemma.split("_")
    if not all(word.replace("-", "").isalpha() for word in words):
        return False
    if first["names"].get(lemma) is None:  # only written with capitals: a name
        return False
    if part == "adv":
        return len(words) == 1
    return len(words) == 1 or (part == "noun" and len(words) == 2 and first["category"] in PAIRED)


def _closure(index: dict[str, list[int]], synsets: dict[int, dict]) -> set[int]:
    """All synsets of the lemmas and whatever they are kinds of."""
    todo = [offset for offsets in index.values() for offset in offsets]
    kept: set[int] = set()
    while todo:
        offset = todo.pop()
        if offset not in kept:
            kept.add(offset)
            todo += synsets[offset]["parents"]
    return kept


def _synsets(path: Path) -> dict[int, dict]:
    """By offset: category, names, parents (hypernyms; of a satellite adjective its head),
    opposites (antonyms).
    """
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.split(" | ")[0].split()
        words = int(fields[3], 16)
        names = [fields[4 + 2 * i].split("(")[0] for i in range(words)]
        at = 4 + 2 * words
        parents, opposites = [], []
        for i in range(int(fields[at])):
            symbol, target, _, _ = fields[at + 1 + 4 * i : at + 5 + 4 * i]
            if symbol in ("@", "@i") or (symbol == "&" and fields[2] == "s"):
                parents.append(int(target))
            elif symbol == "!":
                opposites.append(int(target))
        found[int(fields[0])] = {
            "category": int(fields[1]),
            "names": dict.fromkeys((name for name in names if name == name.lower()), True),
            "parents": parents,
            "opposites": opposites,
        }
    return found


def _index(path: Path) -> list[tuple[str, list[int]]]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            senses = int(fields[2])
            found.append((fields[0], [int(offset) for offset in fields[-senses:]]))
    return found


def _counts(path: Path) -> dict[tuple[str, str], int]:
    """How often WordNet's tagged texts use a lemma as each part of speech."""
    parts = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
    totals: dict[tuple[str, str], int] = defaultdict(int)
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        lemma, _, rest = key.partition("%")
        totals[parts[rest[0]], lemma] += int(count)
    return totals


def main() -> None:
    """Reads argv[1], writes argv[2]."""
    folder, out = map(Path, sys.argv[1:])
    text = json.dumps(build(folder), separators=(",", ":"), sort_keys=True)
    with out.open("wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as z:
        z.write(text.encode())


if __name__ == "__main__":
    main()
