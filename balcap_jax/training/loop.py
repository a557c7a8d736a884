"""One run of reinforcement learning: rollout, judge, advantages, update, again."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from balcap_jax.config.reward import RewardConfig
from balcap_jax.data.loading import Loader
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.parallel import processes
from balcap_jax.parallel.sharding import local_rows
from balcap_jax.rewards.callables import RewardFunctionError, TrainerState
from balcap_jax.rewards.function_names import RewardFunction
from balcap_jax.rewards.judges import fit_judge, judge_record
from balcap_jax.rewards.model.judge import ModelJudge
from balcap_jax.rewards.rivals.rivals import rivals_record
from balcap_jax.rewards.study import studied
from balcap_jax.rewards.verdicts import FittedJudge
from balcap_jax.rl.reward_scales import RewardScales
from balcap_jax.rollout.rollout import Generation
from balcap_jax.runs.progress import waiting
from balcap_jax.training import experience
from balcap_jax.training.evaluate import evaluate, write_evaluation
from balcap_jax.training.failure_window import FailureWindow
from balcap_jax.training.interrupts import Stopped
from balcap_jax.training.judge_load import JudgeLoad
from balcap_jax.training.judge_queue import Answered, JudgeQueue
from balcap_jax.training.learner import Learner
from balcap_jax.training.metrics import score_of, step_scores
from balcap_jax.training.model_judge import (
    check_own_policy,
    on_own_captions,
)
from balcap_jax.training.programs import learning_rate_of, make_programs
from balcap_jax.training.rollout_queue import Pending, RolloutQueue
from balcap_jax.training.seams import open_audit, open_data, open_judge, open_rivals
from balcap_jax.training.task_run import TaskRun

SAMPLED_IMAGES = 2  # of a step, in samples.jsonl


class TrainingLoop(TaskRun):
    """A run on rewards: judge, reward functions, rollouts and their updates."""

    command = "train"
    compiling = "sampler and update"
    evaluating = "captioning {} held-out images"

    @property
    def reads_start_again(self) -> bool:
        return self.config.rl.kl_coef > 0

    @property
    def images_per_step(self) -> int:
        return self.config.prompts_per_step

    @property
    def micro_batches(self) -> int:
        return self.config.rl.micro_batches

    # ---- opening

    def _open_data(self) -> None:
        """Data, judge and reward functions; the settings get the kind of judge that they mean."""
        self.source, self.heldout = open_data(self.config, self.seams)
        check_own_policy(self.config)
        config, judge, functions = open_judge(
            self.config, self.seams, self.heldout[0], mesh=self.mesh
        )
        config, rivals = open_rivals(config, self.heldout[0])
        self.model_judge = judge if isinstance(judge, ModelJudge) else None
        self.fitted_judge = judge if isinstance(judge, FittedJudge) else None
        self.judge = JudgeQueue(
            judge,
            functions,
            rivals,
            background=config.rollout.overlap_steps > 0,
            stop=self.interrupts.stop,
        )
        self._closers.append(self.judge.close)
        self.audit = open_audit(config, self.heldout[0], mesh=self.mesh)
        if self.audit is not None:
            self._closers.append(self.audit.close)
        self.judge.reference_units(self.heldout[0])  # refuses data that this judge cannot judge
        self.config = config

    def _open_policy(self) -> None:
        """The policy, and the reference policy where the KL term is on."""
        super()._open_policy()
        self.reference_params = None
        model = self.config.model
        # Never trained, so in the dtype of its matmuls.
        if self.config.rl.kl_coef and not model.lora.on:
            _, self.reference_params = load_pretrained(
                self.folder, dtype=model.dtype, mesh=self.mesh
            )
        self.summary["judge"] = judge_record(self.config.judge, self.seams.judge)
        if self.config.reward.rivals:
            self.summary["rivals"] = rivals_record(self.config.reward)

    def _make_programs(self) -> optax.GradientTransformation:
        self.programs = make_programs(
            self.config, self.policy, self.processor, self.mesh, clock=self.clock
        )
        return self.programs.optimizer

    def _open_task(self) -> None:
        config = self.config
        self.failures = FailureWindow(
            self.run,
            limit=config.judge.max_failure_share,
            window=config.judge.failure_window,
            who=_who(config.reward),
        )
        self.scales = RewardScales(config.rl.grpo_weights, steps=config.rl.grpo_weight_steps)
        self.learner = Learner(
            config,
            self.policy,
            self.programs,
            self.mesh,
            rows=self.rows,
            reference_params=self.reference_params,
            clock=self.clock,
            utilisation=self.utilisation,
            tell=self.say,
        )
        self.load = None  # without overlap the device waits in any case
        if self.judge.totals and (overlap := config.rollout.overlap_steps):
            limits = {
                "judge.concurrency": config.judge.concurrency,
                "reward.judge.concurrency": config.reward.judge.concurrency,
            }
            self.load = JudgeLoad(limits, steps=overlap + 1)
        self.loader = Loader(
            self.source,
            self.processor,
            count=config.prompts_per_step,
            seed=config.seed,
            steps=config.steps + config.rollout.overlap_steps,
            rows=self.rows.local_rows,
            workers=config.data.workers,
            group_by_length=config.data.group_by_length,
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

    def functions(self) -> tuple[RewardFunction, ...]:
        return self.judge.functions.functions

    def _begin(self) -> None:
        audits = None if self.audit is None else self.audit.judge
        for judge in (self.fitted_judge, audits):
            if isinstance(judge, FittedJudge):
                with waiting("measuring the judge", shown=processes.is_process_zero()):
                    fit_judge(judge, self.source)
        if self.fitted_judge is not None:
            self.summary["judge"] |= self.fitted_judge.record()
            for line in self.fitted_judge.told():
                self.say(line)

    def describe(self) -> list[str]:
        rewards = ", ".join(self.config.reward.all_names)
        judge = f"judge {self.summary['judge']['kind']}" if self.judge.judges else "no judge"
        rivals = self.config.reward.rivals
        of_rivals = f"; {', '.join(rivals)} by {self.config.reward.judge.kind}" if rivals else ""
        return [f"rewards: {rewards}; {judge}{of_rivals}"]

    # ---- what a checkpoint holds of it

    def _extra(self) -> dict[str, Any]:
        audit = {} if self.audit is None else {"audit": self.audit.state()}
        judge = {} if self.fitted_judge is None else {"judge": self.fitted_judge.state()}
        return {
            "sampled_at": self.queue.sampled_at(),
            "spent": self.judge.totals,
            "failures": list(self.failures.shares),
            "rooms": self.learner.rooms.state(),
            "scales": self.scales.state(),
            **audit,
            **judge,
        }

    def _restore_extra(self, extra: Mapping[str, Any], pending: Any) -> None:
        if self.fitted_judge is not None:
            self.fitted_judge.restore(extra["judge"])
            for line in self.fitted_judge.told():
                self.say(line)
        self.judge.restore(extra["spent"])
        self.failures.shares.extend(extra["failures"])
        if "rooms" in extra:  # an older checkpoint has none
            self.learner.rooms.restore(extra["rooms"])
        self.scales.restore(extra.get("scales", []))
        if self.audit is not None and "audit" in extra:
            self.audit.restore(extra["audit"])
        if pending is not None:
            kept = pending if "sampled_at" in extra else [pending]  # an older checkpoint has one
            sampled_at = extra.get("sampled_at", [max(self.step - 1, 0)])
            self.queue.restore(self.step, self.state.params, kept, sampled_at)

    def _pending(self) -> Any:
        return self.queue.to_save()

    def _pending_shapes(self, extra: Mapping[str, Any]) -> Any:
        if not self.config.rollout.overlap_steps:
            return None
        shapes = self.queue.shapes()
        return [shapes] * len(extra["sampled_at"]) if "sampled_at" in extra else shapes

    # ---- a step

    def train_step(self) -> tuple[dict[str, Any], experience.Judged]:
        """One rollout and its updates: a row of metrics, the same on all hosts, and this host's
        captions.
        """
        config, watch = self.config, self.stopwatch
        now = self._next_rollout()
        with watch.stage("judge"):  # what the device waits for the judge
            answered = self._answer(now)
            judged, ended, prefix = self._reward(now, answered)
        with watch.stage("other_hosts"):
            whole = experience.of_whole_batch(judged, self.rows)
            ended, prefix = processes.gather_rows(self.rows, (ended, prefix))
        self._check_signal(whole.lost, answered.reasons)
        with watch.stage("update"):
            spread = experience.spread_of(whole, config.rl)
            weights = self.scales.weights(config.reward.all_weights, spread)
            advantages = np.asarray(
                jax.device_get(
                    experience.advantages_of(whole, config.reward, config.rl, weights=weights)
                )
            )
            learning_rate = self._learning_rate()
            learned = self.learner.learn(self.state, now.generation, whole, advantages, prefix)
            self.state = learned.state
        self.queue.advance()
        row = experience.rollout_metrics(whole, ended, advantages, config.reward)
        row |= experience.balance_metrics(
            whole, config.reward, config.rl, weights=weights, spread=spread
        )
        row |= {name: value.item() for name, value in learned.metrics.items()}
        row |= {
            "tokens/real_share": learned.real_share,
            "staleness": (self.step - now.sampled_at) * config.rl.updates_per_rollout,
            "learning_rate": learning_rate,
            "epoch": (self.step + 1) * config.prompts_per_step / len(self.source),
        }
        row |= self.judge.costs(answered.spent, step=self.step + 1, steps=config.steps)
        self._count_rollout(now.generation, longest=int(whole.token_counts.max()))
        row |= self._times_and_memory(tokens=int(whole.token_counts.sum()))
        self._weigh_load(answered, row)
        row = self._with_function_metrics(row, answered)
        return row | self._audited(judged), judged

    def _weigh_load(self, answered: Answered, row: Mapping[str, float]) -> None:
        """Says once where the judge cannot keep up."""
        if self.load is None:
            return
        found: dict[str, tuple[float, float]] = {}
        for of_host in processes.gather_list([answered.calls]):
            for name, (count, seconds) in of_host.items():
                calls, whole = found.get(name, (0.0, 0.0))
                found[name] = calls + count, whole + seconds
        waited = row["seconds/judge"] + row["seconds/other_hosts"]
        for line in self.load.add(found, device_seconds=row["seconds/step"] - waited):
            self.say(line)

    def _audited(self, judged: experience.Judged) -> dict[str, float]:
        """The metrics of an audit, where one is due; a reward that is gamed ends the run."""
        if self.audit is None:
            return {}
        metrics = self.audit.look(self.step + 1, judged)
        if self.audit.verdict:
            self.say(self.audit.verdict)
            self.stop(self.audit.verdict)
        return metrics

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
    ) -> tuple[experience.Judged, Bool[np.ndarray, "b g"], Int[np.ndarray, " b"]]:
        """This host's captions with their rewards, which of them ended by themselves, and the
        lengths of their prompts.
        """
        rollout, places = now.generation.rollout, self.rows.judged_places
        masks = rollout.mask, rollout.ended, now.generation.prompts.mask
        mask, ended, prompt = (x[places] for x in local_rows(self.mesh, masks))
        judged = experience.reward_captions(
            answered,
            now.examples,
            now.captions,
            token_counts=mask.sum(axis=-1),
            reference_tokens=self._reference_tokens(now.examples),
            reward=self.config.reward,
            study=self._study if self.config.study.on else None,
        )
        return judged, ended, prompt.sum(axis=-1, dtype=np.int32)

    def _study(self, rewards: Float[np.ndarray, "b g k"]) -> Float[np.ndarray, "b g k"]:
        """Rewards of this step as the study of this run changes them."""
        return studied(
            rewards,
            self.config.study,
            self.config.reward.all_names,
            seed=self.config.seed,
            step=self.step,
            rows=self.rows.judged_rows,
        )

    def _with_function_metrics(self, row: dict[str, Any], answered: Answered) -> dict[str, Any]:
        """`row` with what reward functions gave `log_metric`, the mean over the hosts."""
        given = processes.gather_list([answered.others.metrics])
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

    def _next_rollout(self) -> Pending:
        with self.saved_if_data_are_bad():
            return self.queue.current(self.step, self.state.params)

    def _count_rollout(self, generation: Generation, *, longest: int) -> None:
        """The flops of the rollout that this step learns from; of `longest` tokens at most."""
        captioner, prompts = self.programs.captioner, generation.prompts
        arguments = (
            self.state.params,
            prompts,
            generation.features,
            captioner.key_shapes(len(prompts.tokens)),
        )
        self.utilisation.ran(
            "rollout", "encode", lambda plain: plain.encode_images, arguments[0], prompts.images
        )
        self.utilisation.ran("rollout", "sample", captioner.sampler, *arguments, trips=longest)

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

    # ---- held-out images

    def _evaluate(self, when: str, *, between: bool) -> dict[str, Any]:
        scores, rows = evaluate(
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
        lost = self._lost(rows)
        if lost > self.failures.limit and not between:
            reasons = self.judge.last_failures
            raise self.failures.error(lost, where="the held-out images", reasons=reasons)
        if self.model_judge is not None and not between:
            captions = [row["caption"] for row in rows]
            line = on_own_captions(self.model_judge, self.heldout, captions)
            if line is not None:
                self.say(f"{line}, {when} training")
        processes.on_process_zero(lambda: write_evaluation(self.run, when, rows, self.heldout))
        return scores

    def _lost(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """The share of held-out captions without a signal of the judge, or of the worst rival."""
        shares = [0.0]
        if self.judge.judges:
            shares.append(sum(row["verdict"] is None for row in rows) / len(rows))
        for name in self.judge.rivals.names:
            shares.append(sum(np.isnan(row["rewards"][name]) for row in rows) / len(rows))
        return max(shares)

    def _score_of(self, scores: Mapping[str, float]) -> float | None:
        return score_of(scores, self.config.reward.all_names)

    def _note(self, row: Mapping[str, Any]) -> str:
        scores = step_scores(row, self.config.reward.all_names)
        return f"{scores}, {row['words']:.0f} words, rho {row['rho/mean']:.2f}"


def _who(reward: RewardConfig) -> str:
    """What gives the signal, in messages."""
    if reward.names:
        return " or ".join(["the judge", *reward.rivals])
    if reward.rivals:
        return f"the judge of {', '.join(reward.rivals)}"
    names = reward.all_names
    return f"the reward function{'s' * (len(names) > 1)} {', '.join(names)}"
