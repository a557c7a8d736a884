"""The differences of two captions of a scene by the exact rules, in place of a judge.

A difference is one fact that the captions do not share: one that only A tells, one that only B
tells, or two that exclude each other, such as two colours of one thing. What a caption tells
wrongly is its hallucination, what it leaves out of what the other tells rightly its omission; to
tell a fact again and to write words that mean nothing are errors, too. Commentary is no difference.
"""

from balcap_jax.rewards.rivals.differences import (
    Check,
    ClaimError,
    Comparison,
    Difference,
    Judgment,
    Winner,
)
from balcap_jax.rewards.rivals.scene_facts import Fact, Told, severity_of, told
from balcap_jax.rewards.scene.judge import slot_of
from balcap_jax.scenes.world import Scene

_NOTHING = "does not say"


def scene_comparison(caption: str, reference: str, scene: Scene) -> Comparison:
    """What a judge that knows the scene says of caption A and the reference, caption B."""
    a, b = told(caption, scene), told(reference, scene)
    pairs = _exclusive(a, b)
    taken_a, taken_b = {fact for fact, _ in pairs}, {other for _, other in pairs}
    found = [_contradiction(fact, other, a, b) for fact, other in pairs]
    found += [_only_a(fact, a) for fact in a.true if fact not in b.true and fact not in taken_a]
    found += [
        _mirrored(_only_a(fact, b)) for fact in b.true if fact not in a.true and fact not in taken_b
    ]
    found += [_wording_of_a("repetition_error", text) for text in a.repeated]
    found += [_mirrored(_wording_of_a("repetition_error", text)) for text in b.repeated]
    found += [_wording_of_a("unclear_wording_error", text) for text in a.unclear]
    found += [_mirrored(_wording_of_a("unclear_wording_error", text)) for text in b.unclear]
    errors_a = sum(difference.error_a is not None for difference in found)
    errors_b = sum(difference.error_b is not None for difference in found)
    return Comparison(tuple(found), _winner(errors_a, errors_b))


def scene_checks(caption: str, reference: str, scene: Scene) -> tuple[Check, ...]:
    """The same in the form of `hall_vs_miss`: contradictions, what A adds, what it leaves out."""
    a, b = told(caption, scene), told(reference, scene)
    pairs = _exclusive(a, b)
    taken_a, taken_b = {fact for fact, _ in pairs}, {other for _, other in pairs}
    found = [
        Check("contradiction", "verified" if a.true[fact] else "false", a.texts[fact])
        for fact, _ in pairs
    ]
    found += [
        Check("extra_info", "verified" if true else "false", a.texts[fact])
        for fact, true in a.true.items()
        if fact not in b.true and fact not in taken_a
    ]
    found += [
        Check("missing_fact", "missing", b.texts[fact])
        for fact in b.true
        if fact not in a.true and fact not in taken_b
    ]
    return tuple(found)


def _exclusive(a: Told, b: Told) -> list[tuple[Fact, Fact]]:
    """(fact of A, fact of B) that cannot both be, each fact in one pair at most."""
    free = {slot_of(fact): fact for fact in reversed(b.true) if fact not in a.true}
    pairs = []
    for fact in a.true:
        if fact not in b.true and (other := free.pop(slot_of(fact), None)) is not None:
            pairs.append((fact, other))
    return pairs


def _contradiction(fact: Fact, other: Fact, a: Told, b: Told) -> Difference:
    right_a, right_b = a.true[fact], b.true[other]
    judgment: Judgment = (
        ("both_supported" if right_b else "A") if right_a else ("B" if right_b else "both_wrong")
    )
    return Difference(
        str(fact[0]),
        a.texts[fact],
        b.texts[other],
        judgment,
        None if right_a else _error(fact, "hallucination", a.texts[fact]),
        None if right_b else _error(other, "hallucination", b.texts[other]),
    )


def _only_a(fact: Fact, a: Told) -> Difference:
    text = a.texts[fact]
    if a.true[fact]:
        omission = _error(fact, "omission", text)
        return Difference(str(fact[0]), text, _NOTHING, "A", None, omission)
    wrong = _error(fact, "hallucination", text)
    return Difference(str(fact[0]), text, _NOTHING, "B", wrong, None)


def _wording_of_a(kind: str, text: str) -> Difference:
    return Difference("wording", text, _NOTHING, "B", ClaimError(kind, text, 1), None)


def _mirrored(found: Difference) -> Difference:
    """The same with the captions exchanged, of a difference that one of them wins."""
    judgment: Judgment = "B" if found.judgment == "A" else "A"
    return Difference(
        found.aspect, found.claim_b, found.claim_a, judgment, found.error_b, found.error_a
    )


def _error(fact: Fact, nature: str, text: str) -> ClaimError:
    return ClaimError(f"{fact[0]}_{nature}", text, severity_of(fact))


def _winner(errors_a: int, errors_b: int) -> Winner:
    if errors_a == errors_b:
        return "Tie"
    return "A" if errors_a < errors_b else "B"
