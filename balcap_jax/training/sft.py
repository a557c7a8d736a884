"""Supervised training of a policy on captions and conversations: `balcap sft`.

On scenes the captions are those of the fault corpus, which is how the base policy of the package
was made.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from inspect import unwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from balcap_jax.config.commands import SFTConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.lessons import (
    Answers,
    RowLessons,
    SceneLessons,
    answers_of,
    corpus_captions,
)
from balcap_jax.data.prompts.answers import AnswerEncoder
from balcap_jax.data.prompts.questions import NO, YES, QuestionEncoder
from balcap_jax.data.sources import SCENES
from balcap_jax.data.supervised import Supervised, SupervisedLoader, join, prepared
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import POLICY, SCRATCH, START
from balcap_jax.models.padding import pad_to_sizes, sizes_of
from balcap_jax.models.pixels import as_computed
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.qwen2_5_vl.policy import Qwen2_5_VL
from balcap_jax.parallel import processes
from balcap_jax.parallel.sharding import BatchRows, batch_shards, shard_batch
from balcap_jax.reporting.report import report
from balcap_jax.reporting.rows import caption_row
from balcap_jax.rl.supervised import (
    Lesson,
    make_answer_pairs,
    make_supervised_sums,
    make_supervised_update,
)
from balcap_jax.rl.train_state import init_state
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.runs.folder import SUMMARY, replace_folder
from balcap_jax.scenes.captions import FaultRates
from balcap_jax.storage.paths import is_remote
from balcap_jax.training.interrupts import Stopped
from balcap_jax.training.opening import Opened, open_processor
from balcap_jax.training.outcome import finish, tell
from balcap_jax.training.programs import learning_rate_of, optimizer_of
from balcap_jax.training.seams import Seams, open_data
from balcap_jax.training.start import run_task
from balcap_jax.training.task_run import TaskRun
from balcap_jax.training.vision_lessons import pretrain_vision

SAMPLED_IMAGES = 4  # held-out ones, in samples.jsonl


def sft(
    config: SFTConfig,
    *,
    resume: Path | None = None,
    seams: Seams | None = None,
    checkpoint: str = "",
    resume_anyway: bool = False,
) -> Path:
    """Trains by `config` in OUT/NAME, or goes on with the run in `resume`; see `run_task`.

    Returns:
      The run's folder, with the trained policy.

    Raises:
      UserError: a mistake in settings or data, or a full disk.
      Stopped: a signal came before anything was saved.
    """
    return run_task(
        SupervisedRun,
        config,
        write_outcome=_write_outcome,
        resume=resume,
        seams=seams,
        checkpoint=checkpoint,
        resume_anyway=resume_anyway,
    )


class SupervisedRun(TaskRun):
    """A run on given answers: their likelihood is what is trained and evaluated."""

    command = "sft"
    compiling = "the update"
    evaluating = "reading {} held-out examples"

    @property
    def images_per_step(self) -> int:
        return self.config.batch_size

    @property
    def micro_batches(self) -> int:
        return self.config.micro_batches

    # ---- opening

    def _open_data(self) -> None:
        self.source, self.heldout = open_data(self.config, self.seams, conversations=True)
        if self.config.vision_steps and not processes.is_alone():
            raise UserError(
                f"vision_steps={self.config.vision_steps} is for one process; make the tower in a "
                "run on one host and give its folder as --model.path."
            )

    def _read_policy(self) -> Opened:
        model = self.config.model
        if model.path != SCRATCH:
            return super()._read_policy()
        # Imported here: only a new policy needs the tokenizer's trainer.
        from balcap_jax.models.new_policy import write_new_policy  # noqa: PLC0415

        new = tempfile.TemporaryDirectory()
        self._closers.append(new.cleanup)
        folder = Path(new.name)
        policy = Qwen2_5_VL(
            write_new_policy(folder),
            dtype=jnp.dtype(model.dtype),
            attention=model.attention,
            remat=model.remat,
            residual=model.residual,
        )
        params = jax.device_get(jax.jit(policy.init)(jax.random.key(self.config.seed)))
        return Opened(model, folder, open_processor(folder, self.config.data), policy, params)

    def _make_programs(self) -> optax.GradientTransformation:
        config = self.config
        self._optimizer = optimizer_of(config, self.policy)
        self._update = self._update_of(self.policy)
        self._sums = make_supervised_sums(self.policy, self.mesh)
        self._answer_pairs = None
        if self._asks():
            answers = QuestionEncoder(self.processor).answers
            self._answer_pairs = make_answer_pairs(self.policy, self.mesh, *answers)
        self._tester = Captioner(
            self.policy,
            self.processor,
            self.mesh,
            group_size=1,
            max_new_tokens=config.max_new_tokens,
            temperature=config.evaluation.temperature,
            clock=self.clock,
        )
        self.encoder = AnswerEncoder(self.processor, length=config.max_new_tokens)
        self.shapes: set[tuple[int, int, int]] = set()
        return self._optimizer

    def _update_of(self, policy: VisionLanguagePolicy) -> Callable[..., Any]:
        return make_supervised_update(
            policy,
            self._optimizer,
            self.mesh,
            micro_batches=self.config.micro_batches,
            trained=self.trained,
            seed=self.config.seed,
            gather_once=self.config.mesh.gather == "update",
        )

    def _open_task(self) -> None:
        config, count = self.config, self.config.captions_per_image
        if config.model.path == SCRATCH:
            processes.on_process_zero(self._keep_start)
        self.lessons: SceneLessons | RowLessons
        if config.data.path == SCENES:
            self.lessons = SceneLessons(
                self.source, seed=config.seed, count=count, easy_steps=config.easy_steps
            )
        else:
            self.lessons = RowLessons(self.source, count=count)
        self.loader = SupervisedLoader(
            self.lessons,
            self.processor,
            self.encoder,
            count=config.batch_size,
            seed=config.seed,
            steps=config.steps,
            rows=self.rows.local_rows,
            workers=config.data.workers,
            group_by_length=config.data.group_by_length,
        )
        self._closers.append(self.loader.close)

    def _keep_start(self) -> None:
        """The files of a new policy stay with the run, for the export of its checkpoints."""
        if (self.run / START / "config.json").exists():
            return
        if is_remote(self.run):
            replace_folder(self.folder, self.run / START, last="config.json")
            return
        beside = self.run / f"{START}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(self.folder, beside)
        beside.rename(self.run / START)

    def _begin(self) -> None:
        if not self.config.vision_steps:
            return
        params = pretrain_vision(
            self.config,
            self.policy,
            jax.device_get(self.state.params),
            self.source,
            self.processor,
        )
        self.state = init_state(
            self.mesh, params, self._optimizer, trained=self.trained, keep=False
        )
        self._save_and_wait()  # a resumed run need not learn to see once more

    def describe(self) -> list[str]:
        model = self.config.model
        default = "everything" if model.train_vision else "decoder"
        return [f"trained: {'adapters' if model.lora.on else ', '.join(model.train) or default}"]

    # ---- a step

    def train_step(self) -> tuple[dict[str, Any], None]:
        watch = self.stopwatch
        with self.saved_if_data_are_bad(), watch.stage("data"):
            batch = self.loader.step(self.step)
        with watch.stage("update"):
            lesson = self._on_mesh(batch)
            step, skipped = jax.device_get((self.state.step, self.state.skipped))
            start = self.clock.start()
            self.state, metrics = self._update(self.state, lesson)
            self.clock.ran(start, metrics)
            metrics = jax.device_get(metrics)
        row = {name: value.item() for name, value in metrics.items()}
        row |= {
            "learning_rate": learning_rate_of(self.config, int(step - skipped)),
            "epoch": (self.step + 1) * self.config.batch_size / len(self.source),
        }
        self.utilisation.ran(
            "update", "update", lambda p: unwrap(self._update_of(p)), self.state, lesson
        )
        row |= self._times_and_memory(tokens=int(row["tokens"]))
        return row, None

    def _on_mesh(self, batch: Supervised) -> Lesson:
        """The batch of all hosts, padded alike on all of them."""
        own = [*sizes_of(batch.prompts), *batch.tokens.shape[1:]]
        *sizes, count, length = processes.largest(own)
        prompts = pad_to_sizes(batch.prompts, sizes, pad_token_id=self.processor.pad_token_id)
        prompts = as_computed(prompts, self.policy.dtype)
        widths = [(0, 0), (0, count - batch.tokens.shape[1]), (0, length - batch.tokens.shape[2])]
        tokens = np.pad(batch.tokens, widths, constant_values=self.processor.pad_token_id)
        self.shapes.add((sizes[0], sizes[1], sizes[2]))
        return shard_batch(self.mesh, Lesson(prompts, tokens, np.pad(batch.mask, widths)))

    # ---- held-out images

    def _evaluate(self, when: str, *, between: bool) -> dict[str, float]:
        """Loss and perplexity of all answers to the held-out examples, per token; where these are
        yes and no, also the AUC within images, see `auc_within`.

        Raises:
          Stopped: on all processes, where one has been interrupted.
        """
        loss, tokens = 0.0, 0.0
        wins, pairs = 0.0, 0.0
        for batch in self._heldout_batches():
            if self._is_interrupted():
                raise Stopped
            lesson = self._on_mesh(batch)
            sums = jax.device_get(self._sums(self.state.params, lesson))
            loss, tokens = loss + float(sums.loss), tokens + float(sums.tokens)
            if self._answer_pairs is not None:
                found = jax.device_get(self._answer_pairs(self.state.params, lesson))
                wins, pairs = wins + float(found.wins), pairs + float(found.pairs)
        mean = loss / max(tokens, 1.0)
        scores = {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "tokens": tokens}
        return scores | ({"auc": wins / pairs} if pairs else {})

    def _asks(self) -> bool:
        """Whether the held-out examples are questions that are answered by yes and no."""
        answers = {q.answer for i in range(len(self.heldout)) for q in self.heldout[i].questions}
        return bool(answers) and answers <= {*YES, *NO}

    def _heldout_batches(self) -> Iterator[Supervised]:
        """The held-out examples that this host holds; the last batch is filled up with examples of
        which nothing counts.
        """
        last = len(self.heldout) - 1
        shards = batch_shards(self.mesh)
        size = -(-min(self.config.evaluation.batch_size, last + 1) // shards) * shards
        rows = BatchRows.of(self.mesh, size)
        order = self.processor.shortest_first(self.heldout)
        for start in range(0, last + 1, size):
            numbers = start + rows.local_rows
            places = order[np.minimum(numbers, last)]
            lessons = [self._heldout_lesson(self.heldout[i]) for i in places]
            batch = join(
                [prepared(lesson, self.processor, self.encoder) for lesson in lessons],
                self.processor,
                self.encoder,
            )
            yield batch._replace(mask=batch.mask & (numbers <= last)[:, None, None])

    def _heldout_lesson(self, example: Example) -> Answers:
        if example.scene is not None and self.config.data.path == SCENES:
            count = self.config.captions_per_image
            return Answers(example, corpus_captions(example, "heldout", count, FaultRates()))
        return answers_of(example)

    def _score_of(self, scores: Mapping[str, float]) -> float | None:
        loss = scores["heldout/loss"]
        return -loss if math.isfinite(loss) else None

    def _log_samples(self, samples: None) -> None:
        examples = self.heldout[:SAMPLED_IMAGES]
        key = jax.random.fold_in(jax.random.key(self.config.seed), 2**31 - 1)
        found = self._tester.local_captions(
            self.state.params, examples, key, batch_size=len(examples)
        )
        rows = [[place, _sample_row(examples[place], group[0].text)] for place, group in found]
        rows = [row for _, row in sorted(processes.gather_list(rows), key=lambda pair: pair[0])]
        self.samples.log(self.step, rows)
        if self.metrics.takes_samples:
            self.metrics.log_samples(self.step, rows, [example.image for example in examples])

    def _note(self, row: Mapping[str, Any]) -> str:
        heldout = row.get("heldout/loss")
        return f"loss {row['loss']:.3f}" + ("" if heldout is None else f", held-out {heldout:.3f}")


def _sample_row(example: Example, caption: str) -> dict[str, Any]:
    return caption_row(
        id=example.id,
        caption=caption,
        reference=example.reference,
        references=example.references,
        rewards={},
        verdict=None,
        units=(),
        rho=len(caption.split()) / max(len(example.reference.split()), 1),
    )


def _write_outcome(run: SupervisedRun) -> None:
    """Ends the run: process 0 writes, the others hand it their parts of the parameters."""
    params = processes.to_process_zero(run.state.params)
    run.checkpoints.wait()
    processes.on_process_zero(lambda: _write(run, params))


def _written(config: SFTConfig) -> str:
    """The type of the written weights."""
    if config.save_dtype != "auto":
        return config.save_dtype
    return "float16" if config.model.path == SCRATCH else config.model.dtype


def _write(run: SupervisedRun, params: dict) -> None:
    finish(run, params, dtype=_written(run.config), shapes=run.shapes | run._tester.shapes)
    before, after = run.summary["before"]["loss"], run.summary["after"]["loss"]
    run.say(f"held-out loss per token: {before:.3f} before, {after:.3f} after")
    tell(run, [*report(run.run), run.run / SUMMARY, run.run / POLICY])
