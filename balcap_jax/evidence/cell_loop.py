"""One cell of the evidence: a run of `balcap train` of which numbers are left, and few captions.

Held-out images are captioned twice by one program, drawn as in training and by the likeliest
tokens; no pictures, no samples, no policy.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from balcap_jax.evidence.claims import MOST_CAPTIONS
from balcap_jax.evidence.files import RESULT, read_json
from balcap_jax.evidence.measures import measures_of
from balcap_jax.reporting.row_files import read_metrics
from balcap_jax.rewards.callables import Completions, TrainerState
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.runs.folder import write_json_atomic
from balcap_jax.training.evaluate import caption_rows, evaluation_key, reward_names, summary_of
from balcap_jax.training.loop import TrainingLoop

DECODINGS = ("sampled", "greedy")
# Of metrics.jsonl, what is kept step by step.
_SERIES = ("reward/", "balance/", "weight/", "rho/mean", "rho/std", "words", "commentary")
_NOT_KEPT = ("/no_signal",)


class CellLoop(TrainingLoop):
    """`TrainingLoop` with both ways of writing held-out captions."""

    starts: Path | None = None  # folder of scores of starting policies, which cells share
    start_key = ""  # name of this cell's in it

    def _make_programs(self) -> optax.GradientTransformation:
        optimizer = super()._make_programs()
        config = self.config
        both = Captioner(
            self.policy,
            self.processor,
            self.mesh,
            group_size=len(DECODINGS),
            greedy=1,
            max_new_tokens=config.rollout.max_new_tokens,
            temperature=config.evaluation.temperature,
            clock=self.clock,
        )
        self.programs = self.programs._replace(tester=both)
        return optimizer

    def _evaluate(self, when: str, *, between: bool) -> dict[str, Any]:
        """See `scores`; those of a starting policy may be there already."""
        shared = self._shared_scores() if when == "before" else None
        if shared is not None and shared.exists():
            return read_scores(shared)
        scores = self.scores()
        if shared is not None:
            write_json_atomic(shared, scores)
        return scores

    def _shared_scores(self) -> Path | None:
        return None if self.starts is None else self.starts / f"{self.start_key}.json"

    def scores(self) -> dict[str, Any]:
        """Of the policy as it is now: of drawn captions, and under `greedy/` of likeliest ones."""
        config = self.config
        state = TrainerState(
            global_step=self.step,
            max_steps=config.steps,
            epoch=self.step * config.prompts_per_step / len(self.source),
        )
        own = list(
            self.programs.tester.local_captions(
                self.state.params,
                self.heldout,
                evaluation_key(config.seed),
                batch_size=min(config.evaluation.batch_size, len(self.heldout)),
            )
        )
        found: dict[str, Any] = {}
        for place, decoding in enumerate(DECODINGS):
            completions = Completions(
                examples=self.heldout,
                captions=[group[place].text for _, group in own],
                ids=[group[place].ids for _, group in own],
            )
            rows = caption_rows(self.judge, completions, state, places=range(len(own)))
            scores = summary_of(rows, names=reward_names(self.judge)) | measures_of(rows)
            prefix = "" if decoding == "sampled" else f"{decoding}/"
            found |= {f"{prefix}{name}": value for name, value in scores.items()}
        # In the summary, so that a cell that is killed now has them when it goes on.
        self.summary["captions"] = [
            {name: row[name] for name in ("id", "reference", "caption")}
            for row in rows[:MOST_CAPTIONS]
        ]
        return found


def read_scores(path: Path) -> dict[str, Any]:
    """Scores of a starting policy, as another cell has written them."""
    return {
        name: float("nan") if value is None else value for name, value in read_json(path).items()
    }


def write_cell(loop: CellLoop, *, beside: Mapping[str, Any]) -> None:
    """Ends a cell with its result.json, after which its run is not needed any more.

    Args:
      beside: what else the file says.
    """
    loop.checkpoints.wait()
    loop.close()
    rows = read_metrics(loop.run / "metrics.jsonl")
    write_json_atomic(
        loop.run.parent / RESULT,
        {
            **beside,
            "scores": {when: loop.summary[when] for when in ("before", "after")},
            "captions": loop.summary["captions"],  # of likeliest tokens
            "series": series_of(rows),
            "steps": loop.step,
            "seconds": loop.seconds + time.perf_counter() - loop.started,
            "step_seconds": sum(row["seconds/step"] for row in rows),
            "compile_seconds": loop.compilations.seconds,
            "skipped_updates": int(jax.device_get(loop.state.skipped)),
        },
    )


def series_of(rows: list[Mapping[str, Any]]) -> dict[str, list]:
    """Columns of the metrics that reports draw, an entry per step."""
    names = [
        name
        for name in (rows[0] if rows else {})
        if name.startswith(_SERIES) and not name.endswith(_NOT_KEPT)
    ]
    return {name: [row.get(name) for row in rows] for name in ("step", *names)}
