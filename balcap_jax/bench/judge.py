"""Measures the offline judge, and a bag of words beside it, against people's labels, and against
captions of other photos, which are the zero of its scale.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from balcap_jax.bench import bag_of_words
from balcap_jax.bench.agreement import (
    Agreement,
    auc,
    bootstrap,
    held_out,
    numbered,
    pearson,
    within,
)
from balcap_jax.bench.judge_data import HumanLabels, Labelled, Rated, read_labels
from balcap_jax.config.sections import REWARDS
from balcap_jax.data.examples import Example
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.lexical.judge import LexicalJudge
from balcap_jax.rewards.lexical.pointing import describes

Interval = tuple[float, float]


class Figure(NamedTuple):
    """One agreement with people.

    Attributes:
      name: what is compared.
      count: labels.
      judge, baseline: on all of them.
      halves: of the judge, on the images that rules and constants were chosen on and on the others
        (`agreement.is_held_out`).
      interval: of the judge, 95 %, over images.
      gain: interval of judge - baseline.
    """

    name: str
    count: int
    judge: float
    baseline: float
    halves: tuple[float, float]
    interval: Interval
    gain: Interval


class Zero(NamedTuple):
    """A reward of people's captions, judged for their own photo and for another one.

    Attributes:
      name: of the reward.
      own, other: means.
      gap: interval of their difference, 95 %, over images.
    """

    name: str
    own: float
    other: float
    gap: Interval


def measure(labels: HumanLabels) -> list[Figure]:
    """All agreements, from the same rewards and chances that training uses."""
    return [
        *_captions("all", labels.captions),
        *_captions("models", [r for r in labels.captions if r.system != "Human"]),
        _facts(labels.facts),
        _sentences(labels.sentences),
    ]


def zeros(labels: HumanLabels) -> list[Zero]:
    """Rewards of people's captions for their own photo and for the one whose id is next."""
    people = sorted((r for r in labels.captions if r.system == "Human"), key=lambda r: r.example.id)
    captions = [r.caption for r in people]
    examples = [r.example for r in people]
    own = _rewards(examples, captions)
    other = _rewards([*examples[1:], *examples[:1]], captions)
    images = np.arange(len(people))
    found = []
    for name, mine, others in zip(
        (*REWARDS, "b-CapScore"), _with_mean(own).T, _with_mean(other).T, strict=True
    ):
        gap = mine - others
        interval = bootstrap(lambda places, _, gap=gap: float(gap[places].mean()), images)
        found.append(Zero(name, float(mine.mean()), float(others.mean()), interval))
    return found


def _with_mean(rewards: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 4"]:
    return np.concatenate([rewards, harmonic_mean(rewards.T)[:, None]], axis=1)


def _captions(name: str, rated: Sequence[Rated]) -> list[Figure]:
    rewards = _rewards([r.example for r in rated], [r.caption for r in rated])
    references = [r.example.references for r in rated]
    pairs = list(zip((r.caption for r in rated), references, strict=True))
    ids = [r.example.id for r in rated]
    words = np.array(
        [(bag_of_words.precision(*pair), bag_of_words.recall(*pair)) for pair in pairs]
    )
    marks = np.array([(r.precision, r.recall) for r in rated])
    both = ("both", harmonic_mean(rewards.T), harmonic_mean(words.T), marks.mean(axis=1))
    compared = [
        ("precision", rewards[:, 0], words[:, 0], marks[:, 0]),
        ("recall", rewards[:, 1], words[:, 1], marks[:, 1]),
    ]
    return [
        *(_figure(f"{what}, {name}", ids, *each, pearson) for what, *each in compared),
        *(_figure(f"{what} within, {name}", ids, *each, within) for what, *each in (
            *compared, both)),
    ]  # fmt: skip


def _facts(facts: Sequence[Labelled]) -> Figure:
    rewards = _rewards([f.example for f in facts], [f.text for f in facts])
    known = [[*f.example.references, *(b.label for b in f.example.boxes)] for f in facts]
    baseline = [bag_of_words.precision(f.text, k) for f, k in zip(facts, known, strict=True)]
    ids, truth = [f.example.id for f in facts], [float(f.label) for f in facts]
    return _figure("is a fact true", ids, rewards[:, 0], baseline, truth, auc)


def _sentences(sentences: Sequence[Labelled]) -> Figure:
    return _figure(
        "does it describe",
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
    baseline: Sequence[float] | Float[np.ndarray, " n"],
    labels: Sequence[float] | Float[np.ndarray, " n"],
    agreement: Agreement,
) -> Figure:
    scores, others, truth = (np.asarray(v, np.float64) for v in (judge, baseline, labels))
    images = numbered(ids)
    later = held_out(ids)

    def on(places: np.ndarray, of: np.ndarray = scores, draws: np.ndarray = images) -> float:
        return agreement(of[places], truth[places], numbered(draws[places]))

    def drawn(places: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
        return tuple(agreement(of[places], truth[places], draws) for of in (scores, others))

    everything = np.arange(len(scores))
    return Figure(
        name,
        len(ids),
        on(everything),
        on(everything, others),
        (on(np.flatnonzero(~later)), on(np.flatnonzero(later))),
        bootstrap(lambda p, d: drawn(p, d)[0], images),
        bootstrap(lambda p, d: float(np.subtract(*drawn(p, d))), images),
    )


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
    """The agreements for people."""
    rendered = Table(title="Agreement of the offline judge with people", box=box.SIMPLE)
    rendered.add_column("")
    for column in ("labels", "judge", "words", "halves"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for f in figures:
        halves = " / ".join(f"{half:.3f}" for half in f.halves)
        rendered.add_row(f.name, str(f.count), f"{f.judge:.3f}", f"{f.baseline:.3f}", halves)
    return rendered


def interval_table(figures: Sequence[Figure]) -> Table:
    """How far luck could move them."""
    rendered = Table(title="95 % of bootstraps over images", box=box.SIMPLE)
    rendered.add_column("")
    for column in ("judge", "judge less words"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for f in figures:
        rendered.add_row(f.name, _pair(f.interval), _pair(f.gain))
    return rendered


def zero_table(found: Sequence[Zero]) -> Table:
    """The zero of the scale for people."""
    rendered = Table(title="People's captions of their own and of another photo", box=box.SIMPLE)
    rendered.add_column("")
    for column in ("own", "another's", "gap, 95 %"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for z in found:
        rendered.add_row(z.name, f"{z.own:.3f}", f"{z.other:.3f}", _pair(z.gap))
    return rendered


def _pair(values: tuple[float, float]) -> str:
    return " to ".join(f"{value:.3f}" for value in values)


def run_and_print(folder: Path, *, json: bool = False) -> None:
    """`balcap bench judge`: tables, or JSON for programs."""
    console = Console()
    labels = read_labels(folder)
    figures, zero, speed = measure(labels), zeros(labels), captions_per_second(labels)
    if json:
        data = {
            "figures": [figure._asdict() for figure in figures],
            "zero": [z._asdict() for z in zero],
            "captions_per_second": speed,
        }
        console.print_json(data=data)
        return
    console.print(table(figures))
    console.print(interval_table(figures))
    console.print(zero_table(zero))
    console.print(f"{speed:.0f} captions/s in one process", highlight=False)
