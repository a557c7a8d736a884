"""The rollouts of a run in their order, each handed to the judge as soon as it is sampled.

With `rollout.overlap_steps=L` the rollouts of the next L steps are sampled before the verdicts of
this one are waited for, so that judge and device work at the same time. The last of them is sampled
with the parameters that this step starts from: L steps old when it is learned from. The first L + 1
rollouts of a run are sampled with the parameters that it starts from. Which parameters a rollout is
from is so a function of its step alone, as its images and keys are.
"""

from collections import deque
from collections.abc import Sequence
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
from balcap_jax.rollout.decoding import Rollout, rollout_shapes
from balcap_jax.rollout.rollout import Caption, Captioner, Generation, Tell
from balcap_jax.runs.stopwatch import Stopwatch
from balcap_jax.training.judge_queue import Answered, Coming, JudgeQueue


class Pending(NamedTuple):
    """The captions of a step that are not learned from yet.

    Attributes:
      examples, captions: those that this host judges; `generation` is of all hosts.
      answer: of judge and reward functions, to come; None where no step of this run will need it.
      sampled_at: the step that started from the parameters it was sampled with.
    """

    examples: list[Example]
    generation: Generation
    captions: list[list[str]]
    answer: Future[Answered] | None
    sampled_at: int


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
        self._waiting: deque[Pending] = deque()  # this step's, then those of the next ones

    def current(self, step: int, params: dict) -> Pending:
        """The captions of `step`; with overlap, what lacks of the next steps is sampled now, too.

        Args:
          params: those that `step` starts from.
        """
        while len(self._waiting) <= self._config.rollout.overlap_steps:
            self._waiting.append(self._sample(step + len(self._waiting), params, at=step))
        return self._waiting[0]

    def advance(self) -> None:
        """The current captions are learned from."""
        self._waiting.popleft()

    def to_save(self) -> list[Rollout] | None:
        """What a checkpoint must hold to go on exactly: the rollouts that the next steps learn
        from, in their order.

        As tokens and logprobs: the parameters they were sampled with are gone, and would be as
        large as the whole state. None without overlap, where the state alone makes them again, as
        it makes the last one of a step that was begun and not made.
        """
        return [pending.generation.rollout for pending in self._kept()] or None

    def sampled_at(self) -> list[int]:
        """See `Pending`, of each rollout in `to_save`."""
        return [pending.sampled_at for pending in self._kept()]

    def _kept(self) -> list[Pending]:
        return list(self._waiting)[: self._config.rollout.overlap_steps]

    def shapes(self) -> Rollout:
        """Of each rollout in `to_save`."""
        return rollout_shapes(
            batch=self._config.prompts_per_step,
            group=self._config.rollout.group_size,
            length=self._config.rollout.max_new_tokens,
            sharding=NamedSharding(self._captioner.mesh, PartitionSpec(BATCH_AXES)),
        )

    def restore(
        self, step: int, params: dict, rollouts: Sequence[Rollout], sampled_at: Sequence[int]
    ) -> None:
        """Takes up what a checkpoint held: the rollouts of `step` and the steps after it.

        They are judged again; a cache makes that free.
        """
        for number, (rollout, at) in enumerate(zip(rollouts, sampled_at, strict=True), step):
            self._waiting.append(self._sample(number, params, at=at, kept=rollout))

    def _state_at(self, step: int) -> TrainerState:
        config = self._config
        return TrainerState(
            global_step=step,
            max_steps=config.steps,
            epoch=step * config.prompts_per_step / len(self._loader.source),
            is_world_process_zero=is_process_zero(),
        )

    def _sample(self, step: int, params: dict, *, at: int, kept: Rollout | None = None) -> Pending:
        """The captions of `step`, sampled or kept from earlier, on their way to the judge."""
        config, watch = self._config, self._watch
        with watch.stage("data"):
            examples, prompts = self._loader.step(step)
        judged = self._rows.judged_places
        # Kept for a run that is resumed with more steps where this one has no more, and pays then.
        pays = step < config.steps
        coming = None
        with watch.stage("rollout"):
            if kept is None:
                key = jax.random.fold_in(jax.random.key(config.seed), step)
                if pays:
                    coming = self._expect([examples[i] for i in judged])
                generation = self._captioner.generate(
                    params,
                    examples,
                    key,
                    images=self._rows.local_rows,
                    prompts=prompts,
                    tell=None if coming is None else self._telling(coming),
                )
            else:
                generation = self._captioner.regenerate(params, examples, kept, prompts=prompts)
            sampled = self._captioner.sampled(generation.rollout)
        examples, sampled = [examples[i] for i in judged], [sampled[i] for i in judged]
        captions = [[caption.text for caption in group] for group in sampled]
        if not pays:
            return Pending(examples, generation, captions, answer=None, sampled_at=at)
        with watch.stage("judge"):  # all of the judge's time without overlap, nothing with it
            completions = Completions(
                examples=[e for e, group in zip(examples, sampled, strict=True) for _ in group],
                captions=[caption.text for group in sampled for caption in group],
                ids=[caption.ids for group in sampled for caption in group],
            )
            answer = self._judge.hand_in(completions, self._state_at(step), coming)
        return Pending(examples, generation, captions, answer, sampled_at=at)

    def _expect(self, examples: Sequence[Example]) -> Coming | None:
        """The groups of these examples, if the judge takes captions one by one."""
        group = self._config.rollout.group_size
        return self._judge.expect([example for example in examples for _ in range(group)])

    def _telling(self, coming: Coming) -> Tell:
        """Tells `coming` of the rows that this host judges."""
        group = self._config.rollout.group_size
        place_of = {int(row): place for place, row in enumerate(self._rows.judged_places)}

        def tell(row: int, number: int, caption: Caption) -> None:
            if row in place_of:  # others are judged by other hosts
                coming.tell(place_of[row] * group + number, caption.text)

        return tell
