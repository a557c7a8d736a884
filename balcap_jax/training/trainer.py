"""`balcap train` and `balcap_jax.Trainer`: a run from settings, or from objects in Python."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import check_resume, check_resume_flags, load_run
from balcap_jax.config.sections import MEMORY, PROMPT
from balcap_jax.data.examples import Example
from balcap_jax.data.images import BadImageError, ImageLike, Pixels, open_image
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.sources import pixels_of
from balcap_jax.errors import UserError, speaks_python
from balcap_jax.models.hf.folders import POLICY, policy_folder
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.parallel import processes
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rewards.function_names import RewardFunction, name_function
from balcap_jax.rewards.functions import verdict_reward_of
from balcap_jax.rewards.verdicts import Judge
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.runs.compilation import use_persistent_cache
from balcap_jax.runs.folder import RunLock, new_run, remove_half_written
from balcap_jax.runs.progress import announce_settings
from balcap_jax.training.callbacks import Callback, EarlyStopping
from balcap_jax.training.checkpoint import latest_step_of
from balcap_jax.training.interrupts import Interrupts, Stopped
from balcap_jax.training.loop import TrainingLoop
from balcap_jax.training.outcome import write_outcome
from balcap_jax.training.plan_of_run import announce_run
from balcap_jax.training.seams import Seams


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
    run = config.out / config.name if resume is None else resume
    flags = {"--checkpoint": checkpoint, "--resume-anyway": resume_anyway}
    with (
        processes.joined(
            config.dist, facts=lambda: processes.facts_of(config, resume=resume) | flags, run=run
        ),
        ExitStack() as held,
        Interrupts() as interrupts,
    ):
        if not processes.is_alone():  # all must end in the same place
            held.enter_context(interrupts.held())
        try:
            if resume is None:
                processes.on_process_zero(
                    lambda: held.enter_context(new_run(config.out, config.name))
                )
            processes.on_process_zero(lambda: held.enter_context(RunLock(run)))
            processes.on_process_zero(lambda: remove_half_written(run))
            processes.check_shared(run)
            with closing(TrainingLoop(config, run, seams or Seams(), interrupts)) as loop:
                announce_run(loop)
                loop.restore(checkpoint, anyway=resume_anyway)
                loop.evaluate_once("before")
                loop.loop()
                if not loop.done:
                    raise Stopped(interrupts.number)
                loop.evaluate_once("after")
                write_outcome(loop)
        except Stopped as stopped:
            if not _say_stopped(run, config.steps):
                raise Stopped(interrupts.number) from stopped
    return run


def _say_stopped(run: Path, steps: int) -> bool:
    """Tells how to go on; whether there is anything saved to go on from."""
    step = latest_step_of(run)
    if not processes.is_process_zero():
        return bool(step)
    if step:
        print(f"stopped at step {step} of {steps}, all saved; go on with:")
    elif (run / "config.json").exists():
        print("stopped before the first step was made; start with:")
    else:
        print("stopped before the run began; start it again")
        return False
    print(f"  balcap train --resume {run}", flush=True)
    return bool(step)


class Trainer:
    """Reinforcement learning of a captioner, from Python.

    Args:
      config: settings, such as `TrainConfig.of({"steps": 200})`; default: those of the default run,
        or with `resume` those of that run.
      model: "base", a run, a Hugging Face folder, or a name on the hub.
      revision: branch, tag or commit of a name on the hub.
      train_dataset: rows in memory (a list of dicts, a `datasets.Dataset`, any data set with a
        length and places; see `MemoryRows`), or the path of a data file.
      eval_dataset: rows in memory to hold out; default: the last `data.heldout` of the others.
      reward_funcs: functions with TRL's signature (see `rewards.callables`). The lexical ones of
        `balcap_jax.rewards` stand for the rewards of the offline judge.
      reward_weights: one for each of them; default: 1 each.
      judge: an object with the protocol `Judge` for the rewards precision, recall and linguistic.
      loggers: names ("tensorboard", "wandb") and objects with `log(step, row)`.
      callbacks: see `Callback`. Early stopping by held-out scores evaluates ten times in the run
        where `evaluation.every` says nothing.
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
        config: TrainConfig | None = None,
        *,
        model: str | Path | None = None,
        revision: str | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        reward_funcs: Callable | Sequence[Callable] | None = None,
        reward_weights: Sequence[float] | None = None,
        judge: Judge | None = None,
        loggers: Sequence[Any] | None = None,
        callbacks: Sequence[Callback] = (),
        resume: str | Path | None = None,
        checkpoint: str | int | None = None,
        resume_anyway: bool = False,
    ):
        self._resume = None if resume is None else Path(resume)
        self._checkpoint = "" if checkpoint is None else str(checkpoint)
        self._anyway = resume_anyway
        check_resume_flags(self._resume, checkpoint=self._checkpoint, anyway=resume_anyway)
        old = None if self._resume is None else load_run(self._resume)
        config = config or old or TrainConfig()
        if not isinstance(config, TrainConfig):
            raise UserError(
                f"config is a {type(config).__name__}, which must be a TrainConfig; make one by "
                "TrainConfig.of({...})."
            )
        config = _with_model(config, model, revision)
        config = _with_data(config, train_dataset)
        config, functions = _with_rewards(config, reward_funcs, reward_weights)
        config, objects = _with_loggers(config, loggers)
        config = _with_evaluations(config, callbacks)
        if self._resume is not None:
            folder = self._resume.resolve()  # may have been moved since
            here = {"out": folder.parent, "name": folder.name}
            config = dataclasses.replace(config, **here)
            old = dataclasses.replace(old, **here)
            check_resume(self._resume, old, config, anyway=resume_anyway)
        self.config = config
        self.run = config.out / config.name
        in_memory = not isinstance(train_dataset, str | Path)
        self._seams = Seams(
            train_rows=train_dataset if in_memory else None,
            eval_rows=eval_dataset,
            functions=functions,
            judge=judge,
            loggers=objects,
            callbacks=tuple(callbacks),
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
        use_persistent_cache()
        resume, checkpoint = self._resume, self._checkpoint
        self._resume, self._checkpoint = self.run, ""  # a second call goes on
        try:
            return train(
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
        self, images: ImageLike | Sequence[ImageLike], prompt: str = PROMPT, **sampling: Any
    ) -> str | list[str]:
        """The policy's caption of an image, or of each of a list.

        It is the trained policy once `train` is through, before that the one it starts from.

        Args:
          images: paths, PIL images, uint8 arrays or the bytes of image files.
          sampling: max_new_tokens (128), temperature (0: the most likely tokens), top_p, seed.

        Raises:
          UserError: an image cannot be read.
        """
        several = isinstance(images, list | tuple)
        seed = sampling.pop("seed", 0)
        pixels = pixels_of(self.config.data)
        given = images if several else [images]
        examples = [_example(image, prompt, pixels) for image in given]
        captioner, params = self._captioner_for(sampling)
        captions = captioner.captions(
            params, examples, jax.random.key(seed), batch_size=min(16, len(examples))
        )
        texts = [group[0] for group in captions]
        return texts if several else texts[0]

    @speaks_python
    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the policy as a Hugging Face folder, for transformers, vLLM and `model=`.

        Raises:
          UserError: there is no trained policy yet, or the folder cannot be written.
        """
        trained = self._trained()
        if trained is None:
            raise UserError(
                f"{self.run} holds no trained policy yet; call train() first, or for an unfinished "
                f"run `balcap export {self.run} {folder}`."
            )
        policy, params = load_pretrained(trained, dtype=self.config.model.dtype)
        save_pretrained(folder, policy, params, dtype=self.config.model.dtype, source=trained)

    def _trained(self) -> Path | None:
        """The policy that this trainer has trained; None as long as there is none."""
        # A folder of the same name may hold another run, which this trainer did not go on with.
        trained = self.run / POLICY
        mine = self._resume is not None
        return trained if mine and (trained / "config.json").is_file() else None

    def _start(self) -> Path:
        return policy_folder(self.config.model.path, revision=self.config.model.revision)

    def _captioner_for(self, sampling: dict[str, Any]) -> tuple[Captioner, dict]:
        folder = self._trained() or self._start()
        policy, params = load_pretrained(folder)
        options = {"max_new_tokens": 128, "temperature": 0.0, **sampling}
        mesh = make_mesh(devices=jax.devices()[:1])
        data = self.config.data
        processor = Processor.load(folder).limited(
            min_pixels=data.min_pixels, max_pixels=data.max_pixels
        )
        return Captioner(policy, processor, mesh, group_size=1, **options), params


def _with_model(config: TrainConfig, model: str | Path | None, revision: str | None) -> TrainConfig:
    if model is None and revision is None:
        return config
    path = config.model.path if model is None else str(model)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, path=path, revision=revision)
    )


def _with_data(config: TrainConfig, train_dataset: Any) -> TrainConfig:
    if train_dataset is None:
        return config
    path = str(train_dataset) if isinstance(train_dataset, str | Path) else MEMORY
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _with_rewards(
    config: TrainConfig,
    reward_funcs: Callable | Sequence[Callable] | None,
    weights: Sequence[float] | None,
) -> tuple[TrainConfig, tuple[RewardFunction, ...] | None]:
    """Settings that name the given rewards, those of the judge first, and the other functions."""
    if reward_funcs is None:
        if weights is not None:
            reward = dataclasses.replace(config.reward, weights=tuple(weights))
            config = dataclasses.replace(config, reward=reward)
        return config, None
    given = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
    if weights is not None and len(weights) != len(given):
        raise UserError(
            f"reward_weights has {len(weights)} numbers for {len(given)} reward_funcs, and each "
            "needs one; give as many."
        )
    weighted = list(zip(given, weights or [1.0] * len(given), strict=True))
    by_judge = [(name, w) for f, w in weighted if (name := verdict_reward_of(f))]
    own = [(name_function(f), w) for f, w in weighted if not verdict_reward_of(f)]
    reward = dataclasses.replace(
        config.reward,
        names=tuple(name for name, _ in by_judge),
        functions=tuple(function.spec for function, _ in own),
        weights=tuple(float(w) for _, w in (*by_judge, *own)),
    )
    judge = config.judge
    if by_judge and judge.kind == "auto":
        judge = dataclasses.replace(judge, kind="lexical")
    config = dataclasses.replace(config, reward=reward, judge=judge)
    return config, tuple(function for function, _ in own)


def _with_loggers(
    config: TrainConfig, loggers: Sequence[Any] | None
) -> tuple[TrainConfig, tuple[Any, ...]]:
    if loggers is None:
        return config, ()
    names = tuple(logger for logger in loggers if isinstance(logger, str))
    objects = tuple(logger for logger in loggers if not isinstance(logger, str))
    return dataclasses.replace(config, loggers=names), objects


def _with_evaluations(config: TrainConfig, callbacks: Sequence[Callback]) -> TrainConfig:
    """Settings that evaluate ten times where a callback waits for that and they say nothing."""
    waits = any(isinstance(c, EarlyStopping) and c.reads_heldout for c in callbacks)
    if config.evaluation.every or not waits:
        return config
    evaluation = dataclasses.replace(config.evaluation, every=max(1, config.steps // 10))
    return dataclasses.replace(config, evaluation=evaluation)


def _example(image: ImageLike, prompt: str, pixels: Pixels) -> Example:
    name = str(image) if isinstance(image, str | Path) else "the image"
    try:
        opened = open_image(image, pixels=pixels)
        return Example(id=name, image=opened, prompt=prompt, reference="")
    except BadImageError as error:
        raise UserError(f"{name} cannot be captioned ({error}); give a readable image.") from None
