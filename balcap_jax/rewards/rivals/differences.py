"""Differences between two captions as a judge lists them: the answers of ClaimDiff-RL, read.

ClaimDiff-RL (arXiv:2605.20278) asks for plain text, in one of two forms:

    [DIFFERENCE 1]                      [DIFFERENCE 1]
    ASPECT: colour of the car           TYPE: contradiction
    CAPTION_A_CLAIM: a red car          CONTENT: a red car
    CAPTION_B_CLAIM: a blue car         CATEGORY: natural
    JUDGMENT: B                         VERIFICATION: false
    CAPTION_A_ERROR:                    REASON: the car is blue
    ERROR_TYPE: color_hallucination     IS_HALLUCINATION: true
    ERROR_DETAIL: the car is blue
    SEVERITY_LEVEL: 3
    CAPTION_B_ERROR:
    ERROR_TYPE: NONE
    ERROR_DETAIL: No error.
    SEVERITY_LEVEL: NA

    [OVERALL_WINNER]
    B

What would change a number when misread is refused: a field that is missing, twice there or has
another value than those known, numbers that do not count 1, 2, 3. Marks around the names do not
matter. Their parser takes what is missing for "no error".
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from balcap_jax.rewards.llm.answer_text import BadAnswer, without_thoughts

Judgment = Literal["A", "B", "both_wrong", "both_supported"]
Winner = Literal["A", "B", "Tie"]
Kind = Literal["contradiction", "extra_info", "missing_fact"]
Verification = Literal["verified", "false", "ambiguous", "missing"]

NO_DIFFERENCES = "[NO_DIFFERENCES]"  # ours: theirs has no word for captions that say the same

_BLOCK = re.compile(r"\[\s*DIFFERENCE\s+(\d{1,4})\s*\]", re.IGNORECASE)
_WINNER = re.compile(r"\[\s*OVERALL_WINNER\s*\]:?\s*(.*)", re.IGNORECASE)
_FIELD = re.compile(r"([A-Z][A-Z_]+)\s*\**\s*:\s*\**\s*(.*)")
_MARKS = "*#`> \t"
_ERRORS = ("CAPTION_A_ERROR", "CAPTION_B_ERROR")
_OF_ERROR = ("ERROR_TYPE", "ERROR_DETAIL", "SEVERITY_LEVEL")
_NO_ERROR = ("NONE", "NA", "N/A")
_LEVELS = {"1": 1, "2": 2, "3": 3}


class ClaimError(NamedTuple):
    """What is wrong with the claim of a caption.

    Attributes:
      kind: in the judge's words, such as color_hallucination.
      severity: 1 (minor) to 3 (major); None where the judge gives none.
    """

    kind: str
    detail: str = ""
    severity: int | None = None


class Difference(NamedTuple):
    """One thing that two captions tell differently.

    Attributes:
      judgment: which caption the image supports.
      error_a, error_b: of each caption; None where it has none.
    """

    aspect: str
    claim_a: str
    claim_b: str
    judgment: Judgment
    error_a: ClaimError | None
    error_b: ClaimError | None


class Comparison(NamedTuple):
    """All differences of caption A (the policy's) and caption B (the reference)."""

    differences: tuple[Difference, ...]
    winner: Winner


class Check(NamedTuple):
    """A difference as the second form has it: what kind it is, and what the image says of A."""

    kind: Kind
    verification: Verification
    content: str = ""


def comparison(text: str) -> Comparison:
    """The differences in an answer of the first form.

    Raises:
      BadAnswer: it has not the form.
    """
    blocks, rest = _blocks(text)
    winners = [match for line in rest if (match := _WINNER.match(line))]
    if len(winners) != 1:
        raise BadAnswer("not one overall winner")
    at = next(i for i, line in enumerate(rest) if _WINNER.match(line))
    said = winners[0][1] or next(iter(rest[at + 1 :]), "")
    return Comparison(tuple(map(_difference, blocks)), _one_of(Winner, said, what="winner"))


def checks(text: str) -> tuple[Check, ...]:
    """The differences in an answer of the second form.

    Raises:
      BadAnswer: it has not the form.
    """
    blocks, _ = _blocks(text)
    return tuple(map(_check, blocks))


def _blocks(text: str) -> tuple[list[list[str]], list[str]]:
    """The lines of each difference, and those that belong to none: without marks, and not empty.

    A difference ends where the next one or the winner begins.
    """
    body = without_thoughts(text)
    if (answer := re.findall(r"<answer>(.*?)</answer>", body, re.DOTALL | re.IGNORECASE)) != []:
        body = answer[-1]
    blocks: list[list[str]] = []
    rest: list[str] = []
    inside: list[str] = rest
    for line in filter(None, (line.strip(_MARKS) for line in body.splitlines())):
        if (match := _BLOCK.match(line)) is not None:
            if int(match[1]) != len(blocks) + 1 or any(map(_WINNER.match, rest)):
                raise BadAnswer("differences that are not numbered 1, 2, 3")
            inside = []
            blocks.append(inside)
            continue
        if _WINNER.match(line):
            inside = rest
        inside.append(line)
    none = any(line.strip().upper() == NO_DIFFERENCES for line in rest)
    if bool(blocks) == none:
        raise BadAnswer("no differences" if not blocks else "differences and none at once")
    return blocks, rest


def _difference(lines: Sequence[str]) -> Difference:
    starts = [i for i, line in enumerate(lines) if line.split(":")[0].strip(_MARKS) in _ERRORS]
    if [lines[i].split(":")[0].strip(_MARKS) for i in starts] != list(_ERRORS):
        raise BadAnswer("a difference without the errors of A and then of B")
    first, second = starts
    told = _fields(lines[:first], ("ASPECT", "CAPTION_A_CLAIM", "CAPTION_B_CLAIM", "JUDGMENT"))
    return Difference(
        told["ASPECT"],
        told["CAPTION_A_CLAIM"],
        told["CAPTION_B_CLAIM"],
        _one_of(Judgment, told["JUDGMENT"], what="judgment"),
        _error(lines[first + 1 : second]),
        _error(lines[second + 1 :]),
    )


def _error(lines: Sequence[str]) -> ClaimError | None:
    found = _fields(lines, _OF_ERROR, optional=("ERROR_DETAIL", "SEVERITY_LEVEL"))
    kind, level = found["ERROR_TYPE"], found.get("SEVERITY_LEVEL", "NA").upper()
    if not kind:
        raise BadAnswer("an error without a type")
    if level not in (*_LEVELS, *_NO_ERROR):
        raise BadAnswer("a severity that is not 1, 2 or 3")
    if kind.upper().rstrip(".") in _NO_ERROR:
        return None
    return ClaimError(kind, found.get("ERROR_DETAIL", ""), _LEVELS.get(level))


def _check(lines: Sequence[str]) -> Check:
    names = ("TYPE", "CONTENT", "CATEGORY", "VERIFICATION", "REASON", "IS_HALLUCINATION")
    free = tuple(name for name in names if name not in ("TYPE", "VERIFICATION"))
    found = _fields(lines, names, optional=free)
    return Check(
        _one_of(Kind, found["TYPE"], what="type"),
        _one_of(Verification, found["VERIFICATION"], what="verification"),
        found.get("CONTENT", ""),
    )


def _fields(
    lines: Iterable[str], names: Sequence[str], *, optional: Sequence[str] = ()
) -> dict[str, str]:
    """The values of `names`, each on the line of its name."""
    found: dict[str, str] = {}
    for line in lines:
        match = _FIELD.match(line)
        if match is None or match[1] not in names:
            continue  # a claim that goes on in the next line
        if match[1] in found:
            raise BadAnswer(f"a difference with two lines {match[1]}")
        found[match[1]] = match[2].strip(_MARKS)
    if missing := [name for name in names if name not in found and name not in optional]:
        raise BadAnswer(f"a difference without {missing[0]}")
    return found


def _one_of(choices: Any, said: str, *, what: str) -> Any:
    """The choice that is meant, whatever its case."""
    word = said.strip(f"{_MARKS}.<>").lower().replace(" ", "_")
    for choice in get_args(choices):
        if choice.lower() == word:
            return choice
    raise BadAnswer(f"a {what} that is none")
