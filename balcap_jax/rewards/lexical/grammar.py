"""Mistakes of agreement and form that a sentence makes: "a dogs", "dogs runs", "is sit", "him sit".

Pairs of parts of speech are checked in `language.py`; here it is what the words' forms must share.
Where the reading is unsure nothing is counted, so that good sentences stay whole.
"""

from collections.abc import Iterator, Sequence

from balcap_jax.rewards.lexical.collocations import is_intransitive
from balcap_jax.rewards.lexical.statements import GROUPS
from balcap_jax.rewards.lexical.vocabulary import COLOURS
from balcap_jax.rewards.lexical.words import BE, NUMBERS, Sentence, Word

_SINGULAR = frozenset("a an this that each every another one".split())
_PLURAL = frozenset("these those many few several both various multiple numerous".split()) | {
    word for word, value in NUMBERS.items() if value > 1
}
# One of them has the form of many, or many of them the form of one.
_PAIRS = frozenset(
    """pants jeans shorts glasses sunglasses scissors binoculars goggles skis tights headphones
    overalls trousers stairs woods pajamas swimsuits series sheep deer fish aircraft moose bison
    cattle folk police species tongs sweats people clothes bus lens gas""".split()
)
_HAVE = frozenset("has have had having".split())
_DO = frozenset("do does did can could may might must shall should will would".split())
# Verbs whose past or participle is their base.
_UNCHANGED = frozenset(
    """put set cut hit let shut hurt cast spread split bet quit rid run come become overcome beat
    read burst cost thrust shed fit wet knit bid slit lay bound wound ground found saw fell left
    lit""".split()
)
_BOUND = frozenset({"NOUN", "VERB", "ADJ", "ADV"})
_LOAD, _FREE = 2, 5  # words that one binding word holds together, and those that need none
_SUBORDINATE = frozenset("while when as because if so although though".split())
_SUBJECTS = frozenset("he she they i we".split())
_OBJECTS = frozenset("him them me us".split())
_THIRD = frozenset("he she it".split())
_OTHERS = frozenset("they we i".split())
_OF_ONE = frozenset("is was has does".split())
_OF_MANY = frozenset("are were have do".split())


def mistakes(sentence: Sentence) -> int:
    """How many mistakes of agreement and form a sentence has."""
    words = sentence.words
    return (
        sum(map(_is_number_wrong, _phrases(words)))
        + _is_subject_wrong(words)
        + sum(_is_pair_wrong(words, at) for at in range(len(words)))
        + _clauses_unjoined(words)
        + _unbound(words)
    )


def _unbound(words: Sequence[Word]) -> int:
    """How many words there are too many for those that bind them: articles, prepositions and their
    like.
    """
    content = sum(w.tag in _BOUND for w in words)
    return max(0, content - _LOAD * (len(words) - content) - _FREE)


def _clauses_unjoined(words: Sequence[Word]) -> int:
    """How many finite verbs a sentence has beyond those that its joints allow: one, and one more
    for each conjunction, relative or comma. A base behind one thing ("she watches a dog eat") is
    none, and one more is let pass: "train tracks" may be read as what a train does.
    """
    finite = 0
    for before, word in zip((None, *words), words, strict=False):
        if word.tag == "AUX":
            finite += before is None or before.tag != "AUX"
        elif word.tag == "VERB" and word.text not in _UNCHANGED:
            finite += _is_loose(before) if word.text == word.lemma else word.text.endswith("s")
    joints = sum(w.tag in ("CONJ", "REL", ",") for w in words)
    return max(0, finite - joints - 2)


def _is_loose(before: Word | None) -> bool:
    """Whether a base form behind this word is a verb of its own, with or without a subject."""
    if before is None or before.tag in ("TO", "AUX", "PRON", "CONJ", "NEG"):
        return False
    return before.tag != "NOUN" or before.plural


def _phrases(words: Sequence[Word]) -> Iterator[tuple[Word, Word]]:
    """The word that opens a noun phrase and says how many, and the phrase's noun."""
    for at, opener in enumerate(words):
        if opener.text not in _SINGULAR and opener.text not in _PLURAL:
            continue
        end = at + 1
        while end < len(words) and words[end].tag in ("ADJ", "NOUN"):
            end += 1
        if end < len(words) and words[end].tag in ("POSS", "VERB") and end - at < 2:
            continue
        if end < len(words) and words[end].text == "'s":
            continue
        if end > at + 1 and words[end - 1].tag == "NOUN":
            yield opener, words[end - 1]


def _is_number_wrong(phrase: tuple[Word, Word]) -> bool:
    opener, noun = phrase
    if noun.text in _PAIRS or noun.lemma in _PAIRS:
        return False
    if opener.text in _SINGULAR:
        return noun.plural
    return not noun.plural and noun.lemma not in GROUPS


def _is_subject_wrong(words: Sequence[Word]) -> bool:
    """Whether the first phrase and the verb right behind it differ in number."""
    end = 0
    while end < len(words) and words[end].tag in ("DET", "QUANT", "NUM", "ADJ", "NOUN"):
        end += 1
    if not 0 < end < len(words) or words[end - 1].tag != "NOUN":
        return False
    noun, verb = words[end - 1], words[end]
    if noun.lemma in GROUPS or noun.text in _PAIRS - {"people"} or noun.lemma in _MASSED:
        return False
    return _disagrees(verb, many=noun.plural)


_MASSED = frozenset("team crowd family class band audience crew staff rest majority".split())


def _disagrees(verb: Word, *, many: bool) -> bool:
    if verb.tag == "AUX":
        return verb.text in (_OF_ONE if many else _OF_MANY)
    if verb.tag != "VERB":
        return False
    if many:
        return verb.text != verb.lemma and verb.text.endswith("s")
    return verb.text == verb.lemma and verb.text not in _UNCHANGED


def _is_pair_wrong(words: Sequence[Word], at: int) -> bool:
    word = words[at]
    before = words[at - 1] if at else None
    after = words[at + 1] if at + 1 < len(words) else None
    verb_after = after is not None and after.tag in ("VERB", "AUX")
    if word.text in _OBJECTS:
        opens = before is None or before.tag in ("CONJ", ",")
        return opens and verb_after and not after.text.endswith(("ing", "ed"))
    if word.tag == "PRON" and verb_after:
        if word.text in _THIRD:
            return _disagrees(after, many=False)
        if word.text in _OTHERS and after.text not in ("am", "was"):
            return _disagrees(after, many=True)
    if word.text in _SUBJECTS and before is not None and before.tag in ("PREP", "VERB"):
        return not verb_after
    if word.text in COLOURS and before is not None and after is not None:
        return before.tag == "NOUN" and after.tag == "AUX"  # "the dog brown is"
    if word.tag != "VERB":
        return False
    base = word.text == word.lemma and word.lemma not in _UNCHANGED
    if before is not None and base and (before.text in BE | _HAVE or before.tag in ("PREP", "ADJ")):
        return True  # "is sit", "in sit", "striped sit"
    if before is not None and before.tag == "ADV" and base and at > 1:
        return words[at - 2].text in BE | _HAVE  # "are newly sit"
    if before is not None and before.text in _SUBORDINATE:  # "while wears"
        return word.text != word.lemma and word.text.endswith("s")
    if before is not None and before.text in _DO and word.text != word.lemma:
        return True
    if before is not None and before.tag == "VERB" and before.text.endswith("ing") and base:
        return True  # "playing sit"
    opens_object = after is not None and after.tag in ("DET", "POSS", "NUM")
    return opens_object and word.text != "being" and is_intransitive(word.lemma)
