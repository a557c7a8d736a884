"""The judge of generated scenes: exact, because the scene is known; instant and deterministic.

Precision and recall come from the claims of `scene_claims`. Linguistic quality is measured against
the language that the references are written in. A sentence counts by its length, and one that tells
nothing new is worth nothing:

- clarity: sentences whose every word is understood and belongs to a whole;
- fluency: sentences with a verb, an end and only such neighbourhoods of words as the references
have;
- coherency: what is stated is stated in sentences, not twice, and not against what was told before.
"""

import random
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.scene.claims import Claim, Reading, Remark, facts, read
from balcap_jax.rewards.verdicts import Assertion, Verdict
from balcap_jax.scenes.captions import describe
from balcap_jax.scenes.language import META_SENTENCES, Sentence, sentences, tags
from balcap_jax.scenes.world import Scene, random_scene

_VERBS = frozenset(
    """is are sits sit stands stand rests rest appears appear seen placed shows show depicts takes
    reads says RELATES creates feels adds work invites draws gives conveys has
    contributes""".split()
)
_NAMES = ("SHAPE", "SHAPES", "sign", "IT")
# What the bare name of a thing may hold beside its noun: "two small red circles in the middle".
_BARE = (*_NAMES, "A", "THE", "NUMBER", "SIZE", "COLOUR", "TEXTURE", "TEXTURED", "PLACE")
_RELATIONS = ("left", "above", "inside", "front")


class SceneJudge:
    """Judges captions of examples that have a scene."""

    def __call__(
        self, examples: Sequence[Example], captions: Sequence[str]
    ) -> list[Verdict | None]:
        """One verdict per pair. An example without a scene cannot be judged: None, no signal."""
        return [
            None if example.scene is None else judge(caption, example.scene, example.reference)
            for example, caption in zip(examples, captions, strict=True)
        ]

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """The statements of the reference, in the order of `Verdict.covered`.

        Raises:
          UserError: the example has no scene.
        """
        if example.scene is None:
            raise UserError(
                f"example {example.id!r} has no scene, and the scene judge knows no other truth; "
                "choose --judge.kind lexical or llm for photographs, or use rows written by "
                "`balcap scenes`."
            )
        return tuple(claim.text for claim in _units(example.reference, example.scene))


def judge(caption: str, scene: Scene, reference: str) -> Verdict:
    """The verdict on one caption; a pure function of its arguments."""
    parts = _review(read(caption, scene))
    claims = [claim for part in parts for claim in part.claims]
    assertions = [Assertion(claim.text, claim.true, pointable=True) for claim in claims]
    # Commentary is true of any image and points at nothing; words not understood are neither.
    remarks = [remark for part in parts for remark in part.remarks]
    assertions += [Assertion(remark.text, remark.meta, pointable=False) for remark in remarks]
    told = {fact for claim in claims if claim.true for fact in facts(claim)}
    return Verdict(
        assertions=tuple(assertions),
        covered=tuple(told.issuperset(facts(unit)) for unit in _units(reference, scene)),
        clarity=_mean(parts, [_clarity(part) for part in parts]),
        fluency=_mean(parts, [_fluency(part) for part in parts]),
        coherency=_coherency(parts),
    )


# Statements -------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """One sentence beside those before it.

    Attributes:
      claims, remarks: what it tells for the first time.
      statements: how many claims and remarks it makes; names that only come up again are none.
      disturbing: how many of them repeat or contradict earlier ones, or are not understood.
    """

    reading: Reading
    claims: tuple[Claim, ...]
    remarks: tuple[Remark, ...]
    statements: int
    disturbing: int

    @property
    def new(self) -> bool:
        return bool(self.claims or self.remarks)


def _review(readings: Sequence[Reading]) -> list[_Part]:
    """Each statement counts once: telling a truth again, or in weaker words, dilutes no error."""
    known: set[tuple[tuple, bool]] = set()
    fillings: dict[tuple, tuple] = {}
    noted: set[Remark] = set()
    parts = []
    for reading in readings:
        claims, remarks, statements, disturbing = [], [], 0, 0
        for claim in reading.claims:
            found = facts(claim)
            # With its truth: "two circles" may be true where "two red circles" is not.
            told = {(fact, claim.true) for fact in found}
            repeats = told <= known
            if repeats and claim.restated:
                continue
            statements += 1
            disturbing += repeats or any(fillings.get(slot_of(f), f) != f for f in found)
            if not repeats:
                claims.append(claim)
            known |= told
            for fact in found:
                fillings.setdefault(slot_of(fact), fact)
        for remark in reading.remarks:
            statements += 1
            disturbing += remark in noted or not remark.meta
            if remark not in noted:
                remarks.append(remark)
            noted.add(remark)
        parts.append(_Part(reading, tuple(claims), tuple(remarks), statements, disturbing))
    return parts


def slot_of(fact: tuple) -> tuple:
    """What can be filled with one fact only: facts with equal slots contradict each other."""
    if fact[0] in ("background", "word"):
        return fact[:1]
    if fact[0] in _RELATIONS:
        return fact[0], frozenset(fact[1:])
    return fact[:2]


@lru_cache(maxsize=4096)
def _units(reference: str, scene: Scene) -> tuple[Claim, ...]:
    claims = [claim for part in _review(read(reference, scene)) for claim in part.claims]
    return tuple(claim for claim in claims if claim.true)


# Linguistic quality -----------------------------------------------------------------------------


def _mean(parts: Sequence[_Part], values: Sequence[float]) -> float:
    """Over the words of the caption, so that short good sentences do not hide a long bad one."""
    lengths = [len(part.reading.sentence.lexemes) for part in parts]
    total = sum(length * value for length, value in zip(lengths, values, strict=True))
    return total / sum(lengths) if parts else 0.0


@cache
def _language() -> tuple[frozenset[tuple[str, str, str]], int]:
    """Tag trigrams of the reference language and the length of its longest sentence, in lexemes."""
    rng = random.Random("the reference language")
    texts = [sentence for _ in range(2000) for sentence in describe(rng, random_scene(rng))]
    parsed = [sentence for text in (*texts, *META_SENTENCES) for sentence in sentences(text)]
    trigrams = frozenset(trigram for sentence in parsed for trigram in _trigrams(sentence))
    return trigrams, max(len(sentence.lexemes) for sentence in parsed)


def _trigrams(sentence: Sentence) -> list[tuple[str, str, str]]:
    found = tags(sentence)
    return list(zip(found, found[1:], found[2:], strict=False))


def _has_verb(sentence: Sentence) -> bool:
    return any(lexeme.tag in _VERBS for lexeme in sentence.lexemes)


def _order(sentence: Sentence) -> float:
    """1 for words in an order that the references have; falls by 3 times the share of foreign
    trigrams.

    0 for a sentence longer than any of theirs: it is several, without an end.
    """
    known, longest = _language()
    if len(sentence.lexemes) > longest:
        return 0.0
    trigrams = _trigrams(sentence)
    foreign = sum(trigram not in known for trigram in trigrams) / len(trigrams)
    return max(0.0, 1.0 - 3.0 * foreign)


def _is_sentence(sentence: Sentence) -> bool:
    return _has_verb(sentence) and sentence.closed and _order(sentence) > 0


def _clarity(part: _Part) -> float:
    """1 for a sentence that is understood; the bare name of one thing is understood, too."""
    sentence = part.reading.sentence
    if _has_verb(sentence):
        whole = _order(sentence) > 0
    else:
        found = [lexeme.tag for lexeme in sentence.lexemes]
        whole = sum(tag in _NAMES for tag in found) == 1 and set(found) <= set(_BARE)
    return float(part.new and part.reading.clear and whole)


def _fluency(part: _Part) -> float:
    sentence = part.reading.sentence
    return _order(sentence) if part.new and _is_sentence(sentence) else 0.0


def _coherency(parts: Sequence[_Part]) -> float:
    """Falls by twice the share of statements that disturb, or stand in no sentence."""
    total = sum(part.statements for part in parts)
    bad = sum(
        part.disturbing if _is_sentence(part.reading.sentence) else part.statements
        for part in parts
    )
    return max(0.0, 1.0 - 2.0 * bad / total) if total else 0.0
