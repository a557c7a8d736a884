"""DCScore of captions: facts are extracted, matched and verified by a judge, then scored."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.data.json_text import read_json
from balcap_jax.errors import UserError
from balcap_jax.evaluation import dcscore
from balcap_jax.evaluation.asking import Asker, Failure
from balcap_jax.evaluation.fact_lists import extracted, judged, listed
from balcap_jax.rewards.llm.request_form import Sampling
from balcap_jax.runs.folder import write_jsonl_atomic, write_text_atomic

# Of the official code.
_MAX_TOKENS = 2000
_TEMPERATURES = {"extract": 1.0, "match": 1.0, "verify": 0.3}
_SEEDS_APART = 100  # of the samples of one question; tries of one sample lie between


class Oracle(NamedTuple):
    """What people wrote of an image."""

    caption: str
    facts: tuple[str, ...]


def read_facts(path: Path) -> dict[str, Oracle]:
    """The annotations of DeCapBench by the name of their image.

    Raises:
      UserError: the file is none of them.
    """
    found: dict[str, Oracle] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"facts={path} cannot be read ({reason}); name the file.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = read_json(line)
            name, facts = row["image_name"], row["oracle_facts"]
            caption = row.get("oracle_caption") or ""
            if not (isinstance(name, str) and isinstance(caption, str) and isinstance(facts, list)):
                raise TypeError
            if not facts or not all(isinstance(fact, str) for fact in facts):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"facts={path}, line {number} has no image_name, oracle_caption and list of "
                "oracle_facts; give DeCapBench's human_annotated_oracle_facts.jsonl."
            ) from None
        if name in found:
            raise UserError(f"facts={path} names the image {name!r} twice; keep one.")
        found[name] = Oracle(caption, tuple(facts))
    if not found:
        raise UserError(f"facts={path} holds no image; give another file.")
    return found


def judge_images(
    asker: Asker,
    captions: Mapping[str, str],
    oracles: Mapping[str, Oracle],
    images: Mapping[str, Path],
    *,
    matchings: int,
    verifications: int,
) -> list[dict[str, Any]]:
    """An item of each caption, in their order."""
    asked = _Questions(asker, matchings=matchings, verifications=verifications)
    names = list(captions)
    found = asker.all(
        [partial(asked.answers, captions[name], oracles[name], images[name]) for name in names]
    )
    return [
        _item(name, captions[name], oracles[name], answer)
        for name, answer in zip(names, found, strict=True)
    ]


class _Answers(NamedTuple):
    """What the judge said of one caption; each row as it came."""

    facts: list[dict[str, Any]]
    matches: list[list[tuple[str, Any]]]
    verified: list[list[tuple[str, Any]]]


class _Questions:
    def __init__(self, asker: Asker, *, matchings: int, verifications: int):
        self._asker, self._matchings, self._verifications = asker, matchings, verifications

    async def answers(self, caption: str, oracle: Oracle, image: Path) -> _Answers:
        """All stages; each is asked for again alone where it fails."""
        if not caption.strip():
            return _Answers([], [], [])
        facts = await self._ask("extract", {"caption": caption}, extracted, sample=0)
        if not facts:
            return _Answers([], [], [])
        texts = [row["fact"] for row in facts]
        shown = listed([{k: v for k, v in row.items() if k != "relevance"} for row in facts])
        numbered = listed([{"id": i, "fact": fact} for i, fact in enumerate(oracle.facts)])
        match = {"predicted_atomic_facts": shown, "oracle_atomic_facts": numbered}
        verify = {"reference_caption": oracle.caption, "atomic_facts": shown}
        read_match = partial(judged, field="matched_oracle_id", facts=texts)
        read_verify = partial(judged, field="verification", facts=texts)
        found = await asyncio.gather(
            *(
                self._ask("match", match, read_match, sample=i)
                for i in range(self._matchings)
            ),
            *(
                self._ask("verify", verify, read_verify, sample=i, image=image)
                for i in range(self._verifications)
            ),
            return_exceptions=True,  # the others are paid for
        )  # fmt: skip
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return _Answers(facts, found[: self._matchings], found[self._matchings :])  # type: ignore[arg-type]

    async def _ask(self, part, values, check, *, sample, image=None) -> Any:
        prompts = self._asker.prompts
        return await self._asker.ask(
            part,
            (prompts.text("system"), prompts.text(part, **values)),
            check,
            sampling=Sampling(
                _TEMPERATURES[part], _MAX_TOKENS, seed=_SEEDS_APART * (sample + 1)
            ),
            image=image,
        )  # fmt: skip


def _item(name: str, caption: str, oracle: Oracle, answer: "_Answers | Failure") -> dict[str, Any]:
    base = {"id": name, "caption": caption, "reference": oracle.caption, "failed": None}
    nothing = {"score": None, "strict_score": None, "invalid": None, "facts": [], "oracle": []}
    if isinstance(answer, Failure):
        return {**base, **nothing, "failed": answer.reason}
    relevance: dict[str, Any] = {}
    for row in answer.facts:  # a text that comes twice is relevant where it is once
        relevance[row["fact"]] = 1 if 1 in (row["relevance"], relevance.get(row["fact"])) else 0
    matches = [dict(rows) for rows in answer.matches]
    found = {
        **base,
        **nothing,
        "facts": _shown_facts(relevance, answer),
        "oracle": list(oracle.facts),
        "answers": answer._asdict(),
    }
    try:
        if not answer.facts:
            raise dcscore.InvalidImageError("no fact")
        means = dcscore.mean_scores(
            relevance, answer.verified, matches, oracle_facts=len(oracle.facts)
        )
    except dcscore.InvalidImageError as error:
        return {**found, "invalid": str(error), "strict_score": _strict(relevance, answer, oracle)}
    score = dcscore.dcscore(means)
    return {**found, "score": score, "strict_score": score, **means._asdict()}


def _strict(relevance: Mapping[str, Any], answer: _Answers, oracle: Oracle) -> float:
    """Of a caption without a relevant fact: that F1 is 0, the other one is what it is."""
    if not answer.facts:
        return 0.0
    all_relevant = dict.fromkeys(relevance, 1)
    means = dcscore.mean_scores(
        all_relevant,
        answer.verified,
        [dict(rows) for rows in answer.matches],
        oracle_facts=len(oracle.facts),
    )
    return means.f1 / 2


def _shown_facts(relevance: Mapping[str, Any], answer: _Answers) -> list[dict[str, Any]]:
    """Each fact with the share of verifications that hold it for true, and its most frequent
    match.
    """
    true: Counter[str] = Counter()
    for rows in answer.verified:
        true.update({fact for fact, value in rows if value == 1})
    matched: dict[str, Counter] = {fact: Counter() for fact in relevance}
    for rows in answer.matches:
        for fact, match in rows:
            matched[fact][None if match in (None, "None") else match] += 1
    return [
        {
            "text": fact,
            "relevant": relevance[fact] == 1,
            "verified": true[fact] / max(len(answer.verified), 1),
            "matched": matched[fact].most_common(1)[0][0] if matched[fact] else None,
        }
        for fact in relevance
    ]


def counts(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Images that have no score, by why."""
    return {
        "invalid": sum(item["invalid"] is not None for item in items),
        "failed": sum(item["failed"] is not None for item in items),
    }


def write_official(folder: Path, items: Sequence[Mapping[str, Any]]) -> None:
    """captions.jsonl and results/INDEX.json, as DeCapBench's code reads and writes them."""
    rows = [
        {
            "image_path": item["id"],
            "caption": item["caption"],
            "oracle_caption": item["reference"],
        }
        for item in items
    ]
    write_jsonl_atomic(folder / "captions.jsonl", rows)
    for path in (folder / "results").glob("*.json"):  # of more captions, which would count there
        if path.stem.isdecimal() and int(path.stem) >= len(rows):
            path.unlink()
    for index, (row, item) in enumerate(zip(rows, items, strict=True)):
        details: dict[str, Any] = {"consume_token": []}
        if answers := item.get("answers"):
            details |= {
                "pred_atomic_facts": answers["facts"],
                "mappings_with_human": [dict(found) for found in answers["matches"]],
                "verified_results": [
                    [{"fact": fact, "verification": value} for fact, value in found]
                    for found in answers["verified"]
                ],
            }
        if item["score"] is not None:
            details |= {
                "precision": item["precision"],
                "recall": item["recall"],
                "f1_score": item["f1"],
                "f1_score_relevant": item["f1_relevant"],
            }
        else:
            details["error"] = item["failed"] or item["invalid"]
        oracle = [{"id": i, "fact": fact} for i, fact in enumerate(item["oracle"])]
        written = {
            **row,
            "human_annotated_oracle_atomic_facts": oracle,
            "eval_details": details,
            "valid": item["score"] is not None,
        }
        write_text_atomic(
            folder / "results" / f"{index}.json", json.dumps(written, ensure_ascii=False)
        )
