"""WordNet 3.0 as the package ships it: which word is a kind of which, and what kind of thing it is.

The asset is made by `build_lexicon.py`; its licence is beside it. It is read on first use.
"""

import gzip
import json
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Literal

Part = Literal["n", "v", "a", "r"]

# Names of WordNet's lexicographer files, by their numbers; lexnames(5WN).
CATEGORIES = """adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute
    noun.body noun.cognition noun.communication noun.event noun.feeling noun.food noun.group
    noun.location noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession
    noun.process noun.quantity noun.relation noun.shape noun.state noun.substance noun.time
    verb.body verb.change verb.cognition verb.communication verb.competition verb.consumption
    verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social
    verb.stative verb.weather adj.ppl""".split()


@cache
def _lexicon() -> dict[str, Any]:
    path = files("balcap_jax") / "assets" / "lexicon" / "wordnet.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def senses(lemma: str, part: Part) -> tuple[int, ...]:
    """Synsets of `lemma`, the most frequent first; empty for an unknown word. A term of two words
    has a space between them.
    """
    return tuple(_lexicon()[part]["senses"].get(lemma.replace(" ", "_"), ()))


def lemmas(part: Part) -> tuple[str, ...]:
    """All words of this part of speech, in the alphabet's order."""
    return tuple(sorted(word.replace("_", " ") for word in _lexicon()[part]["senses"]))


def frequency(lemma: str, part: Part) -> int:
    """How often the texts that WordNet counts use `lemma` as this part of speech."""
    return _lexicon()[part]["counts"].get(lemma.replace(" ", "_"), 0)


def category(synset: int, part: Part) -> str:
    """One of CATEGORIES."""
    return CATEGORIES[_lexicon()[part]["category"][synset]]


def categories(lemma: str, part: Part) -> tuple[str, ...]:
    """The category of each sense of `lemma`, the most frequent sense first."""
    return tuple(category(synset, part) for synset in senses(lemma, part))


def parents(synset: int, part: Part) -> tuple[int, ...]:
    """What `synset` is a kind of, one level up; of an adjective, the head of its cluster."""
    return tuple(_lexicon()[part]["parents"][synset])


def opposites(lemma: str, part: Part) -> frozenset[int]:
    """Synsets of the antonyms of `lemma` and of the heads of its clusters."""
    found: set[int] = set()
    for synset in senses(lemma, part):
        for near in (synset, *(parents(synset, part) if part == "a" else ())):
            found.update(_lexicon()[part]["opposites"][near])
    return frozenset(found)


@lru_cache(maxsize=1 << 16)
def ancestors(synset: int, part: Part) -> dict[int, int]:
    """`synset` and all it is a kind of, with the number of levels up (the shortest way)."""
    found = {synset: 0}
    level = [synset]
    while level:
        upper = [p for s in level for p in parents(s, part) if p not in found]
        for parent in upper:
            found[parent] = found[level[0]] + 1
        level = list(dict.fromkeys(upper))
    return found


@lru_cache(maxsize=1 << 16)
def photo_senses(noun: str) -> tuple[int, ...]:
    """Senses of a noun with those first that a photo can show: "table" is furniture, not data."""
    return tuple(sorted(senses(noun, "n"), key=lambda s: category(s, "n") not in VISIBLE))


# Categories of what a photo can show.
VISIBLE = frozenset(
    f"noun.{name}"
    for name in """animal artifact body food location object person phenomenon plant substance
    Tops""".split()
)


@lru_cache(maxsize=1 << 18)
def levels_up(noun: str, other: str) -> int | None:
    """How many levels `other` is above the main sense of `noun`: 0 for synonyms, None where `noun`
    is no kind of `other`. Rare senses would make almost anything a kind of anything.
    """
    main, *others = photo_senses(noun)[:3] or (None,)
    # What grows is named as what is eaten: a tomato is a plant first, and then a vegetable.
    food = [s for s in others if category(s, "n") == "noun.food"]
    ups = [ancestors(s, "n") for s in (main, *food) if s is not None]
    found = [up[t] for up in ups for t in photo_senses(other)[:2] if t in up]
    return min(found, default=None)


def synonyms(one: str, other: str, part: Part) -> bool:
    """Whether the words share one of their two most frequent senses."""
    return not set(senses(one, part)[:2]).isdisjoint(senses(other, part)[:2])
