"""What training on a verifier's precision brings, by the exact judge of scenes.

    python examples/verifier/compare_runs.py OUT --verified RUN... --exact RUN... --control RUN...

Each kind has one run per seed, in the same order. Prints the exact scores of the held-out captions
before and after training, and draws OUT: what the verifier believes of the captions it was trained
on, and what is true of them, over the steps (of runs with --audit.kind scene).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from balcap_jax.config.base import from_dict
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import REWARDS
from balcap_jax.data.sources import open_sources
from balcap_jax.reporting.plots import BLUE, ORANGE
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.runs.folder import read_jsonl

KINDS = ("verified", "exact", "control")


def exact_scores(run: Path, when: str) -> Float[np.ndarray, " 4"]:
    """Exact precision, recall, linguistic quality and b-CapScore of a run's held-out captions, in
    points.
    """
    config = from_dict(TrainConfig, json.loads((run / "config.json").read_text()), source=str(run))
    _, heldout = open_sources(config.data, seed=config.seed)
    examples = {heldout[i].id: heldout[i] for i in range(config.data.heldout)}
    rows = read_jsonl(run / "evaluation" / f"{when}.jsonl")
    captions = [row["caption"] for row in rows]
    verdicts = SceneJudge()([examples[row["id"]] for row in rows], captions)
    means = rewards_of(verdicts, REWARDS).mean(axis=0)
    return 100 * np.array([*means, harmonic_mean(means)])


def believed_and_true(run: Path) -> Float[np.ndarray, "n 3"]:
    """[step, the verifier's precision, the exact one] of a run's audits, in points, of all captions
    of a step and of those that were audited.
    """
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "audit/precision" in row]
    names = ("reward/precision/mean", "audit/precision")
    return np.array([[row["step"], *(100 * row[name] for name in names)] for row in rows])


def table(runs: dict[str, Sequence[Path]]) -> Table:
    """A row per run, and the gains of each kind with their range over seeds."""
    found = Table()
    for column in ("run", *(f"{name}, before -> after" for name in (*REWARDS, "b-CapScore"))):
        found.add_column(column, justify="left" if column == "run" else "right")
    for kind, of_kind in runs.items():
        scores = [[exact_scores(run, when) for when in ("before", "after")] for run in of_kind]
        for run, (before, after) in zip(of_kind, scores, strict=True):
            cells = (f"{b:.1f} -> {a:.1f}" for b, a in zip(before, after, strict=True))
            found.add_row(run.name, *cells)
        if scores:
            gains = np.diff(np.array(scores), axis=1)[:, 0]
            found.add_row(
                f"{kind}: mean gain", *(f"{x:+.1f}" for x in gains.mean(axis=0)), end_section=True
            )
    return found


def draw(runs: Sequence[Path], path: Path) -> None:
    """The gap between what is believed and what is true, a panel per run."""
    figure = Figure(figsize=(4.0 * len(runs), 3.0), layout="constrained")
    for ax, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        steps, believed, true = believed_and_true(run).T
        ax.plot(steps, believed, color=ORANGE, label="believed by the verifier")
        ax.plot(steps, true, color=BLUE, label="true")
        ax.fill_between(steps, true, believed, color=ORANGE, alpha=0.15)
        ax.set_title(run.name)
        ax.set_xlabel("step")
        ax.set_ylim(0, 100)
    figure.axes[0].set_ylabel("precision of sampled captions, %")
    figure.axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the picture to write")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, nargs="*", default=[], metavar="RUN")
    given = vars(parser.parse_args())
    runs = {kind: given[kind] for kind in KINDS}
    Console(width=120).print(table(runs))
    if runs["verified"]:
        draw(runs["verified"], given["out"])


if __name__ == "__main__":
    main()
