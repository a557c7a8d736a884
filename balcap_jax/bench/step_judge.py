"""`balcap bench step --judge`: what a judge on the run's own devices costs, beside the update of
the same step, where judge and policy are of one size.
"""

import json as json_text
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from balcap_jax.bench.step import versions
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    RolloutConfig,
)
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rewards.model.judge import ModelJudge
from balcap_jax.rewards.model.scorer import StatementScorer
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.training.trainer import Trainer

STAGES = ("rollout", "judge", "update")
_COMPILING = 2  # first steps, in which programs are compiled
IMAGES, GROUP, TOKENS = 8, 8, 48


class _AnyJudge(ModelJudge):
    """Judges however little it sees: what it costs does not depend on that."""

    def check(self) -> None:
        """Refuses nothing."""


def run(*, rounds: int, images: int = IMAGES, group: int = GROUP) -> dict[str, Any]:
    """A training run of the base policy on scenes, judged by the base policy: seconds of its
    stages, medians over `rounds` steps behind those that compile, and what was asked.
    """
    mesh = make_mesh()
    scorer = StatementScorer.load(
        policy_folder("base"), mesh=mesh, dtype="float32", images=images, image_side=1024
    )
    steps = rounds + _COMPILING
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            out=Path(folder),
            steps=steps,
            prompts_per_step=images,
            sample_every=steps,
            loggers=(),
            data=DataConfig(heldout=images),
            rollout=RolloutConfig(group_size=group, max_new_tokens=TOKENS),
            mesh=MeshConfig(data=-1),
            checkpoint=CheckpointConfig(every=steps),
            evaluation=EvaluationConfig(batch_size=images),
        )
        made = Trainer(config, judge=_AnyJudge(scorer, SceneJudge(), name="base")).train()
        rows = read_jsonl(made / "metrics.jsonl")[_COMPILING:]
    seconds = {name: [row[f"seconds/{name}"] for row in rows] for name in STAGES}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    questions, statements = (
        sum(row[f"judge/{name}"] for row in rows) for name in ("questions", "statements")
    )
    return {
        "images": images,
        "group": group,
        "tokens": TOKENS,
        "seconds": seconds,
        "medians": medians,
        "judge_per_update": statistics.median(
            j / u for j, u in zip(seconds["judge"], seconds["update"], strict=True)
        ),
        "questions": questions / rounds,
        "statements": statements / rounds,
        "versions": versions(None),
    }


def run_and_print(*, rounds: int, json: bool = False) -> None:
    """A table, or one line of JSON."""
    report = run(rounds=rounds)
    if json:
        print(json_text.dumps(report))  # noqa: T201 - exactly one line, whatever its width
        return
    table = Table(
        title=f"{report['images']} images, {report['group']} captions of at most "
        f"{report['tokens']} tokens; judge and policy of one size",
        box=box.SIMPLE,
    )
    for name in ("", *STAGES):
        table.add_column(name, justify="right")
    table.add_row("median, s", *(f"{report['medians'][name]:.3f}" for name in STAGES))
    console = Console()
    console.print(table)
    console.print(
        f"Judging takes {report['judge_per_update']:.2f} times the update. Per step "
        f"{report['questions']:.0f} questions were asked for {report['statements']:.0f} statements."
    )
    console.print("; ".join(f"{name} {value}" for name, value in report["versions"].items()))
