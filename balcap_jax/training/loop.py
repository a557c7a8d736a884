"""One run of reinforcement learning: rollout, judge, advantages, update, again.

A run's folder holds everything it made; `TrainingLoop.restore` goes back to its last checkpoint,
and the run goes on as if it had never stopped.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import conflicts_of
from balcap_jax.config.sections import MEMORY, DistConfig
from balcap_jax.data.loading import Loader
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.decoder.lora import without_adapters
from balcap_jax.models.hf.folders import commit_of, policy_folder
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.models.selection import trains_vision
from balcap_jax.parallel import processes
from balcap_jax.parallel.sharding import BatchRows, local_rows, make_mesh, shard_batch
from balcap_jax.rewards.callables import RewardFunctionError, TrainerState
from balcap_jax.rewards.judges import check_same_judge, judge_record
from balcap_jax.rl.train_state import init_state
from balcap_jax.rl.update import Batch, check_split
from balcap_jax.rollout.rollout import Generation
from balcap_jax.runs.compilation import Compilations
from balcap_jax.runs.device_clock import DeviceClock
from balcap_jax.runs.folder import plain, write_json_atomic
from balcap_jax.runs.loggers import make_loggers
from balcap_jax.runs.logs import MetricsLog, NoLog, SampleLog
from balcap_jax.runs.progress import announce, training_progress, waiting
from balcap_jax.runs.step_average import StepAverage
from balcap_jax.runs.stopwatch import Stopwatch, peak_memory_mb
from balcap_jax.training import experience
from balcap_jax.training.adapter_run import (
    base_digest,
    check_base,
    restored_state,
    state_to_save,
)
from balcap_jax.training.callbacks import Callbacks
from balcap_jax.training.checkpoint import Checkpoints, Restored
from balcap_jax.training.evaluate import evaluate, write_evaluation
from balcap_jax.training.failure_window import FailureWindow
from balcap_jax.training.fingerprint import INVALID, differences, fingerprint
from balcap_jax.training.interrupts import Interrupts, Stopped
from balcap_jax.training.judge_queue import Answered, JudgeQueue
from balcap_jax.training.metrics import score_of, step_scores
from balcap_jax.training.programs import learning_rate_of, make_programs
from balcap_jax.training.rollout_queue import Pending, RolloutQueue
from balcap_jax.training.seams import Seams, open_data, open_judge
from balcap_jax.training.trained import load_policy, trained_of

SAMPLED_IMAGES = 2  # of a step, in samples.jsonl


class TrainingLoop:
    """Everything a run holds on to, and its parts as named calls."""

    def __init__(
        self, config: TrainConfig, run: Path, seams: Seams, interrupts: Interrupts | None = None
    ):
        """Opens data, judge and policy; the folder is a run's from here on.

        Args:
          interrupts: what may end the run early; default: nothing does.

        Raises:
          UserError: a mistake in settings or data; nothing has been written then.
        """
        self.run, self.seams = run, seams
        self.config, self.step = config, 0
        self.interrupts = Interrupts() if interrupts is None else interrupts
        self.callbacks = Callbacks(seams.callbacks)
        self.started = time.perf_counter()
        self._closers: list[Callable[[], None]] = []  # of what is open, in the order of its opening
        try:
            self._open(config)
        except BaseException:
            self.close()
            raise

    def _open(self, config: TrainConfig) -> None:
        self.compilations, self.clock, self.stopwatch = Compilations(), DeviceClock(), Stopwatch()
        self._closers += [self.compilations.close, self.clock.close]
        self._open_mesh(config)
        config = self._open_data(config)
        self.config = config
        self.callbacks.on_start(self)
        self._open_policy()
        self.seconds = 0.0  # of earlier starts of this run
        self.stopped = ""  # why the run is at its end before its last step
        self.best: float | None = None  # score of the best evaluation between steps
        self.scored: tuple[int, float | None] = (0, None)  # the last of them: step and score
        # The row of the last step, whose evaluation is not made yet.
        self.owed: dict[str, Any] | None = None
        self.data_facts: dict[str, Any] = {}
        self.summary: dict[str, Any] = {"judge": judge_record(config.judge, self.seams.judge)}
        self._open_folder()
        self._open_queue()

    def _open_mesh(self, config: TrainConfig) -> None:
        mesh = config.mesh
        self.mesh = make_mesh(data=mesh.data, fsdp=mesh.fsdp, tensor=mesh.tensor)
        check_split(config.prompts_per_step, config.rl.micro_batches, self.mesh)
        self.rows = BatchRows.of(self.mesh, config.prompts_per_step)

    def _open_data(self, config: TrainConfig) -> TrainConfig:
        """Data, judge and reward functions; the settings with the kind of judge that they mean."""
        self.source, self.heldout = open_data(config, self.seams)
        config, judge, functions = open_judge(config, self.seams, self.heldout[0])
        self.judge = JudgeQueue(
            judge,
            functions,
            background=config.rollout.overlap_steps > 0,
            stop=self.interrupts.stop,
        )
        self._closers.append(self.judge.close)
        self.judge.reference_units(self.heldout[0])  # refuses data that this judge cannot judge
        return config

    def _open_policy(self) -> None:
        """Policy and reference policy on the mesh, and the programs that run there."""
        config, model = self.config, self.config.model
        self.folder = policy_folder(model.path, revision=model.revision)
        if commit := commit_of(model.path, self.folder):  # what a resumed run shall start from, too
            model = dataclasses.replace(model, revision=commit)
            self.config = config = dataclasses.replace(config, model=model)
        self.processor = Processor.load(self.folder).limited(
            min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels
        )
        with waiting("reading the weights", shown=processes.is_process_zero()):
            self.policy, params = load_policy(config, self.folder, self.mesh)
        self.programs = make_programs(
            config, self.policy, self.processor, self.mesh, clock=self.clock
        )
        self.trained = trained_of(config, self.policy)
        self.base_digest = base_digest(self.policy, params)
        self.state = init_state(
            self.mesh,
            params,
            self.programs.optimizer,
            trained=self.trained,
            keep=False,
        )
        self.reference_params = None
        if config.rl.kl_coef and not model.lora.on:  # never trained, so in the dtype of its matmuls
            _, self.reference_params = load_pretrained(
                self.folder, dtype=model.dtype, mesh=self.mesh
            )

    def _open_folder(self) -> None:
        """From here on the folder holds a run; a start that failed before can be made again."""
        config = self.config
        # Which processes there are is not of the run but of this start of it.
        self.settings = settings = to_dict(dataclasses.replace(config, dist=DistConfig()))
        self.metrics = self.samples = NoLog()
        processes.on_process_zero(lambda: self._open_logs(settings))
        # Of a run that is resumed they are written once they are known to fit it.
        processes.on_process_zero(
            lambda: None if (self.run / "config.json").exists() else self._write_settings()
        )
        self.checkpoints = Checkpoints(
            self.run, keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best
        )
        self._closers.append(self.checkpoints.close)
        self.average = StepAverage()
        self.failures = FailureWindow(
            self.run, limit=config.judge.max_failure_share, window=config.judge.failure_window
        )

    def _open_logs(self, settings: dict[str, Any]) -> None:
        wanted = (*self.config.loggers, *self.seams.loggers)
        loggers = make_loggers(wanted, self.run, config=settings)
        self.metrics = MetricsLog(self.run, loggers=loggers)
        self._closers.append(self.metrics.close)
        self.samples = SampleLog(self.run)
        self._closers.append(self.samples.close)

    def _open_queue(self) -> None:
        config = self.config
        self.loader = Loader(
            self.source,
            self.processor,
            count=config.prompts_per_step,
            seed=config.seed,
            steps=config.steps + config.rollout.overlap_steps,
            rows=self.rows.local_rows,
            workers=config.data.workers,
        )
        self._closers.append(self.loader.close)
        self.queue = RolloutQueue(
            config,
            self.loader,
            self.programs.captioner,
            self.judge,
            self.stopwatch,
            rows=self.rows,
        )

    # ---- the parts of a run

    def restore(self, which: str = "", *, anyway: bool = False) -> None:
        """Goes back to a checkpoint; a run that was killed before its first starts anew.

        Args:
          which: "best" or the number of a step; "": the newest that is intact.
          anyway: other data and settings than those of the checkpoint are wanted.

        Raises:
          UserError: there is no such checkpoint, or it is of another run: of other data, other
            settings, or past the last step.
        """
        if self.checkpoints.latest_step() is None and not which:
            processes.on_process_zero(self._look_at_data)
        else:
            overlap = self.config.rollout.overlap_steps > 0
            found = self.checkpoints.restore_intact(
                state_to_save(self.policy, self.state),
                step=self.checkpoints.find(which),
                pending_like=self.queue.shapes() if overlap else None,
            )
            processes.on_process_zero(lambda: self._check_same_run(found, anyway=anyway))
            self._take_up(found)
        processes.on_process_zero(self._write_settings)
        self.metrics.truncate_to(self.step)
        self.samples.truncate_to(self.step)

    def _write_settings(self) -> None:
        write_json_atomic(self.run / "config.json", self.settings)

    def _take_up(self, found: Restored) -> None:
        """The run is where it was when `found` was saved."""
        extra = found.extra
        self.state = restored_state(self.policy, found.state, self.state)
        self.step, self.seconds = extra["step"], extra["seconds"]
        self.summary = extra["summary"]
        self.judge.restore(extra["spent"])
        self.failures.shares.extend(extra["failures"])
        self.average.restore(extra.get("average", []))
        self.callbacks.restore(extra.get("callbacks", {}))
        self.best = extra.get("best")
        if extra.get("owed"):
            self.owed = self.average.last()
        if extra.get("stopped_of") == self.config.steps:  # with more steps it goes on
            self.stopped = extra.get("stopped", "")
        self.queue.restore(self.step, self.state.params, found.pending)
        if aside := self.checkpoints.set_aside_after(self.step):
            self._say(f"the checkpoints after step {self.step} are now {', '.join(aside)}")

    def _look_at_data(self, without: Sequence[int] = ()) -> None:
        in_memory = self.config.data.path == MEMORY
        self.data_facts = fingerprint(
            self.config.data, self.source, self.heldout, in_memory=in_memory, without=without
        )

    def _check_same_run(self, found: Restored, *, anyway: bool) -> None:
        """Process 0 compares what the checkpoint says of its run, and tells what is amiss.

        Raises:
          UserError: see `restore`.
        """
        extra, step, last = found.extra, found.step, self.config.steps
        if step > last:
            fit = [str(other) for other in self.checkpoints.own_steps() if other <= last]
            back = f", or go back with --checkpoint {' or '.join(fit)}" if fit else ""
            raise UserError(
                f"{self.run} is at step {step}, which is past the last one by steps={last}; give "
                f"--steps {step} or more{back}."
            )
        check_base(extra, self.base_digest, run=self.run, path=self.config.model.path)
        check_same_judge(extra["summary"]["judge"], self.summary["judge"], run=self.run)
        for broken in found.broken:
            self._say(f"the checkpoint of step {broken} is not intact")
        if found.broken:
            self._say(f"going on from step {step}, the newest that is intact")
        unknown = [] if found.checked else ["checksums"]
        changed = []
        if "settings" in extra:
            changed += conflicts_of(extra["settings"], plain(self.settings))
        else:
            unknown.append("settings")
        then = extra.get("data") or {}
        self._look_at_data(without=then.get(INVALID, ()))
        if then:
            changed += differences(then, plain(self.data_facts))
        else:
            unknown.append("data")
        if unknown:
            self._say(
                f"the checkpoint of step {step} is of an older balcap_jax: its "
                f"{' and '.join(unknown)} cannot be checked"
            )
        if changed and not anyway:
            raise UserError(
                f"{self.run} was saved at step {step} with other data or settings, which differ "
                f"in {', '.join(changed)}; restore them, start a new run with --name, or go on all "
                "the same with --resume-anyway."
            )
        if changed:
            self._say(f"going on although these differ: {', '.join(changed)}")
        rows = self.metrics.rows_to(step)
        if "logged" in extra and rows < extra["logged"]:
            self._say(
                f"{self.run / 'metrics.jsonl'} holds {rows} of the {extra['logged']} rows up to "
                f"step {step}; the others are lost, and the curves begin later"
            )

    def _say(self, line: str) -> None:
        announce(line, shown=processes.is_process_zero())

    def loop(self) -> None:
        """Steps until the last one, until a callback stops, or until an interrupt; saved at the end
        in any case.
        """
        config = self.config
        shown = processes.is_process_zero()
        with (
            training_progress(
                "train",
                config.steps,
                done=self.step,
                note="" if self.done else "compiling sampler and update",
                shown=shown,
            ) as advance,
            self.interrupts.held(),
        ):
            with suppress(Stopped):
                while self.owed or not (self.done or self._is_interrupted()):
                    if self.owed is None:
                        self._step()
                    row = self._finish_step()
                    advance(self.step, _note(row, config.reward.all_names))
            if self.step:
                self._save_and_wait()

    def _is_interrupted(self) -> bool:
        return processes.any_process(self.interrupts.stop.is_set())

    def _step(self) -> None:
        """One step without its evaluation, which it owes from here on."""
        row, judged = self.train_step()
        self.step += 1
        self.average.add(row)
        self.owed = row
        if self.step % self.config.sample_every == 0:
            with self._saved_on_error():
                self._log_samples(judged)

    def _finish_step(self) -> dict[str, Any]:
        """Evaluation, logs and checkpoint of the last step; its row.

        Raises:
          Stopped: in the evaluation, which stays owed.
        """
        assert self.owed is not None
        scores = self._evaluate_in_between()
        row, self.owed = self.owed | scores, None
        self.average.amend(scores)
        is_best = self._is_best(scores)
        self._tell(row, scores)
        if is_best or self.step % self.config.checkpoint.every == 0:
            self.save()
        return row

    def _is_best(self, scores: Mapping[str, float]) -> bool:
        """Whether these held-out scores are the best so far, and shall be kept."""
        if not scores or not self.config.checkpoint.keep_best:
            return False
        score = score_of(scores, self.config.reward.all_names)
        self.scored = self.step, score
        if score is None or (self.best is not None and score <= self.best):
            return False
        self.best = score
        return True

    @property
    def done(self) -> bool:
        """All steps are made, or a callback has stopped the run."""
        return bool(self.stopped) or self.step >= self.config.steps

    def train_step(self) -> tuple[dict[str, Any], experience.Judged]:
        """One rollout and its updates: a row of metrics, the same on all hosts, and this host's
        captions.
        """
        config, watch = self.config, self.stopwatch
        now = self._next_rollout()
        with watch.stage("judge"):  # what the device waits for the judge
            answered = self._answer(now)
            judged, ended = self._reward(now, answered)
        with watch.stage("other_hosts"):
            whole = experience.of_whole_batch(judged, self.rows)
            ended = processes.gather_rows(self.rows, ended)
        self._check_signal(whole.lost, answered.reasons)
        with watch.stage("update"):
            advantages = np.asarray(
                jax.device_get(experience.advantages_of(whole, config.reward, config.rl))
            )
            learning_rate = self._learning_rate()
            update_metrics = self._updates(self._batch(now.generation, whole, advantages))
        self.queue.advance()
        row = experience.rollout_metrics(whole, ended, advantages, config.reward)
        row |= {name: value.item() for name, value in update_metrics.items()}
        row |= {
            "learning_rate": learning_rate,
            "epoch": (self.step + 1) * config.prompts_per_step / len(self.source),
        }
        row |= self.judge.costs(answered.spent, step=self.step + 1, steps=config.steps)
        row |= watch.lap(tokens=int(whole.token_counts.sum()))
        row |= {
            "device_idle_share": self.clock.idle_share(),
            "peak_memory_mb": peak_memory_mb(),
        }
        return self._with_function_metrics(row, answered), judged

    def _answer(self, now: Pending) -> Answered:
        """What judge and reward functions found; a function that fails ends the run, saved.

        Raises:
          Stopped: on all processes, where one has been interrupted.
        """
        failed, answered, stopped = "", None, False
        try:
            assert now.answer is not None
            answered = self.judge.wait(now.answer)
        except RewardFunctionError as error:
            failed = str(error)
        except Stopped:
            stopped = True
        told = processes.gather_list([[failed, stopped]])
        if failures := [text for text, _ in told if text]:
            self._save_and_wait()
            raise RewardFunctionError(failures[0])
        if any(of_process for _, of_process in told):  # nothing of this step is kept
            raise Stopped
        assert answered is not None
        return answered

    def _reward(
        self, now: Pending, answered: Answered
    ) -> tuple[experience.Judged, Bool[np.ndarray, "b g"]]:
        """This host's captions with their rewards, and which of them ended by themselves."""
        rollout, places = now.generation.rollout, self.rows.judged_places
        mask, ended = (x[places] for x in local_rows(self.mesh, (rollout.mask, rollout.ended)))
        judged = experience.reward_captions(
            answered,
            now.examples,
            now.captions,
            token_counts=mask.sum(axis=-1),
            reference_tokens=self._reference_tokens(now.examples),
            reward=self.config.reward,
        )
        return judged, ended

    def _with_function_metrics(self, row: dict[str, Any], answered: Answered) -> dict[str, Any]:
        """`row` with what reward functions gave `log_metric`, the mean over the hosts."""
        given = processes.gather_list([answered.functions.metrics])
        for name in sorted({name for of_host in given for name in of_host}):
            if name in row:
                self._save_and_wait()
                raise RewardFunctionError(
                    f"A reward function called log_metric({name!r}), which is a number of the run "
                    "itself; give it another name."
                )
            row[name] = float(np.mean([of_host[name] for of_host in given if name in of_host]))
        return row

    def _learning_rate(self) -> float:
        """Of the next update; skipped ones do not count."""
        step, skipped = jax.device_get((self.state.step, self.state.skipped))
        return learning_rate_of(self.config, int(step - skipped))

    def _log_samples(self, judged: experience.Judged) -> None:
        images = int((self.rows.judged_rows < SAMPLED_IMAGES).sum())
        rows = experience.sample_rows(judged, self.judge, self.config.reward, images=images)
        rows = processes.gather_list(rows)
        self.samples.log(self.step, rows)
        if self.metrics.takes_samples and jax.process_count() == 1:  # others hold their own images
            pictures = {example.id: example.image for example in judged.examples[:images]}
            self.metrics.log_samples(self.step, rows, list(pictures.values()))

    def _tell(self, row: dict[str, Any], scores: dict[str, float]) -> None:
        """Loggers and callbacks hear of this step; where one fails, the run is saved first."""
        config = self.config
        with self._saved_on_error():
            if self.step % config.log_every == 0 or scores or self.step == config.steps:
                self.metrics.log(self.step, self.average.take())
            self.callbacks.on_step(self, self.step, row)
            if scores:
                self.callbacks.on_evaluate(self, self.step, scores)

    @contextmanager
    def _saved_on_error(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            self._save_and_wait()
            raise

    def stop(self, reason: str) -> None:
        """Ends the run after this step as if it were the last one; for callbacks."""
        self.stopped = reason

    def _next_rollout(self) -> Pending:
        """The captions of this step; a run whose data turn out bad is saved before it stops.

        Not on several hosts: all save together, and the others know nothing of this one's data.
        """
        try:
            return self.queue.current(self.step, self.state.params)
        except UserError:
            if self.step and jax.process_count() == 1:
                self._save_and_wait()
            raise

    def _batch(
        self, generation: Generation, whole: experience.Judged, advantages: Float[np.ndarray, "b g"]
    ) -> Batch:
        """What the update learns from; `whole` and `advantages` are those of all hosts."""
        rollout, local = generation.rollout, self.rows.local_rows
        moves = trains_vision(self.policy, self.state.params, self.trained)
        batch = Batch(
            prompts=generation.prompts,
            tokens=rollout.tokens,
            mask=rollout.mask,
            old_logprobs=rollout.logprobs,
            advantages=shard_batch(self.mesh, advantages[local]),
            valid=shard_batch(self.mesh, whole.valid[local]),
            features=None if moves else generation.features,
        )
        if self.config.rl.kl_coef:
            start = self.clock.start()
            reference = self.reference_params or without_adapters(self.state.params)
            logprobs = self.programs.reference_logprobs(reference, batch)
            self.clock.ran(start, logprobs)
            batch = batch._replace(reference_logprobs=logprobs)
        return batch

    def _updates(self, batch: Batch) -> dict[str, np.ndarray]:
        """The optimizer steps on one rollout; metrics are of the last one."""
        metrics: dict[str, Any] = {}
        start = self.clock.start()
        with jax.transfer_guard("disallow"):  # nothing may go through the host inside a step
            for _ in range(self.config.rl.updates_per_rollout):
                self.state, metrics = self.programs.update(self.state, batch)
        self.clock.ran(start, metrics)
        return jax.device_get(metrics)

    def _reference_tokens(self, examples: list) -> np.ndarray:
        if self.config.reward.length_unit == "words":
            return np.zeros(len(examples))
        tokenizer = self.processor.tokenizer
        return np.array([len(tokenizer(e.reference)["input_ids"]) for e in examples])

    def _check_signal(self, lost: float, reasons: str) -> None:
        """Stops a run whose judge stopped responding, saved as it was before this step."""
        if self.failures.trips(lost):
            self.judge.share_totals()
            self._save_and_wait()
            raise self.failures.error(lost, where=f"step {self.step + 1}", reasons=reasons)
        self.failures.shares.append(lost)

    def save(self) -> None:
        """A checkpoint of this step, with what a resumed run needs beside the state."""
        scored, score = self.scored
        extra = {
            "step": self.step,
            "summary": self.summary,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "spent": self.judge.totals,
            "failures": list(self.failures.shares),
            "average": self.average.state(),
            "callbacks": self.callbacks.state(),
            "stopped": self.stopped,
            "stopped_of": self.config.steps,
            "settings": self.settings,
            "data": self.data_facts,
            "logged": self.metrics.rows_to(self.step),
            "best": self.best,
            "owed": self.owed is not None,
            "base": self.base_digest,
        }
        self.checkpoints.save(
            self.step,
            state_to_save(self.policy, self.state),
            extra,
            metric=score if scored == self.step else None,
            pending=self.queue.to_save(),
        )
        self.callbacks.on_save(self, self.step)

    def _save_and_wait(self) -> None:
        self.save()
        self.checkpoints.wait()

    # ---- held-out images

    def _evaluate(self) -> tuple[dict[str, Any], list[dict]]:
        return evaluate(
            self.programs.tester,
            self.state.params,
            self.judge,
            self.heldout,
            TrainerState(
                global_step=self.step,
                max_steps=self.config.steps,
                epoch=self.step * self.config.prompts_per_step / len(self.source),
                is_world_process_zero=processes.is_process_zero(),
            ),
            batch_size=self.config.evaluation.batch_size,
            seed=self.config.seed,
        )

    def evaluate_once(self, when: str) -> None:
        """Fills `summary[when]` unless an earlier start of this run has done so."""
        if when in self.summary:
            return
        doing = f"captioning {len(self.heldout)} held-out images, {when} training"
        with waiting(doing, shown=processes.is_process_zero()):
            summary, rows = self._evaluate()
        lost = sum(row["verdict"] is None for row in rows) / len(rows) if self.judge.judges else 0.0
        if lost > self.failures.limit:
            reasons = self.judge.last_failures
            raise self.failures.error(lost, where="the held-out images", reasons=reasons)
        self.summary[when] = summary
        processes.on_process_zero(lambda: write_evaluation(self.run, when, rows, self.heldout))
        self.stopwatch.lap(tokens=0)
        self.clock.idle_share()

    def _evaluate_in_between(self) -> dict[str, float]:
        """The held-out scores after this step, for its row of metrics; empty where none are due."""
        every = self.config.evaluation.every
        if not every or self.step % every:
            return {}
        scores, rows = self._evaluate()
        when = f"step_{self.step:06d}"
        processes.on_process_zero(lambda: write_evaluation(self.run, when, rows, self.heldout))
        return {f"heldout/{name}": value for name, value in scores.items()}

    def close(self) -> None:
        """Ends the threads and closes the files, however the run ended; twice is fine."""
        while self._closers:
            close = self._closers.pop()
            if sys.exc_info()[0] is None:
                close()
            else:  # it has an error already, which this one must not hide
                with suppress(Exception):
                    close()


def _note(row: dict[str, Any], names: Sequence[str]) -> str:
    return f"{step_scores(row, names)}, {row['words']:.0f} words, rho {row['rho/mean']:.2f}"
