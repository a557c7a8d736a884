"""Captions before and after training joined by image, and what the judge found in each."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from balcap_jax.config.sections import REWARDS

# Kind of an assertion -> its mark and what the legend says; the mark carries the meaning where
# colour does not reach (Markdown, print, colour-blind readers).
KINDS = {
    "true": ("✓", "true and pointable"),
    "false": ("✗", "false"),
    "vague": ("○", "not pointable"),
}
UNITS = {"covered": ("●", "covered reference unit"), "missed": ("–", "missed reference unit")}
LEGEND = KINDS | UNITS


class Finding(NamedTuple):
    """An assertion of a caption, or a unit of its reference; `kind` is a key of `LEGEND`."""

    kind: str
    text: str

    @property
    def mark(self) -> str:
        """One character."""
        return LEGEND[self.kind][0]

    @property
    def meaning(self) -> str:
        """The mark in words."""
        return LEGEND[self.kind][1]


def pair_captions(before: Sequence[dict], after: Sequence[dict]) -> list[dict[str, Any]]:
    """Rows of the two evaluations joined by id, in the order of `before`.

    What belongs to the image (id, reference, image) stands once; `before` and `after` hold the
    rest. An image that only one evaluation has is left out.
    """
    later = {row["id"]: row for row in after}
    shared = ("id", "reference", "references", "image")
    return [
        {key: row.get(key) for key in shared}
        | {
            when: {key: value for key, value in side.items() if key not in shared}
            for when, side in (("before", row), ("after", later[row["id"]]))
        }
        for row in before
        if row["id"] in later
    ]


def assertion_kind(assertion: Mapping[str, Any]) -> str:
    """A key of `KINDS`: what cannot be pointed at is vague, whether or not it may be true."""
    if not assertion["pointable"]:
        return "vague"
    return "true" if assertion["verified"] else "false"


def findings(side: Mapping[str, Any]) -> Iterator[Finding]:
    """Each assertion of a caption, then each unit of its reference; none without a verdict.

    Of a judge that cannot know, an assertion shows the chance that precision is made of. A unit
    that several references have stands once, with how many.
    """
    verdict = side["verdict"]
    if verdict is None:
        return
    for assertion in verdict["assertions"]:
        chance = assertion.get("chance")
        shown = "" if chance is None else f" {100 * chance:.0f} %"
        yield Finding(assertion_kind(assertion), assertion["text"] + shown)
    units = Counter(zip(verdict["units"], verdict["covered"], strict=True))
    for (unit, covered), count in units.items():
        text = unit if count == 1 else f"{unit} ×{count}"  # noqa: RUF001
        yield Finding("covered" if covered else "missed", text)


def references(pair: Mapping[str, Any]) -> list[str]:
    """The reference that rho counts by, then the others that the judge knows."""
    first = pair["reference"]
    return [first, *(text for text in pair.get("references") or () if text != first)]


def was_judged(pairs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a judge was asked: a run that trains on other rewards alone may need none."""
    sides = [pair[when] for pair in pairs for when in ("before", "after")]
    return any(
        side["verdict"] is not None or not set(REWARDS).isdisjoint(side["rewards"])
        for side in sides
    )
