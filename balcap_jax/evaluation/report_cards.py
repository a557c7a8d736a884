"""What a report shows of one image and one model, by benchmark."""

from collections.abc import Callable, Mapping
from typing import Any

from balcap_jax.config.sections import REWARDS


def _card(score: str, chips: list, **more: Any) -> dict[str, Any]:
    return {"score": score, "chips": chips, "questions": [], "battles": [], "note": "", **more}


def _chip(kind: str, mark: str, text: str, more: str = "") -> dict[str, str]:
    return {"kind": kind, "mark": mark, "text": text, "more": more}


def _dcscore_card(item: Mapping[str, Any]) -> dict[str, Any]:
    oracle, covered, chips = item["oracle"], set(), []
    for fact in item["facts"]:
        match = fact["matched"]
        known = isinstance(match, int) and not isinstance(match, bool) and 0 <= match < len(oracle)
        more = f"as {oracle[match]!r}" if known else ""
        if not fact["relevant"]:
            more = ", ".join(filter(None, ("not descriptive", more)))
        if fact["verified"] < 0.5:
            chips.append(_chip("false", "✗", fact["text"], more))
        elif match is None:
            chips.append(_chip("extra", "+", fact["text"], more))
        else:
            chips.append(_chip("true", "✓", fact["text"], more))
            covered.add(match)
    missed = [
        _chip("missed", "·", text) for place, text in enumerate(oracle) if place not in covered
    ]
    note = item["failed"] or item["invalid"] or ""
    score = "no score" if item["score"] is None else f"{100 * item['score']:.1f}"
    return _card(score, [chips, missed], note=note)


def _captionqa_card(item: Mapping[str, Any]) -> dict[str, Any]:
    questions = []
    for asked in item["questions"]:
        right = "right" if asked["correct"] else "wrong"
        if asked["failed"] is not None:
            right = "failed"
        elif asked["cannot_answer"]:
            right = "cannot"
        questions.append(
            {
                "question": asked["question"],
                "chosen": asked["failed"] or asked["chosen"] or f"no letter: {asked['response']}",
                "answer": asked["answer"],
                "kind": right,
            }
        )
    scores = [asked["score"] for asked in item["questions"] if asked["score"] is not None]
    score = f"{100 * sum(scores) / len(scores):.1f}" if scores else "no score"
    return _card(score, [], questions=questions)


def _caparena_card(item: Mapping[str, Any]) -> dict[str, Any]:
    words = {1.0: "won", -1.0: "lost", 0.0: "tie"}
    battles = [
        {
            "result": "failed" if battle["failed"] else words.get(battle["value"], "no verdict"),
            "order": "shown first" if battle["ours_first"] else "shown second",
            "reason": battle["failed"] or battle["reason"],
            "verdict": battle["verdict"],
        }
        for battle in item["battles"]
    ]
    score = "no verdict" if item["value"] is None else f"{item['value']:+.1f}"
    against = f"against {item['baseline']}: {item['baseline_caption']}"
    return _card(score, [], battles=battles, note=against)


def _bcapscore_card(item: Mapping[str, Any]) -> dict[str, Any]:
    assertions = [
        _chip(*(("true", "✓") if a["verified"] and a["pointable"] else ("false", "✗")), a["text"])
        for a in item["assertions"]
    ]
    units = [
        _chip(*(("extra", "✓") if unit["covered"] else ("missed", "·")), unit["text"])
        for unit in item["units"]
    ]
    rewards = ", ".join(f"{name} {number(item[name])}" for name in REWARDS)
    return _card(rewards, [assertions, units], note=item["failed"] or "")


CARDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "dcscore": _dcscore_card,
    "captionqa": _captionqa_card,
    "caparena": _caparena_card,
    "bcapscore": _bcapscore_card,
}


def number(value: float | None) -> str:
    """A number with two decimals; a dash for none."""
    return "-" if value is None or value != value else f"{value:.2f}"
