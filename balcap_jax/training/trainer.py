"""`balcap train` and `balcap_jax.Trainer`: a run from settings, or from objects in Python."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from balcap_jax.config.commands import CaptionConfig, SFTConfig, TrainConfig
from balcap_jax.config.files import check_resume, check_resume_flags, load_any_run, load_run
from balcap_jax.config.sections import PROMPT
from balcap_jax.errors import UserError, speaks_python
from balcap_jax.models.hf.weights import save_pretrained
from balcap_jax.rewards.verdicts import Judge
from balcap_jax.runs.jax_setup import set_up_jax
from balcap_jax.runs.progress import announce_settings
from balcap_jax.training.callbacks import Callback
from balcap_jax.training.loop import TrainingLoop
from balcap_jax.training.outcome import write_outcome
from balcap_jax.training.policy_now import (
    Captions,
    PolicyNow,
    example_of,
    start_policy,
    trained_policy,
)
from balcap_jax.training.seams import Seams
from balcap_jax.training.sft import sft
from balcap_jax.training.start import run_task
from balcap_jax.training.trainer_settings import (
    callbacks_of,
    config_of_task,
    with_data,
    with_evaluations,
    with_loggers,
    with_model,
    with_rewards,
)


def train(
    config: TrainConfig,
    *,
    resume: Path | None = None,
    seams: Seams | None = None,
    checkpoint: str = "",
    resume_anyway: bool = False,
) -> Path:
    """Trains by `config` in OUT/NAME, or goes on with the run in `resume`.

    Ends early, with everything saved, on SIGTERM, SIGINT (Ctrl-C) and SIGHUP; a second one ends the
    process at once. On several hosts (`processes`), all call this.

    Args:
      checkpoint: of `resume`: "best" or the number of a step; "": the newest that is intact.
      resume_anyway: other data or settings than those of the checkpoint are wanted.

    Returns:
      The run's folder.

    Raises:
      UserError: a mistake in settings or data, a full disk, a judge that gives too little signal,
        or a reward function or callback that raises.
      Stopped: a signal came before anything was saved.
    """
    return run_task(
        TrainingLoop,
        config,
        write_outcome=write_outcome,
        resume=resume,
        seams=seams,
        checkpoint=checkpoint,
        resume_anyway=resume_anyway,
    )


class Trainer:
    """Training of a captioner, from Python: on rewards, or with task="sft" on given answers.

    Args:
      config: settings, such as `TrainConfig.of({"steps": 200})` or `SFTConfig.of({...})`; default:
        those of the default run, or with `resume` those of that run.
      task: "rl" or "sft"; default: that of `config` or of the run, else "rl".
      model: "base", a run, a Hugging Face folder, an adapter's folder, or a name on the hub;
        default: "base", and with task="sft" "scratch", a small policy that knows nothing.
      revision: branch, tag or commit of a name on the hub.
      train_dataset: rows in memory (a list of dicts, a `datasets.Dataset`, any data set with a
        length and places; see `MemoryRows`), or the path of a data file.
      eval_dataset: rows in memory to hold out, or the path of a data file, of which the first
        `data.heldout` are; default: the last `data.heldout` of the others.
      reward_funcs: functions with TRL's signature (see `rewards.callables`). The lexical ones of
        `balcap_jax.rewards` stand for the rewards of the offline judge.
        A second function of one name is called NAME_2.
      reward_weights: one for each of them; default: 1 each.
      judge: an object with the protocol `Judge` for the rewards precision, recall and linguistic.
      loggers: names ("tensorboard", "wandb") and objects with `log(step, row)`, one or several.
      callbacks: one or several; see `Callback`. Early stopping by held-out scores evaluates ten
        times in the run where `evaluation.every` says nothing.
      resume: a run to go on with, with its own settings where `config` is not given.
      checkpoint: of `resume`, "best" or the number of a step; default: the newest.
      resume_anyway: goes on with other data or settings than those that the run was saved with.

    Raises:
      UserError: a mistake in the arguments; data and weights are looked at by `train`.

    Attributes:
      config: the settings with all that the arguments changed.
      run: the run's folder.
    """

    @speaks_python
    def __init__(
        self,
        config: TrainConfig | SFTConfig | None = None,
        *,
        task: str | None = None,
        model: str | Path | None = None,
        revision: str | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        reward_funcs: Callable | Sequence[Callable] | None = None,
        reward_weights: Sequence[float] | None = None,
        judge: Judge | None = None,
        loggers: Any = None,
        callbacks: Callback | Sequence[Callback] = (),
        resume: str | Path | None = None,
        checkpoint: str | int | None = None,
        resume_anyway: bool = False,
    ):
        self._resume = None if resume is None else Path(resume)
        self._checkpoint = "" if checkpoint is None else str(checkpoint)
        self._anyway = resume_anyway
        check_resume_flags(self._resume, checkpoint=self._checkpoint, anyway=resume_anyway)
        old = None if self._resume is None else load_any_run(self._resume)
        config = config_of_task(task, config or old)
        if old is not None and type(old) is not type(config):
            load_run(self._resume, type(config))  # says which command it is a run of
        config = with_model(config, model, revision)
        config = with_data(config, train_dataset, eval_dataset)
        functions = None
        if isinstance(config, TrainConfig):
            config, functions = with_rewards(config, reward_funcs, reward_weights)
        elif not (reward_funcs is None and reward_weights is None and judge is None):
            raise UserError(
                'task="sft" learns given answers and reads no reward_funcs, reward_weights or '
                'judge; leave them out, or train on rewards with task="rl".'
            )
        config, objects = with_loggers(config, loggers)
        callbacks = callbacks_of(callbacks)
        config = with_evaluations(config, callbacks)
        if self._resume is not None:
            folder = self._resume.resolve()  # may have been moved since
            here = {"out": folder.parent, "name": folder.name}
            config = dataclasses.replace(config, **here)
            old = dataclasses.replace(old, **here)
            check_resume(self._resume, old, config, anyway=resume_anyway)
        self.config = config
        self.run = config.out / config.name
        in_memory = not isinstance(train_dataset, str | Path)
        self._captions: Captions | None = None
        self._seams = Seams(
            train_rows=train_dataset if in_memory else None,
            eval_rows=None if isinstance(eval_dataset, str | Path) else eval_dataset,
            functions=functions,
            judge=judge,
            loggers=objects,
            callbacks=callbacks,
        )

    @speaks_python
    def train(self) -> Path:
        """Trains to the end, or goes on where an earlier call was interrupted.

        Returns:
          The run's folder, with the trained policy, curves, captions and scores.

        Raises:
          UserError: see `train`.
        """
        announce_settings(self.config)
        self._captions = None
        set_up_jax()
        resume, checkpoint = self._resume, self._checkpoint
        self._resume, self._checkpoint = self.run, ""  # a second call goes on
        try:
            return (train if isinstance(self.config, TrainConfig) else sft)(
                self.config,
                resume=resume,
                seams=self._seams,
                checkpoint=checkpoint,
                resume_anyway=self._anyway,
            )
        except BaseException:
            if not (self.run / "config.json").exists():  # it never began
                self._resume, self._checkpoint = resume, checkpoint
            raise

    @speaks_python
    def caption(
        self,
        images: Any,
        prompt: str | Sequence[dict[str, Any]] = PROMPT,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """The policy's caption of an image, or of each of a list.

        It is the trained policy once `train` is through, that of the newest checkpoint where it was
        interrupted, and before that the one it starts from. Its weights stay in memory until
        `train` is called again.

        Args:
          images: paths, PIL images, uint8 arrays, the bytes of image files, or what `datasets`
            makes of an image.
          prompt: a text, or messages in chat form.
          temperature: 0 takes the most likely token at each position.

        Raises:
          UserError: an image cannot be read, or a number is out of range.
        """
        several = isinstance(images, list | tuple)
        given = images if several else [images]
        sampling = CaptionConfig(
            images=(Path("image"),),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        examples = [example_of(image, prompt, self.config) for image in given]
        if not examples:
            return []
        if self._captions is None:
            self._captions = Captions(self._now(), self.config)
        texts = self._captions(examples, sampling)
        return texts if several else texts[0]

    @speaks_python
    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the policy as a Hugging Face folder, for transformers, vLLM and `model=`; of an
        interrupted run that of its newest checkpoint.

        Raises:
          UserError: there is no trained policy yet, or the folder cannot be written.
        """
        now = self._trained(dtype=self.config.model.dtype)
        if now is None:
            raise UserError(f"{self.run} holds no trained policy yet; call train() first.")
        save_pretrained(folder, now.policy, now.params, dtype=now.dtype, source=now.folder)

    def _trained(self, dtype: str | None = None) -> PolicyNow | None:
        """The policy that this trainer has trained; None as long as there is none."""
        # A folder of the same name may hold another run, which this trainer did not go on with.
        if self._resume is None:
            return None
        return trained_policy(self.run, self._checkpoint, dtype=dtype)

    def _now(self) -> PolicyNow:
        return self._trained() or start_policy(self.config)
