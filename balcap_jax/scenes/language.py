"""The words of scenes: one lexicon that the caption writer writes with and the scene judge reads
with.

A caption is split to sentences, a sentence to lexemes: the longest phrases of the lexicon, each
with a tag (its part in the grammar) and a value (what it says of a scene). A word that is not in
the lexicon gets the tag UNKNOWN.
"""

import re
from functools import cache
from typing import NamedTuple

from balcap_jax.scenes.world import COLOURS, WORDS

PLURAL_NUMBERS = {2: "two", 3: "three", 4: "four"}

SHAPE_WORDS = {
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"),),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"),),
    "diamond": (("diamond", "diamonds"),),
    "cross": (("cross", "crosses"),),
    "ring": (("ring", "rings"),),
}
COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "violet")}
SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big")}
TEXTURE_WORDS = {
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered",),
}
TEXTURE_PHRASES = {
    "striped": ("with stripes",),
    "dotted": ("with dots", "covered in dots"),
    "checkered": ("with a checkered pattern",),
}

# (row, col) constraints; None leaves that axis open.
PLACE_PHRASES = {
    (0, 0): ("in the top left corner", "at the top left"),
    (0, 2): ("in the top right corner", "at the top right"),
    (2, 0): ("in the bottom left corner", "at the bottom left"),
    (2, 2): ("in the bottom right corner", "at the bottom right"),
    (1, 1): ("in the centre", "in the middle"),
    (0, None): ("at the top", "near the top"),
    (2, None): ("at the bottom", "near the bottom"),
    (None, 0): ("on the left", "on the left side"),
    (None, 2): ("on the right", "on the right side"),
}

# Relation names are of (subject, object); the second set reads as the first one turned around.
RELATION_PHRASES = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
    "inside": ("inside",),
    "contains": ("contains", "holds"),
    "behind": ("behind", "partly hidden behind"),
    "front": ("in front of", "partly covers"),
}
TURNED = {"right": "left", "below": "above", "contains": "inside", "behind": "front"}

# Background: what may stand after "set against", and after "the background is".
BACKGROUND_PHRASES = {
    "white": ("a plain white background", "plain white"),
    "grey": ("a plain grey background", "plain grey"),
    "beige": ("a plain beige background", "plain beige"),
    "teal": ("a plain teal background", "plain teal"),
    "grass": ("a grassy field under a blue sky", "a grassy field"),
    "beach": ("a sandy beach under a pale sky", "a sandy beach"),
    "snow": ("a snowy field under a night sky", "a snowy field"),
    "brick": ("a brick wall", "a wall of red bricks"),
    "wood": ("wooden boards", "a surface of wooden boards"),
    "grid": ("a sheet of grid paper", "grid paper"),
}

# Remarks that are true of any image and point at nothing in it.
META_SENTENCES = (
    "The composition creates a sense of balance.",
    "The overall scene feels calm and harmonious.",
    "This arrangement adds depth to the image.",
    "The colours work together to create a playful mood.",
    "The picture invites the viewer to look closer.",
    "The careful placement draws attention to each element.",
    "The contrast gives the image a modern and simple style.",
    "It conveys a feeling of order and clarity.",
    "The image has an abstract and artistic quality.",
    "Every element contributes to the overall harmony.",
)

# Words that say nothing of a scene but hold sentences together.
_FUNCTION_WORDS = """
is are sits sit stands stand rests rest appears appear can be seen placed visible there and while
it they which that image picture scene shows show depicts set against background everything takes
place on in front reads says written word sign text of also
""".split()


class Lexeme(NamedTuple):
    """One phrase of a sentence.

    Attributes:
      tag: its part in the grammar.
      value: what it says of a scene (a shape, a number, a relation ...), None if nothing.
      text: the words as they stand in the caption.
    """

    tag: str
    value: object
    text: str


class Sentence(NamedTuple):
    """A sentence of a caption.

    Attributes:
      lexemes: without the closing mark.
      closed: ends in a full stop.
      capital: begins with a capital letter, and only words as on signs have more of them.
    """

    lexemes: tuple[Lexeme, ...]
    closed: bool
    capital: bool


_TOKEN = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*|\d+|\S")


@cache
def _lexicon() -> dict[tuple[str, ...], tuple[str, object]]:
    """Phrases (lower-case words) to (tag, value)."""
    entries: dict[str, tuple[str, object]] = {}
    for word in _FUNCTION_WORDS:
        entries[word] = (word, None)
    for sentence in META_SENTENCES:
        for word in _TOKEN.findall(sentence.lower().rstrip(".")):
            entries.setdefault(word, (word, "meta"))
    entries |= {word: ("A", 1) for word in ("a", "an", "one", "another")} | {"the": ("THE", None)}
    entries |= {word: ("NUMBER", n) for n, word in PLURAL_NUMBERS.items()}
    entries |= {"several": ("NUMBER", None)}
    for shape, forms in SHAPE_WORDS.items():
        for singular, plural in forms:
            entries[singular], entries[plural] = ("SHAPE", shape), ("SHAPES", shape)
    for tag, table in (
        ("COLOUR", COLOUR_WORDS),
        ("SIZE", SIZE_WORDS),
        ("TEXTURE", TEXTURE_WORDS),
        ("TEXTURED", TEXTURE_PHRASES),
        ("PLACE", PLACE_PHRASES),
    ):
        for value, phrases in table.items():
            entries |= dict.fromkeys(phrases, (tag, value))
    for relation, phrases in RELATION_PHRASES.items():
        # "contains" and "partly covers" are verbs, the others stand behind one.
        for phrase in phrases:
            verb = relation == "contains" or phrase == "partly covers"
            entries[phrase] = ("RELATES" if verb else "RELATION", relation)
    for background, phrases in BACKGROUND_PHRASES.items():
        for phrase in phrases:
            bare = phrase in (f"plain {background}",)
            entries[phrase] = ("BACKGROUND_IS" if bare else "BACKGROUND", background)
    entries |= {word.lower(): ("WRITTEN", word) for word in WORDS}
    entries |= {"it": ("IT", 1), "they": ("IT", 2), "them": ("IT", 2)}
    return {tuple(phrase.split()): entry for phrase, entry in entries.items()}


@cache
def _longest() -> dict[str, int]:
    """First words of phrases -> the length of the longest phrase that begins so."""
    found: dict[str, int] = {}
    for phrase in _lexicon():
        found[phrase[0]] = max(len(phrase), found.get(phrase[0], 1))
    return found


def sentences(caption: str) -> list[Sentence]:
    """Splits a caption to sentences of lexemes. Any text is read; nothing is dropped but white
    space.
    """
    found: list[Sentence] = []
    words: list[str] = []
    for token in _TOKEN.findall(caption):
        if token in ".!?" and words:  # a mark that ends nothing is a word not understood
            found.append(_sentence(words, closed=token == "."))
            words = []
        else:
            words.append(token)
    if words:
        found.append(_sentence(words, closed=False))
    return found


def _sentence(words: list[str], *, closed: bool) -> Sentence:
    lexicon, longest, lexemes, at = _lexicon(), _longest(), [], 0
    lower = [word.lower() for word in words]
    while at < len(words):
        for length in range(min(longest.get(lower[at], 1), len(words) - at), 0, -1):
            entry = lexicon.get(tuple(lower[at : at + length]))
            if entry is not None:
                lexemes.append(Lexeme(*entry, " ".join(words[at : at + length])))
                break
        else:
            length = 1
            word = words[at]
            known_mark = word in ',"'
            lexemes.append(Lexeme(word if known_mark else "UNKNOWN", None, word))
        at += length
    later = [words[0][1:], *(word for word in words[1:] if word not in WORDS)]
    capital = words[0][:1].isupper() and all(word == word.lower() for word in later)
    return Sentence(tuple(lexemes), closed, capital)


def tags(sentence: Sentence) -> tuple[str, ...]:
    """The sentence's grammar with its borders; values are left out."""
    start = "<S>" if sentence.capital else "<s>"
    return (start, *(lexeme.tag for lexeme in sentence.lexemes), "." if sentence.closed else "</s>")


def words_in(caption: str) -> int:
    """Length of a caption in words, as METHOD counts them: `str.split`."""
    return len(caption.split())
