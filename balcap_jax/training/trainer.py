"""Reinforcement learning of a captioner: rollout, judge, advantages, update, again.

A run's folder holds everything it made; `--resume` goes on from its last checkpoint as if it had
never stopped.
"""

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import DistConfig
from balcap_jax.data.loading import Loader
from balcap_jax.data.photos import Photos
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.sources import open_sources
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import POLICY, load_to_train, policy_folder
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.parallel import processes
from balcap_jax.parallel.sharding import BatchRows, local_rows, make_mesh, shard_batch
from balcap_jax.reporting.report import report, summary_table
from balcap_jax.rewards.judges import check_same_judge, judge_record, make_judge
from balcap_jax.rl.train_state import init_state
from balcap_jax.rl.update import Batch, check_split
from balcap_jax.rollout.rollout import Generation
from balcap_jax.runs.compilation import Compilations
from balcap_jax.runs.device_clock import DeviceClock
from balcap_jax.runs.folder import SUMMARY, RunLock, run_folder, write_json_atomic
from balcap_jax.runs.logs import MetricsLog, NoLog, SampleLog
from balcap_jax.runs.progress import training_progress
from balcap_jax.runs.stopwatch import Stopwatch, peak_memory_mb
from balcap_jax.training import experience
from balcap_jax.training.checkpoint import Checkpoints
from balcap_jax.training.evaluate import evaluate, write_evaluation
from balcap_jax.training.failure_window import FailureWindow
from balcap_jax.training.judge_queue import JudgeQueue
from balcap_jax.training.metrics import b_capscore_of
from balcap_jax.training.programs import make_programs
from balcap_jax.training.rollout_queue import Pending, RolloutQueue

SAMPLED_IMAGES = 2  # of a step, in samples.jsonl


def train(config: TrainConfig, *, resume: Path | None = None) -> Path:
    """Trains by `config` in OUT/NAME, or goes on with the run in `resume`.

    Ends early, with everything saved, on SIGTERM. On several hosts (`distributed`), all call this.

    Returns:
      The run's folder.

    Raises:
      UserError: a mistake in settings or data, a full disk, or a judge that gives too little
      signal.
    """
    run = config.out / config.name if resume is None else resume
    with (
        processes.joined(
            config.dist, facts=lambda: processes.facts_of(config, resume=resume), run=run
        ),
        ExitStack() as held,
        _stop_on_sigterm() as stop,
    ):
        if resume is None:
            processes.on_process_zero(lambda: run_folder(config.out, config.name))
        processes.on_process_zero(lambda: held.enter_context(RunLock(run)))
        processes.check_shared(run)
        trainer = Trainer(config, run)
        with closing(trainer):
            trainer.restore()
            trainer.evaluate_once("before")
            trainer.loop(stop)
            if trainer.step < config.steps:
                if processes.is_process_zero():
                    print(
                        f"stopped at step {trainer.step} of {config.steps}, all saved; go on with:"
                    )
                    print(f"  balcap train --resume {run}")
                return run
            trainer.evaluate_once("after")
            trainer.finish()
    return run


@contextmanager
def _stop_on_sigterm() -> Iterator[list[int]]:
    """Yields a list that is no longer empty once SIGTERM has come."""
    caught: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    except ValueError:  # not the main thread: the caller's signals are the caller's
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGTERM, before)


class Trainer:
    """Everything a run holds on to, and its parts as named calls."""

    def __init__(self, config: TrainConfig, run: Path):
        self.config, self.run = config, run
        self.compilations = Compilations()
        self.started = time.perf_counter()
        self.mesh = make_mesh(
            data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor
        )
        check_split(config.prompts_per_step, config.rl.micro_batches, self.mesh)
        self.rows = BatchRows.of(self.mesh, config.prompts_per_step)
        self.source, heldout = open_sources(config.data, seed=config.seed)
        self.heldout = [heldout[i] for i in range(min(len(heldout), config.data.heldout))]
        self.judge = JudgeQueue(
            make_judge(config.judge, data=config.data.path),
            background=config.rollout.overlap_steps > 0,
        )
        self.judge.reference_units(self.heldout[0])  # refuses data that this judge cannot judge
        self.folder = policy_folder(config.model.path)
        self.processor = Processor.load(self.folder)
        model = config.model
        self.policy, params = load_to_train(
            self.folder,
            mesh=self.mesh,
            dtype=model.dtype,
            attention=model.attention,
            remat=model.remat,
        )
        self.clock = DeviceClock()
        self.captioner, self.tester, self.optimizer, self.update, self.reference_logprobs = (
            make_programs(config, self.policy, self.processor, self.mesh, clock=self.clock)
        )
        frozen = () if model.train_vision else self.policy.vision_paths
        self.state = init_state(self.mesh, params, self.optimizer, frozen=frozen, keep=False)
        self.reference_params = None
        if config.rl.kl_coef:  # never trained, so in the dtype of its matmuls
            _, self.reference_params = load_pretrained(
                self.folder, dtype=model.dtype, mesh=self.mesh
            )
        self.step = 0
        self.seconds = 0.0  # of earlier starts of this run
        self.summary: dict[str, Any] = {"judge": judge_record(config.judge)}
        self.failures = FailureWindow(
            run, limit=config.judge.max_failure_share, window=config.judge.failure_window
        )
        # From here on the folder holds a run: a start that failed before this can be made again.
        # Which processes there are is not of the run but of this start of it.
        settings = to_dict(dataclasses.replace(config, dist=DistConfig()))
        processes.on_process_zero(lambda: write_json_atomic(run / "config.json", settings))
        self.checkpoints = Checkpoints(
            run, keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best
        )
        writes = processes.is_process_zero()
        self.metrics = MetricsLog(run) if writes else NoLog()
        self.samples = SampleLog(run) if writes else NoLog()
        self.watch = Stopwatch()
        self.loader = Loader(
            self.source,
            self.processor,
            count=config.prompts_per_step,
            seed=config.seed,
            steps=config.steps + config.rollout.overlap_steps,
            rows=self.rows.local_rows,
            workers=config.data.workers,
        )
        self.queue = RolloutQueue(
            config, self.loader, self.captioner, self.judge, self.watch, rows=self.rows
        )

    # ---- the parts of a run

    def restore(self) -> None:
        """Goes back to the last checkpoint; a run that was killed before its first starts anew."""
        if self.checkpoints.latest_step() is not None:
            self.state, extra = self.checkpoints.restore(self.state)
            self.step, self.seconds = extra["step"], extra["seconds"]
            check_same_judge(extra["summary"]["judge"], self.summary["judge"], run=self.run)
            self.summary = extra["summary"]
            self.judge.restore(extra["spent"])
            self.failures.shares.extend(extra["failures"])
            self.queue.restore(self.step, self.state.params, self.checkpoints)
        self.metrics.truncate_to(self.step)
        self.samples.truncate_to(self.step)

    def loop(self, stop: list[int]) -> None:
        """Steps until the last one or until `stop` is filled; saved at the end in any case."""
        config = self.config
        shown = processes.is_process_zero()
        with training_progress("train", config.steps, done=self.step, shown=shown) as advance:
            while self.step < config.steps and not processes.any_process(bool(stop)):
                row, judged = self.train_step()
                self.step += 1
                if config.evaluation.every and self.step % config.evaluation.every == 0:
                    row |= self.evaluate_in_between()
                if self.step % config.log_every == 0:
                    self.metrics.log(self.step, row)
                if self.step % config.sample_every == 0:
                    images = int((self.rows.judged_rows < SAMPLED_IMAGES).sum())
                    rows = experience.sample_rows(judged, self.judge, config.reward, images=images)
                    self.samples.log(self.step, processes.gather_list(rows))
                if self.step % config.checkpoint.every == 0:
                    self.save(row)
                advance(self.step, _note(row))
        if self.step:
            self.save(row=None)
            self.checkpoints.wait()

    def train_step(self) -> tuple[dict[str, Any], experience.Judged]:
        """One rollout and its updates: a row of metrics, the same on all hosts, and this host's
        captions.
        """
        config, watch, rows = self.config, self.watch, self.rows
        now = self._next_rollout()
        rollout = now.generation.rollout
        own = rows.judged_places
        mask, ended = (x[own] for x in local_rows(self.mesh, (rollout.mask, rollout.ended)))
        with watch.stage("judge"):  # what the device waits for the judge
            answered = now.answer.result()
            judged = experience.reward_captions(
                answered.verdicts,
                now.examples,
                now.captions,
                token_counts=mask.sum(axis=-1),
                reference_tokens=self._reference_tokens(now.examples),
                reward=config.reward,
            )
        with watch.stage("other_hosts"):
            whole = experience.of_whole_batch(judged, rows)
            ended = processes.gather_rows(rows, ended)
        self._check_signal(whole.lost, answered.reasons)
        with watch.stage("update"):
            advantages = np.asarray(
                jax.device_get(experience.advantages_of(whole, config.reward, config.rl))
            )
            update_metrics = self._updates(self._batch(now.generation, whole, advantages))
        self.queue.advance()
        row = experience.rollout_metrics(whole, ended, advantages, config.reward)
        row |= {name: value.item() for name, value in update_metrics.items()}
        row |= self.judge.costs(answered.spent, step=self.step + 1, steps=config.steps)
        row |= watch.lap(tokens=int(whole.token_counts.sum()))
        row |= {
            "device_idle_share": self.clock.idle_share(),
            "peak_memory_mb": peak_memory_mb(),
        }
        return row, judged

    def _next_rollout(self) -> Pending:
        """The captions of this step; a run whose data turn out bad is saved before it stops.

        Not on several hosts: all save together, and the others know nothing of this one's data.
        """
        try:
            return self.queue.current(self.step, self.state.params)
        except UserError:
            if self.step and jax.process_count() == 1:
                self.save(row=None)
                self.checkpoints.wait()
            raise

    def _batch(
        self, generation: Generation, whole: experience.Judged, advantages: Float[np.ndarray, "b g"]
    ) -> Batch:
        """What the update learns from; `whole` and `advantages` are those of all hosts."""
        rollout, local = generation.rollout, self.rows.local_rows
        batch = Batch(
            prompts=generation.prompts,
            tokens=rollout.tokens,
            mask=rollout.mask,
            old_logprobs=rollout.logprobs,
            advantages=shard_batch(self.mesh, advantages[local]),
            valid=shard_batch(self.mesh, whole.valid[local]),
            features=None if self.config.model.train_vision else generation.features,
        )
        if self.reference_params is not None:
            start = self.clock.start()
            logprobs = self.reference_logprobs(self.reference_params, batch)
            self.clock.ran(start, logprobs)
            batch = batch._replace(reference_logprobs=logprobs)
        return batch

    def _updates(self, batch: Batch) -> dict[str, np.ndarray]:
        """The optimizer steps on one rollout; metrics are of the last one."""
        metrics: dict[str, Any] = {}
        start = self.clock.start()
        with jax.transfer_guard("disallow"):  # nothing may go through the host inside a step
            for _ in range(self.config.rl.updates_per_rollout):
                self.state, metrics = self.update(self.state, batch)
        self.clock.ran(start, metrics)
        return jax.device_get(metrics)

    def _reference_tokens(self, examples: list) -> np.ndarray:
        if self.config.reward.length_unit == "words":
            return np.zeros(len(examples))
        tokenizer = self.processor.tokenizer
        return np.array([len(tokenizer(e.reference)["input_ids"]) for e in examples])

    def _check_signal(self, lost: float, reasons: str) -> None:
        """Stops a run that the judge has left, saved as it was before this step."""
        if self.failures.trips(lost):
            self.save(row=None)
            self.checkpoints.wait()
            raise self.failures.error(lost, where=f"step {self.step + 1}", reasons=reasons)
        self.failures.shares.append(lost)

    def save(self, row: dict[str, Any] | None) -> None:
        """A checkpoint of this step, with what a resumed run needs beside the state."""
        metric = None if row is None else b_capscore_of(row)
        extra = {
            "step": self.step,
            "summary": self.summary,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "spent": self.judge.totals,
            "failures": list(self.failures.shares),
        }
        pending = self.queue.to_save()
        self.checkpoints.save(self.step, self.state, extra, metric=metric, pending=pending)

    # ---- held-out images

    def _evaluate(self) -> tuple[dict[str, Any], list[dict]]:
        return evaluate(
            self.tester,
            self.state.params,
            self.judge,
            self.heldout,
            batch_size=self.config.evaluation.batch_size,
            seed=self.config.seed,
        )

    def evaluate_once(self, when: str) -> None:
        """Fills `summary[when]` unless an earlier start of this run has done so."""
        if when in self.summary:
            return
        summary, rows = self._evaluate()
        lost = sum(row["verdict"] is None for row in rows) / len(rows)
        if lost > self.failures.limit:
            reasons = self.judge.last_failures
            raise self.failures.error(lost, where="the held-out images", reasons=reasons)
        self.summary[when] = summary
        processes.on_process_zero(lambda: write_evaluation(self.run, when, rows, self.heldout))
        self.watch.lap(tokens=0)
        self.clock.idle_share()

    def evaluate_in_between(self) -> dict[str, float]:
        """The held-out scores after this step, for its row of metrics."""
        scores, rows = self._evaluate()
        when = f"step_{self.step:06d}"
        processes.on_process_zero(lambda: write_evaluation(self.run, when, rows, self.heldout))
        return {f"heldout/{name}": value for name, value in scores.items()}

    def close(self) -> None:
        """Ends the threads of judge and data, however the run ended."""
        self.judge.close()
        self.loader.close()

    def finish(self) -> None:
        """The trained policy, summary.json, the pictures, and the table on the screen."""
        params = processes.to_process_zero(self.state.params)
        self.checkpoints.close()
        self.clock.close()
        processes.on_process_zero(lambda: self._write(params))

    def _write(self, params: dict) -> None:
        save_pretrained(
            self.run / POLICY,
            self.policy,
            params,
            dtype=self.config.model.dtype,
            source=self.folder,
        )
        self.summary |= {
            "seconds": round(self.seconds + time.perf_counter() - self.started, 1),
            "steps": self.step,
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "bad_images": len(self.source.bad.reasons) if isinstance(self.source, Photos) else 0,
            "skipped_updates": int(jax.device_get(self.state.skipped)),
            "prompt_shapes": sorted(self.captioner.shapes | self.tester.shapes),
            "programs": self.compilations.programs,
            "compile_seconds": round(self.compilations.seconds, 1),
            "judge": self.summary["judge"] | self.judge.totals,
        }
        write_json_atomic(self.run / SUMMARY, self.summary)
        self.compilations.close()
        self.metrics.close()
        self.samples.close()
        made = report(self.run, band=(self.config.reward.tau_l, self.config.reward.tau_u))
        screen = Console()
        screen.print(summary_table(self.summary))
        screen.print(self._compiled(), highlight=False, soft_wrap=True)
        for path in (*made, self.run / SUMMARY, self.run / POLICY):
            screen.print(f"  {path}", highlight=False, soft_wrap=True)

    def _compiled(self) -> str:
        """What was compiled, and why."""
        counts, shapes = self.compilations, self.summary["prompt_shapes"]
        sizes = ", ".join(f"{t} tokens + {p} patches in {w} windows" for t, p, w in shapes)
        return (
            f"{counts.programs} programs were made ready in {counts.seconds:.0f} s, "
            f"{counts.from_cache} of them from the cache; shapes of prompts: {sizes}"
        )


def _note(row: dict[str, Any]) -> str:
    return (
        f"b-CapScore {b_capscore_of(row):.1f}, {row['words']:.0f} words, rho {row['rho/mean']:.2f}"
    )
