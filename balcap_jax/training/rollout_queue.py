"""The rollouts of a run in their order, each handed to the judge as soon as it is sampled.

With `rollout.overlap_steps=1` the rollout of the next step is sampled before the verdicts of this
one are waited for, so that judge and device work at the same time. It is sampled with the
parameters that this step starts from: one step old when it is learned from.
"""

from concurrent.futures import Future
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from balcap_jax.config.commands import TrainConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.loading import Loader
from balcap_jax.parallel.processes import is_process_zero
from balcap_jax.parallel.sharding import BATCH_AXES, BatchRows
from balcap_jax.rewards.callables import Completions, TrainerState
from balcap_jax.rollout.rollout import Captioner, Generation
from balcap_jax.rollout.sampling import Rollout, rollout_shapes
from balcap_jax.runs.stopwatch import Stopwatch
from balcap_jax.training.judge_queue import Answered, JudgeQueue


class Pending(NamedTuple):
    """The captions of a step that are not learned from yet.

    Attributes:
      examples, captions: those that this host judges; `generation` is of all hosts.
      answer: of judge and reward functions, to come; None where no step of this run will need it.
    """

    examples: list[Example]
    generation: Generation
    captions: list[list[str]]
    answer: Future[Answered] | None


class RolloutQueue:
    """Samples captions and hands them to the judge; holds those that wait for their step."""

    def __init__(
        self,
        config: TrainConfig,
        loader: Loader,
        captioner: Captioner,
        judge: JudgeQueue,
        watch: Stopwatch,
        *,
        rows: BatchRows,
    ):
        self._config, self._loader, self._captioner = config, loader, captioner
        self._judge, self._watch, self._rows = judge, watch, rows
        self._waiting: list[Pending] = []  # this step's, then the next one's

    def current(self, step: int, params: dict) -> Pending:
        """The captions of `step`; with overlap, those of the next step are sampled now, too."""
        while len(self._waiting) <= self._config.rollout.overlap_steps:
            self._waiting.append(self._sample(step + len(self._waiting), params))
        return self._waiting[0]

    def advance(self) -> None:
        """The current captions are learned from."""
        self._waiting.pop(0)

    def to_save(self) -> Rollout | None:
        """What a checkpoint must hold to go on exactly: the rollout that the next step learns from.

        As tokens and logprobs: the parameters it was sampled with are gone, and would be as large
        as the whole state. None without overlap, where the state alone makes it again. That of a
        later step is made again from the state likewise.
        """
        if not self._config.rollout.overlap_steps or not self._waiting:
            return None
        return self._waiting[0].generation.rollout

    def shapes(self) -> Rollout:
        """Of what `to_save` returns."""
        return rollout_shapes(
            batch=self._config.prompts_per_step,
            group=self._config.rollout.group_size,
            length=self._config.rollout.max_new_tokens,
            sharding=NamedSharding(self._captioner.mesh, PartitionSpec(BATCH_AXES)),
        )

    def restore(self, step: int, params: dict, rollout: Rollout | None) -> None:
        """Takes up the rollout of `step` that a checkpoint held, if it held one.

        It is judged again; a cache makes that free.
        """
        if rollout is not None:
            self._waiting = [self._sample(step, params, kept=rollout)]

    def _state_at(self, step: int) -> TrainerState:
        config = self._config
        return TrainerState(
            global_step=step,
            max_steps=config.steps,
            epoch=step * config.prompts_per_step / len(self._loader.source),
            is_world_process_zero=is_process_zero(),
        )

    def _sample(self, step: int, params: dict, *, kept: Rollout | None = None) -> Pending:
        """The captions of `step`, sampled or kept from earlier, on their way to the judge."""
        config, watch = self._config, self._watch
        with watch.stage("data"):
            examples, prompts = self._loader.step(step)
        with watch.stage("rollout"):
            if kept is None:
                key = jax.random.fold_in(jax.random.key(config.seed), step)
                generation = self._captioner.generate(
                    params, examples, key, images=self._rows.local_rows, prompts=prompts
                )
            else:
                generation = self._captioner.regenerate(params, examples, kept, prompts=prompts)
            sampled = self._captioner.sampled(generation.rollout)
        judged = self._rows.judged_places
        examples, sampled = [examples[i] for i in judged], [sampled[i] for i in judged]
        captions = [[caption.text for caption in group] for group in sampled]
        if step >= config.steps:  # kept for a run that is resumed with more steps, and pays then
            return Pending(examples, generation, captions, answer=None)
        with watch.stage("judge"):  # all of the judge's time without overlap, nothing with it
            completions = Completions(
                examples=[e for e, group in zip(examples, sampled, strict=True) for _ in group],
                captions=[caption.text for group in sampled for caption in group],
                ids=[caption.ids for group in sampled for caption in group],
            )
            answer = self._judge.hand_in(completions, self._state_at(step))
        return Pending(examples, generation, captions, answer)
