"""Does a sentence describe what can be pointed at, or does it analyse, guess, judge and comment?

Three kinds of signs, each from the sentence alone: words that mark a guess or a comment, what kinds
of things its nouns and verbs are (WordNet's categories), and whether it names anything visible.
"""

from collections.abc import Sequence
from functools import lru_cache

from balcap_jax.rewards.lexical.generality import is_anything
from balcap_jax.rewards.lexical.statements import FRAME, GROUPS
from balcap_jax.rewards.lexical.vocabulary import COLOURS, PERSONS
from balcap_jax.rewards.lexical.wordnet import categories, category, photo_senses
from balcap_jax.rewards.lexical.words import NUMBERS, Word, sentences

# Lemmas by what they do to a sentence.
GUESSES = frozenset(
    """may might could would should can will must likely possibly probably perhaps maybe potentially
    presumably seemingly apparently suggest indicate imply seem appear assume guess speculate
    unclear uncertain unknown possible probable potential likelihood possibility whether if unless
    expect intend plan hope want need require enable allow help ensure encourage""".split()
)
COMMENTS = frozenset(
    """because since therefore thus hence due overall moreover furthermore additionally however
    although despite often usually typically commonly generally sometimes always essential
    important unique interesting remarkable notable significant common typical ideal perfect
    suitable appropriate necessary safe dangerous challenging successful popular fun funny humorous
    amusing unusual creative creatively fascinating enjoyable pleasant cozy inviting serene peaceful
    tranquil lively vibrant dynamic festive warm charming elegant stylish casual comfortable
    playful cheerful joyful happy sad relaxed leisurely picturesque captivating striking
    impressive visually aesthetically harmonious create add enhance contribute provide evoke convey
    highlight showcase emphasize emphasise reflect represent symbolize symbolise signify demonstrate
    illustrate express capture enjoy engage experience explore celebrate appreciate admire
    participate practice focus relate involve depend affect influence remind serve
    you viewer one's we us our everyone anyone purpose reason atmosphere ambiance mood sense
    feeling vibe touch charm beauty""".split()
)
# "Getting ready to catch a ball": a posture that one sees, and what for belongs to it.
_ABOUT_TO = frozenset("ready prepare try".split())
# The image shows "...": what follows describes.
_SHOWS = frozenset("show depict feature display include contain have be see visible".split())
_ABSTRACT = frozenset(
    f"noun.{name}"
    for name in """act attribute cognition communication event feeling motive process relation state
    possession group""".split()
)
_NOWHERE = frozenset(
    f"noun.{name}" for name in "attribute cognition feeling motive relation state".split()
)
_MENTAL = frozenset(
    "verb.cognition verb.emotion verb.communication verb.social verb.change".split()
)
_PLACES = frozenset(
    """on in under behind beside near above below against between around next inside outside
    wearing holding sitting standing parked visible located positioned placed""".split()
)

# Weights of the signs; only their order of size matters. docs/judges.md says what they reach.
_GUESS, _COMMENT, _MENTAL_VERB, _NOTHING_VISIBLE = 1.2, 1.0, 0.7, 1.0
_ABSTRACT_NOUN, _EVENT_NOUN = 0.5, 0.35
_PURPOSE, _VISIBLE, _PLACE, _START = 0.7, 0.35, 0.25, 0.7


@lru_cache(maxsize=1 << 16)
def describes(text: str) -> float:
    """The chance, from 0 to 1, that `text` describes and does not analyse."""
    words = [word for sentence in sentences(text) for word in sentence.words]
    return 1 / (1 + 2.718281828 ** -_evidence(words))


def _evidence(words: Sequence[Word]) -> float:
    """Log-odds: signs for a description less signs against it."""
    nouns = [w for w in words if w.tag == "NOUN" and w.lemma not in FRAME | GROUPS]
    visible = [w for w in nouns if is_visible(w.lemma)]
    evidence = _START
    evidence -= _GUESS * sum(w.lemma in GUESSES or w.text in GUESSES for w in words)
    evidence -= _COMMENT * sum(w.lemma in COMMENTS or w.text in COMMENTS for w in words)
    evidence -= _ABSTRACT_NOUN * sum(is_nowhere(w.lemma) for w in nouns)
    evidence -= _EVENT_NOUN * (len(nouns) - len(visible))
    evidence -= _MENTAL_VERB * sum(w.tag == "VERB" and _is_mental(w.lemma) for w in words)
    evidence -= _PURPOSE * _purposes(words)
    evidence += _VISIBLE * min(3, len(visible))
    evidence += _PLACE * sum(
        w.text in _PLACES or w.text in NUMBERS or w.text in COLOURS for w in words
    )
    return evidence - (_NOTHING_VISIBLE if not visible else 0.0)


def _purposes(words: Sequence[Word]) -> int:
    """ "to ride": what somebody is about to do, or what something is for."""
    before = [None, *words]
    return sum(
        one.tag == "TO" and other.tag == "VERB" and not (last and last.lemma in _ABOUT_TO)
        for last, one, other in zip(before, words, words[1:], strict=False)
    )


@lru_cache(maxsize=1 << 16)
def is_visible(noun: str) -> bool:
    """Whether a noun names something that a photo can show."""
    if noun in PERSONS or is_anything(noun):
        return True
    found = photo_senses(noun)
    return not found or category(found[0], "n") not in _ABSTRACT


@lru_cache(maxsize=1 << 16)
def is_nowhere(noun: str) -> bool:
    """Whether a noun only names what nobody can point at: a feeling, an idea, a quality."""
    found = photo_senses(noun)
    colour = noun in COLOURS or noun in FRAME
    return bool(found) and not colour and all(category(s, "n") in _NOWHERE for s in found[:2])


@lru_cache(maxsize=1 << 16)
def _is_mental(verb: str) -> bool:
    found = categories(verb, "v")
    return bool(found) and verb not in _SHOWS and found[0] in _MENTAL
