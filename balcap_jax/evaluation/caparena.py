"""CapArena-Auto (arXiv:2503.12329): battles of captions against those of three baseline models."""

import csv
import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from balcap_jax.errors import UserError
from balcap_jax.evaluation.statistics import Measure

BASELINES = ("GPT-4o-0806", "CogVLM2-llama3-chat-19B", "MiniCPM-V2.6-8B")
SHORT_NAMES = {"gpt": BASELINES[0], "cog": BASELINES[1], "cpm": BASELINES[2]}  # of the readme
HUMAN = "human"
VERDICTS = {"Caption 1 is better": 1, "Caption 2 is better": 2, "Tie": 0}


class Verdict(NamedTuple):
    """What a judge said of two captions.

    Attributes:
      better: 1 or 2, 0 for a tie; None where the words are none of the three verdicts.
      words: the line after "Judgment:".
      reason: what stands before it.
    """

    better: int | None
    words: str
    reason: str


def verdict_of(response: str) -> Verdict | None:
    """The verdict in an answer; None where reason or judgment is missing, which is asked for again.

    Counted are exactly the three verdicts, with or without a full stop: neither in angle brackets,
    as the official prompt shows them, nor in bold.
    """
    reason = re.search(r"Reason:\s*(.+?)\s*Judgment:", response, re.DOTALL)
    judgment = re.search(r"Judgment:\s*(.+)", response)
    words = judgment[1].strip() if judgment else ""
    if not (reason and reason[1].strip() and words):
        return None
    return Verdict(VERDICTS.get(words.removesuffix(".")), words, reason[1].strip())


def baseline_of(name: str) -> str:
    """The full name of a baseline model, of which the readme shows short ones."""
    return SHORT_NAMES.get(name, name)


def orders(images: Sequence[str], *, seed: int = 0) -> dict[str, bool]:
    """By image, whether the model's caption is shown first: a coin with a seed, over the images in
    their sorted order, so that a part of them has the orders that it has in the whole.
    """
    return {image: random.Random(f"{seed}/{image}").random() < 0.5 for image in images}


def arena_words(caption: str) -> int:
    """Words as the leaderboard counts them: between single blanks, so that a line break is none."""
    return len(caption.split(" "))


def value_of(battles: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean over the battles of an image of 1 for a win, -1 for a loss and 0 for a tie; None
    where no battle has a verdict.
    """
    known = [battle["value"] for battle in battles if battle["value"] is not None]
    return sum(known) / len(known) if known else None


def flips(items: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(images of which the verdict changes with the order, images with verdicts in both)."""
    both = [
        [battle["value"] for battle in item["battles"]]
        for item in items
        if len(item["battles"]) == 2 and all(b["value"] is not None for b in item["battles"])
    ]
    return sum(one != other for one, other in both), len(both)


def flip_share(items: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of images, of those with verdicts in both orders, whose verdict changes; None where
    there are none.
    """
    flipped, both = flips(items)
    return flipped / both if both else None


def measures(items: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    """The mean over the three baselines of the score against each.

    `official`: (wins - losses) / 2, whatever the number of battles; what has no verdict adds
    nothing, as a tie does. `strict`: 100 (wins - losses) / battles with a verdict.

    Args:
      items: `baseline` and `value` from -1 to 1, or None.
    """
    names = [name for name in BASELINES if any(item["baseline"] == name for item in items)]
    totals = np.zeros((len(items), len(names)))
    weights = np.zeros_like(totals)
    for i, item in enumerate(items):
        if item["value"] is not None:
            totals[i, names.index(item["baseline"])] = item["value"]
            weights[i, names.index(item["baseline"])] = 1
    # A baseline's own images are left out, and its score against itself is 0.
    share = len(names) / len(BASELINES)
    return {
        "official": Measure(totals, weights, fixed=(2.0,) * len(names), scale=share),
        "strict": Measure(totals, weights),
    }


def against(items: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By baseline, its wins, losses, ties, battles without a verdict, and official score."""
    found = {}
    for name in BASELINES:
        values = [item["value"] for item in items if item["baseline"] == name]
        if values:
            known = [value for value in values if value is not None]
            found[name] = {
                "wins": sum(value > 0 for value in known),
                "losses": sum(value < 0 for value in known),
                "ties": sum(value == 0 for value in known),
                "none": len(values) - len(known),
                "score": sum(known) / 2,
            }
    return found


def filled(items: Sequence[Mapping[str, Any]], *, best: bool) -> list[dict[str, Any]]:
    """The items, with a loss or a win in place of what has no verdict."""
    value = 1.0 if best else -1.0
    return [{**item, "value": value} if item["value"] is None else dict(item) for item in items]


class Agreement(NamedTuple):
    """Rank correlations of a leaderboard with people, over the models that both rank."""

    spearman: float
    kendall: float
    models: int


def agreement(leaderboard: str | Path, human: str | Path) -> Agreement:
    """How far a leaderboard ranks models as people do.

    Args:
      leaderboard: a table, tab- or comma-separated, with the columns `model` and `score_avg`.
      human: a JSON list of models, the best first; "human" among them is passed over.

    Raises:
      UserError: a file cannot be read so or has a model twice, a score is no finite number, or the
        files share fewer than two models, or those have the same score.
    """
    scores = _leaderboard(Path(leaderboard))
    ranking = _ranking(Path(human))
    shared = [model for model in ranking if model in scores]
    if len(shared) < 2:
        raise UserError(
            f"{leaderboard} and {human} share {len(shared)} models, and a rank correlation needs "
            "two; write the models by the same names."
        )
    places, found = range(len(shared)), [-scores[model] for model in shared]
    if len(set(found)) < 2:
        raise UserError(
            f"{leaderboard} gives one score to all models that {human} ranks, which have no order "
            "then; give a leaderboard that tells them apart."
        )
    return Agreement(
        float(stats.spearmanr(places, found).statistic),
        float(stats.kendalltau(places, found).statistic),
        len(shared),
    )


def _leaderboard(path: Path) -> dict[str, float]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = csv.DictReader(text.splitlines(), delimiter="\t" if "\t" in text else ",")
        found = [(row["model"], float(row["score_avg"])) for row in rows]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the leaderboard's file."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no leaderboard; give a table with the columns model and score_avg, with a "
            "number in each row."
        ) from None
    _check_once([model for model, _ in found], path)
    if endless := [model for model, score in found if not math.isfinite(score)]:
        raise UserError(
            f"{path} has no finite score_avg of {endless[0]}; give its number, or leave it out."
        )
    return dict(found)


def _ranking(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the ranking's file."
        ) from None
    except ValueError:
        raise UserError(f"{path} is no ranking; give a JSON list of models' names.") from None
    _check_once(names, path)
    return [name for name in names if name != HUMAN]


def _check_once(models: Sequence[str], path: Path) -> None:
    if twice := [model for model, count in Counter(models).items() if count > 1]:
        raise UserError(f"{path} has the model {twice[0]} twice; keep one.")
