"""Text -> sentences of tagged words with their lemmas.

Lemmas and the parts of speech a word can have come from `lemminflect`; which of them it has is
decided here from its neighbours. Captions of photos are simple enough for rules: a noun phrase
opens with a determiner, a number or an adjective, and a verb that could be a noun shows itself by
agreement ("a dog runs", "dogs run", "a bus stop").
"""

import re
from functools import cache, lru_cache
from typing import NamedTuple

from balcap_jax.rewards.lexical.vocabulary import COLOURS, SPELLINGS
from balcap_jax.rewards.lexical.wordnet import frequency, senses

DETERMINERS = frozenset("a an the this that these those its his her their our my your".split())
QUANTIFIERS = frozenset(
    """some any each every both another other several many few various multiple numerous all most
    enough such much more half""".split()
)
NUMBERS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}
PREPOSITIONS = frozenset(
    """about above across after against along alongside amid amidst among amongst around at atop
    before behind below beneath beside besides between beyond by down during for from in inside into
    like near next of off on onto opposite out outside over past through throughout to toward
    towards under underneath up upon via with within without""".split()
)
CONJUNCTIONS = frozenset("and or but nor while as because so if when than though although".split())
RELATIVES = frozenset("which who whom whose where that".split())
PRONOUNS = frozenset(
    """he she it they them him i you we us me there one's himself herself itself themselves
    everyone everything nothing anyone who what""".split()
)
AUXILIARIES = frozenset(
    """is are was were be been being am has have had do does did can could may might must shall
    should will would""".split()
)
BE = frozenset("is are was were be been being am".split())
NEGATIONS = frozenset("no not never without neither nor none nobody n't lacks lacking".split())
_ADVERBS = frozenset(
    """very quite too also just still only together apart away back here there now then almost
    nearly slightly partially partly fully mostly mainly likely perhaps possibly probably maybe
    however overall well""".split()
)
# Read first, since their most frequent part of speech in captions is fixed.
_FIXED = (
    {"to": "TO", "'s": "POSS"}
    | dict.fromkeys(PRONOUNS, "PRON")
    | dict.fromkeys(CONJUNCTIONS, "CONJ")
    | dict.fromkeys(PREPOSITIONS - {"to"}, "PREP")
    | dict.fromkeys(RELATIVES, "REL")
    | dict.fromkeys(AUXILIARIES, "AUX")
    | dict.fromkeys(_ADVERBS, "ADV")
    | dict.fromkeys(NEGATIONS - {"without"}, "NEG")
    | dict.fromkeys(QUANTIFIERS, "QUANT")
    | dict.fromkeys(DETERMINERS, "DET")
    | dict.fromkeys(NUMBERS, "NUM")
)
_WORD = re.compile(r"\d+|[^\W\d_]+(?:[-'’][^\W\d_]+)*|[.!?;:,\n]|[^\s\w]")
# Prepositions of several words, which are read as one.
_PLACES = re.compile(
    r"\b(?:in front of|in back of|in the (?:middle|center|background|foreground|corner) of|next to|"
    r"close to|on top of|on the (?:side|edge|back|front) of|at the (?:top|bottom|end) of|"
    r"to the (?:left|right|side) of|on the (?:left|right) (?:side )?of|out of|because of)\b"
)
_CLOSE_UP = re.compile(r"\bclose up(?= (?:of|photo|picture|image|view|shot)\b)")
# Words that people write as two.
_SPLIT = re.compile(
    r"\b(surf|skate|snow|key) (?=boards?\b)|\b(bath|bed|rest) (?=rooms?\b)|\b(cup) (?=cakes?\b)|"
    r"\b(run) (?=ways?\b)|\b(air) (?=ports?\b)|\b(suit) (?=cases?\b)|\b(back) (?=packs?\b)|"
    r"\b(motor) (?=bikes?\b|cycles?\b)|\b(base|basket|foot) (?=balls?\b)|\b(side) (?=walks?\b)"
)
_TV = re.compile(r"\bt\.\s?v\b\.?", re.IGNORECASE)
# In captions of photos these are nouns, whatever else they can be.
_NOUNS = frozenset(
    "bear bears cake cakes building buildings dots someone somebody something anything".split()
)
_ALONE = frozenset("that this these those her his".split())
_ENDS = frozenset(".!?;:\n")
_OPENS_PHRASE = frozenset({"DET", "NUM", "ADJ", "POSS", "QUANT"})
_PARTS = {"NOUN": "n", "VERB": "v", "ADJ": "a", "ADV": "r"}


class Word(NamedTuple):
    """One word of a sentence.

    Attributes:
      text: in lower case.
      lemma: its dictionary form.
      tag: NOUN, VERB, ADJ, ADV, DET, QUANT, NUM, PREP, TO, CONJ, REL, PRON, AUX, NEG, POSS or "," .
      plural: a noun in the plural.
    """

    text: str
    lemma: str
    tag: str
    plural: bool = False


class Sentence(NamedTuple):
    """A sentence's words and commas; `closed` by a full stop or its like."""

    text: str
    words: tuple[Word, ...]
    closed: bool


@lru_cache(maxsize=1 << 14)
def sentences(text: str) -> tuple[Sentence, ...]:
    """The sentences of `text`; a new line ends one, too."""
    text = _TV.sub("tv", text)
    found: list[Sentence] = []
    run: list[re.Match] = []

    def close(*, closed: bool) -> None:
        if run:
            span = text[run[0].start() : run[-1].end()]
            found.append(Sentence(span, _tagged([m.group() for m in run]), closed))
            run.clear()

    for match in _WORD.finditer(text):
        mark = match.group()
        if mark in _ENDS:
            close(closed=mark in ".!?")
        elif mark[0].isalnum() or mark == ",":
            run.append(match)
    close(closed=False)
    return tuple(sentence for sentence in found if any(w.tag != "," for w in sentence.words))


def _tagged(texts: list[str]) -> tuple[Word, ...]:
    forms = [piece for text in texts for piece in _pieces(text.lower().replace("’", "'"))]
    line = _SPLIT.sub(lambda m: m.group().rstrip(), _CLOSE_UP.sub("close-up", " ".join(forms)))
    forms = _PLACES.sub(lambda m: m.group().replace(" ", "_"), line).split(" ")
    words: list[Word] = []
    for at, form in enumerate(forms):
        following, after = (*forms[at + 1 : at + 3], "", "")[:2]
        if form == "'s" and following.endswith("ing") and not _can_be_noun(after):
            form = "is"  # "the dog's running"
        if form in COLOURS and following == "and" and after in COLOURS:
            words.append(Word(form, form, "ADJ"))  # "a blue and white boat"
        else:
            words.append(_word(form, words[-1] if words else None, following))
    return tuple(words)


def _pieces(form: str) -> tuple[str, ...]:
    """ "dog's" -> "dog", "'s"; "isn't" -> "is", "n't"; "three-year-old" stays one word."""
    if form.endswith("n't"):
        return ({"ca": "can", "wo": "will"}.get(form[:-3], form[:-3]), "n't")
    for ending, word in (("'s", "'s"), ("'re", "are"), ("'ve", "have"), ("'ll", "will")):
        if form.endswith(ending) and len(form) > len(ending):
            return (form[: -len(ending)], word)
    return (form,)


def _word(form: str, before: Word | None, following: str) -> Word:
    if form == ",":
        return Word(",", ",", ",")
    if "_" in form:
        return Word(form.replace("_", " "), form.replace("_", " "), "PREP")
    if form.isdigit():
        return Word(form, form, "NUM")
    if form in _FIXED:
        return Word(form, form, _fixed(form, before, following))
    tag = _choose(form, before, following)
    lemma = lemma_of(form, tag)
    plural = tag == "NOUN" and is_plural(form, lemma)
    return Word(form, SPELLINGS.get(lemma, lemma) if tag == "NOUN" else lemma, tag, plural)


def _fixed(form: str, before: Word | None, following: str) -> str:
    """The tag of a closed-class word; of determiners that may stand alone, by their place."""
    if form == "that" and before is not None and before.tag == "NOUN":
        return "REL"
    alone = not _can_be_noun(following) and following not in QUANTIFIERS | NUMBERS.keys()
    if form in _ALONE and alone:
        return "PRON"
    return _FIXED[form]


def _choose(form: str, before: Word | None, following: str) -> str:
    """The part of speech of an open-class word from what it can be and what stands around it."""
    can = _candidates(form)
    if len(can) == 1:
        return can[0]
    tag = before.tag if before else ""
    if before is not None and before.text == "no":
        tag = "DET"
    participle = "VERB" in can and _is_participle(form)
    if tag in _OPENS_PHRASE or (tag == "PREP" and not participle):
        if "ADJ" in can and _can_be_noun(following):
            return "ADJ"
        if "NOUN" in can:
            return "NOUN"
        return "ADJ" if "ADJ" in can or participle else can[0]
    if tag in ("AUX", "ADV", "NEG"):
        noun_after = before is not None and before.text in BE and not participle
        verbs = ("VERB",) if participle else ()
        for choice in (*verbs, "ADJ", *(("NOUN",) if noun_after else ()), "VERB"):
            if choice in can:
                return choice
    if tag == "TO" and "VERB" in can and lemma_of(form, "VERB") == form:
        return "VERB"
    if tag in ("PRON", "REL") and "VERB" in can:
        return "VERB"
    if tag == "NOUN" and "VERB" in can:
        assert before is not None
        agrees = (form == lemma_of(form, "VERB")) == before.plural
        follows = not following or following in _FIXED or following == "," or "_" in following
        if participle or (agrees and (follows or "NOUN" not in can)):
            return "VERB"
    if participle and form.endswith("ing") and not _can_be_noun(following):
        return "VERB"
    if "ADJ" in can and _can_be_noun(following):
        return "ADJ"
    return max(can, key=lambda part: (part == "NOUN", frequency(form, _PARTS[part])))


@cache
def _lookup(form: str) -> dict[str, tuple[str, ...]]:
    from lemminflect import getAllLemmas  # its tables take a third of a second

    found = dict(getAllLemmas(form))
    found.pop("AUX", None)
    found.pop("PROPN", None)
    return found


@lru_cache(maxsize=1 << 16)
def _candidates(form: str) -> tuple[str, ...]:
    """Parts of speech that `form` can have; never empty."""
    if form in _NOUNS:
        return ("NOUN",)
    if form == "ready":
        return ("ADJ",)
    found = [part for part in ("NOUN", "VERB", "ADJ", "ADV") if part in _lookup(form)]
    for part in ("NOUN", "ADJ"):
        if part not in found and senses(form, _PARTS[part]):
            found.append(part)
    # A reading that WordNet's texts never show beside one that they show often is a curiosity.
    counts = {part: frequency(_lookup(form).get(part, (form,))[0], _PARTS[part]) for part in found}
    most = max(counts.values(), default=0)
    found = [part for part in found if most < 20 or counts[part] * 50 >= most]
    if found:
        return tuple(found)
    if form.endswith("ly"):
        return ("ADV",)
    if form.endswith("ing"):
        return ("VERB",)
    if "-" in form and form.endswith(("ed", "y", "old", "like")):
        return ("ADJ",)
    return ("VERB", "ADJ") if form.endswith("ed") else ("NOUN",)


@lru_cache(maxsize=1 << 16)
def is_known(form: str) -> bool:
    """Whether any list has the word; parts of a word with a hyphen count for it."""
    if form in _FIXED or form in SPELLINGS or form.isdigit() or " " in form:
        return True
    if _lookup(form) or any(senses(form, part) for part in ("n", "v", "a", "r")):
        return True
    parts = form.replace("'", "-").split("-")
    return len(parts) > 1 and all(is_known(part) for part in parts if part)


@lru_cache(maxsize=1 << 16)
def lemma_of(form: str, tag: str) -> str:
    """The dictionary form of `form` as this part of speech."""
    choices = _lookup(form).get(tag, ())
    if not choices and tag in ("NOUN", "VERB") and not senses(form, _PARTS[tag]):
        from lemminflect import getAllLemmasOOV

        choices = getAllLemmasOOV(form, tag).get(tag, ())
    if len(choices) > 1:  # "glasses": glass or glasses, "leaves": leave or leaf
        return max(choices, key=lambda lemma: frequency(lemma, _PARTS[tag]))
    return choices[0] if choices else form


_PLURALS = frozenset("people men women children police cattle pants jeans shorts".split())


@lru_cache(maxsize=1 << 16)
def is_plural(form: str, lemma: str) -> bool:
    """Whether a noun's form is its plural."""
    return form in _PLURALS or (form != lemma and form.endswith(("s", "men", "ves", "eet", "ice")))


def _is_participle(form: str) -> bool:
    lemma = lemma_of(form, "VERB")
    return form != lemma and not form.endswith("s")


def _can_be_noun(form: str) -> bool:
    if not form or form in _FIXED or not form[0].isalpha():
        return False
    can = _candidates(form)
    return "NOUN" in can or "ADJ" in can
