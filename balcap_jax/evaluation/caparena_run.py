"""CapArena-Auto of captions: battles against the baselines, decided by a judge that sees images."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.data.json_text import read_json
from balcap_jax.errors import UserError
from balcap_jax.evaluation import caparena
from balcap_jax.evaluation.asking import Asker, Failure
from balcap_jax.evaluation.caparena import BASELINES, HUMAN, SHORT_NAMES, baseline_of, verdict_of
from balcap_jax.rewards.llm.answer_text import BadAnswer
from balcap_jax.rewards.llm.request_form import Sampling
from balcap_jax.runs.folder import to_json, write_json_atomic, write_text_atomic

# What takes effect in the official code: its payload says 0.5, its call 0.1.
_SAMPLING = Sampling(temperature=0.1, max_tokens=1500, top_p=0.9, seed=100)


class Battle(NamedTuple):
    """An image of the benchmark.

    Attributes:
      baseline: full name of the model to beat.
      caption: the baseline's.
      reference: a person's.
    """

    baseline: str
    caption: str
    reference: str


def read_battles(path: Path) -> dict[str, Battle]:
    """The battles of caparena_auto_600.json by the name of their image; the captions may stand
    there under full names of models or short ones (gpt, cog, cpm).

    Raises:
      UserError: the file is none of them.
    """
    try:
        rows = read_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"data={path} cannot be read ({error.strerror}); name the file.") from None
    except ValueError as error:
        raise UserError(f"data={path} is not JSON ({error}); give another file.") from None
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"data={path} is no JSON object of images; give caparena_auto_600.json.")
    return {name: _battle(path, name, row) for name, row in rows.items()}


def _battle(path: Path, name: str, row: Any) -> Battle:
    try:
        baseline, captions = baseline_of(row["ref_model"]), row["captions"]
        if baseline not in BASELINES:
            raise UserError(
                f"data={path}, image {name}: ref_model={row['ref_model']!r} is none of the "
                f"baselines {', '.join(BASELINES)}; write one of them or {', '.join(SHORT_NAMES)}."
            )
        by_name = {baseline_of(key): text for key, text in captions.items()}
        found = Battle(baseline, by_name[baseline], by_name[HUMAN])
        if not all(isinstance(text, str) for text in found):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f'data={path}, image {name} has no "ref_model" with its caption and that of "human"; '
            'give {"captions": {"human": ..., MODEL: ...}, "ref_model": MODEL}.'
        ) from None
    return found


def judge_battles(
    asker: Asker,
    captions: Mapping[str, str],
    battles: Mapping[str, Battle],
    images: Mapping[str, Path],
    *,
    first: Mapping[str, bool],
    both_orders: bool,
) -> list[dict[str, Any]]:
    """An item of each caption, in their order.

    Args:
      first: whether the model's caption is shown first.
      both_orders: the other order is asked about, too; the value of an item is the mean.
    """
    planned = [
        (name, ours_first)
        for name in captions
        for ours_first in ((first[name], not first[name]) if both_orders else (first[name],))
    ]
    jobs = [
        partial(_ask, asker, captions[name], battles[name], images[name], ours_first)
        for name, ours_first in planned
    ]
    fought: dict[str, list[dict[str, Any]]] = {name: [] for name in captions}
    for (name, ours_first), answer in zip(planned, asker.all(jobs), strict=True):
        fought[name].append(_fought(answer, ours_first=ours_first))
    return [
        {
            "id": name,
            "caption": captions[name],
            "reference": battles[name].reference,
            "baseline": battles[name].baseline,
            "baseline_caption": battles[name].caption,
            "value": caparena.value_of(fought[name]),
            "battles": fought[name],
        }
        for name in captions
    ]


async def _ask(asker: Asker, ours: str, battle: Battle, image: Path, ours_first: bool) -> str:  # noqa: FBT001
    one, two = (ours, battle.caption) if ours_first else (battle.caption, ours)
    prompts = asker.prompts
    texts = (
        prompts.text("system"),
        prompts.text("user", caption_1=one, caption_2=two, caption_ref=battle.reference),
    )
    return await asker.ask("battle", texts, _checked, sampling=_SAMPLING, image=image)


def _checked(response: str) -> str:
    if verdict_of(response) is None:
        raise BadAnswer("no reason or no judgment")
    return response


def _fought(answer: "str | Failure", *, ours_first: bool) -> dict[str, Any]:
    base = {"ours_first": ours_first, "value": None, "failed": None, "response": ""}
    if isinstance(answer, Failure):
        return {**base, "verdict": "", "reason": "", "failed": answer.reason}
    verdict = verdict_of(answer)
    assert verdict is not None
    value = None
    if verdict.better is not None:
        ours = 1 if ours_first else 2
        value = 0.0 if verdict.better == 0 else (1.0 if verdict.better == ours else -1.0)
    return {
        **base,
        "value": value,
        "verdict": verdict.words,
        "reason": verdict.reason,
        "response": answer,
    }


def counts(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Battles without a verdict, by why; and images whose verdict changes with the order."""
    fought = [battle for item in items for battle in item["battles"]]
    flipped, both = caparena.flips(items)
    found = {
        "battles": len(fought),
        "unparsed": sum(b["value"] is None and b["failed"] is None for b in fought),
        "failed": sum(b["failed"] is not None for b in fought),
    }
    return found | ({"in_both_orders": both, "flipped": flipped} if both else {})


def write_official(folder: Path, items: Sequence[Mapping[str, Any]], *, model: str) -> None:
    """captions.json and MODEL.json, as CapArena's code reads and writes them; of two orders the
    first one.
    """
    write_json_atomic(folder / "captions.json", {item["id"]: item["caption"] for item in items})
    rows = []
    for item in items:
        battle = item["battles"][0]
        sides = [(model, item["caption"]), (item["baseline"], item["baseline_caption"])]
        (source1, caption1), (source2, caption2) = sides if battle["ours_first"] else sides[::-1]
        judged = {"judge_reason": battle["response"], "judge": battle["verdict"]}
        rows.append(
            {
                "img": item["id"],
                "source1": source1,
                "source2": source2,
                "caption1": caption1,
                "caption2": caption2,
                "ref": item["reference"],
                "ref_model": item["baseline"],
                **({} if battle["failed"] else judged),
            }
        )
    # As long as a file's name may be.
    name = model.replace("/", "_").encode()[:200].decode(errors="ignore") or "model"
    write_text_atomic(folder / f"{name}.battles.json", to_json(rows) + "\n")
