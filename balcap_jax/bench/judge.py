"""Measures the offline judge, and a bag of words beside it, against people's labels.

Correlation is Pearson's; AUC is the chance that a positive is ranked above a negative. Each figure
is also given for the two halves of the images, to show how much of it is luck.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from rich import box
from rich.console import Console
from rich.table import Table

from balcap_jax.bench import bag_of_words
from balcap_jax.bench.judge_data import HumanLabels, Labelled, Rated, read_labels
from balcap_jax.config.sections import REWARDS
from balcap_jax.data.examples import Example
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.lexical.judge import LexicalJudge
from balcap_jax.rewards.lexical.pointing import describes


class Figure(NamedTuple):
    """One agreement with people.

    Attributes:
      name: what is compared.
      count: labels.
      judge, baseline: on all of them.
      halves: of the judge, on the images of even and odd place in the order of their ids.
    """

    name: str
    count: int
    judge: float
    baseline: float
    halves: tuple[float, float]


Agreement = Callable[[Float[np.ndarray, " n"], Float[np.ndarray, " n"]], float]


def pearson(scores: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation."""
    return float(np.corrcoef(scores, labels)[0, 1])


def auc(scores: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative), ties count half."""
    positive, negative = scores[labels > 0.5], scores[labels <= 0.5]
    above = (positive[:, None] > negative[None, :]).sum()
    ties = (positive[:, None] == negative[None, :]).sum()
    return float((above + 0.5 * ties) / (len(positive) * len(negative)))


def measure(labels: HumanLabels) -> list[Figure]:
    """All figures, from the same rewards and chances that training uses."""
    return [
        *_captions("all", labels.captions),
        *_captions("models only", [r for r in labels.captions if r.system != "Human"]),
        _facts(labels.facts),
        _sentences(labels.sentences),
    ]


def _captions(name: str, rated: Sequence[Rated]) -> list[Figure]:
    rewards = _rewards([r.example for r in rated], [r.caption for r in rated])
    references = [r.example.references for r in rated]
    pairs = list(zip((r.caption for r in rated), references, strict=True))
    ids = [r.example.id for r in rated]
    baselines = (
        [bag_of_words.precision(*pair) for pair in pairs],
        [bag_of_words.recall(*pair) for pair in pairs],
    )
    marks = ([r.precision for r in rated], [r.recall for r in rated])
    return [
        _figure(f"THumB {reward}, {name}", ids, rewards[:, k], baselines[k], marks[k], pearson)
        for k, reward in enumerate(("precision", "recall"))
    ]


def _facts(facts: Sequence[Labelled]) -> Figure:
    rewards = _rewards([f.example for f in facts], [f.text for f in facts])
    known = [[*f.example.references, *(b.label for b in f.example.boxes)] for f in facts]
    baseline = [bag_of_words.precision(f.text, k) for f, k in zip(facts, known, strict=True)]
    ids, truth = [f.example.id for f in facts], [float(f.label) for f in facts]
    return _figure("FaithScore, is a fact true", ids, rewards[:, 0], baseline, truth, auc)


def _sentences(sentences: Sequence[Labelled]) -> Figure:
    return _figure(
        "FaithScore, does it describe",
        [s.example.id for s in sentences],
        [describes(s.text) for s in sentences],
        [bag_of_words.descriptive(s.text) for s in sentences],
        [float(s.label) for s in sentences],
        auc,
    )


def _rewards(examples: Sequence[Example], captions: Sequence[str]) -> Float[np.ndarray, "n k"]:
    return rewards_of(LexicalJudge()(examples, captions), REWARDS)


def _figure(
    name: str,
    ids: Sequence[str],
    judge: Sequence[float] | Float[np.ndarray, " n"],
    baseline: Sequence[float],
    labels: Sequence[float],
    agreement: Agreement,
) -> Figure:
    scores, truth = np.asarray(judge, np.float64), np.asarray(labels, np.float64)
    place = {id_: i for i, id_ in enumerate(sorted(set(ids)))}
    odd: Bool[np.ndarray, " n"] = np.array([place[id_] % 2 == 1 for id_ in ids])
    halves = (agreement(scores[~odd], truth[~odd]), agreement(scores[odd], truth[odd]))
    others = agreement(np.asarray(baseline, np.float64), truth)
    return Figure(name, len(ids), agreement(scores, truth), others, halves)


def captions_per_second(labels: HumanLabels) -> float:
    """Of captions that were never read, with the references read before."""
    rated = labels.captions
    examples = [r.example for r in rated]
    judge = LexicalJudge()
    judge(examples, ["" for _ in rated])
    captions = [f"In front, {r.caption}" for r in rated]  # new to every cache
    start = time.perf_counter()
    judge(examples, captions)
    return len(rated) / (time.perf_counter() - start)


def table(figures: Sequence[Figure]) -> Table:
    """The figures for people."""
    rendered = Table(title="Agreement of the offline judge with people", box=box.SIMPLE)
    rendered.add_column("")
    for column in ("labels", "judge", "words", "halves"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for f in figures:
        halves = " / ".join(f"{half:.3f}" for half in f.halves)
        rendered.add_row(f.name, str(f.count), f"{f.judge:.3f}", f"{f.baseline:.3f}", halves)
    return rendered


def run_and_print(folder: Path, *, json: bool = False) -> None:
    """`balcap bench judge`: a table, or JSON for programs."""
    console = Console()
    labels = read_labels(folder)
    figures, speed = measure(labels), captions_per_second(labels)
    if json:
        rows = [figure._asdict() for figure in figures]
        console.print_json(data={"figures": rows, "captions_per_second": speed})
        return
    console.print(table(figures))
    console.print(f"{speed:.0f} captions/s in one process", highlight=False)
