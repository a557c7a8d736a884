"""The settings of every command, made of those of its rooms; each is checked when it is made.

The comment beside a field is its text in `--help`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from balcap_jax.config.base import Settings
from balcap_jax.config.judge import AuditConfig, JudgeConfig
from balcap_jax.config.names import did_you_mean
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import (
    MOST_CAPTIONS,
    MOST_IMAGES,
    MOST_TOKENS,
    PROMPT,
    CheckpointConfig,
    DataConfig,
    DistConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RLConfig,
    RolloutConfig,
    check_pixels,
    check_temperature,
)
from balcap_jax.config.study import StudyConfig
from balcap_jax.errors import UserError

LOGGERS = ("tensorboard", "wandb")
NEW_PROJECTOR = "mlp2x"


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Reinforcement learning of a captioning policy."""

    name: str = "balcap"  # Name of the run.
    out: Path = Path("runs")  # Folder of runs; this one is written to OUT/NAME.
    seed: int = 0  # Seed of images, captions and their order; the same one repeats the run.
    steps: int = 100  # Training steps: one rollout each.
    prompts_per_step: int = 8  # Images per step.
    log_every: int = 1  # Steps between rows of metrics.jsonl.
    sample_every: int = 10  # Steps between samples of captions with their verdicts.
    # Places where rows of metrics go beside metrics.jsonl: "tensorboard", "wandb".
    loggers: tuple[str, ...] = ("tensorboard",)
    # Steps that jax.profiler traces to OUT/NAME/profile: one, or the first and the last. Counted
    # from 1, which compiles; none given: no trace.
    profile: tuple[int, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    dist: DistConfig = field(default_factory=DistConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def check(self) -> None:
        _check_run(self)
        self._at_least(1, "prompts_per_step", "log_every", "sample_every")
        self._at_most(MOST_IMAGES, "prompts_per_step")
        _check_loggers(self)
        self._require(
            self.prompts_per_step % self.rl.micro_batches == 0,
            "prompts_per_step",
            f"must be a multiple of rl.micro_batches={self.rl.micro_batches}",
            f"set --prompts-per-step {_round_up(self.prompts_per_step, self.rl.micro_batches)}.",
        )
        self.study.check_names(self.reward.all_names)
        self.audit._require(  # noqa: SLF001
            not self.audit.every or bool(self.reward.names),
            "every",
            "has no judge to audit, because no reward is a judge's",
            "leave it at 0.",
        )
        if self.model.train_vision and (self.model.train or self.model.lora.on):
            other = "model.train" if self.model.train else "model.lora"
            raise UserError(
                f"model.train_vision=True has no effect with {other}, which says what is trained; "
                "leave it out."
            )
        if self.model.path == "scratch":
            raise UserError(
                "model.path='scratch' has nothing to train on rewards yet, because its captions "
                "are noise; run `balcap sft` first and pass its folder as --model.path."
            )


@dataclass(frozen=True)
class SFTConfig(Settings):
    """Supervised training of a captioning policy on captions and conversations."""

    name: str = "sft"  # Name of the run.
    # Folder of runs; the policy is written to OUT/NAME as a Hugging Face folder.
    out: Path = Path("runs")
    seed: int = 0  # Seed of weights, images and their order.
    steps: int = 2000  # Training steps: one batch and one update each.
    # Steps before the others in which the vision tower of a policy from scratch learns to name what
    # each image token shows.
    vision_steps: int = 0
    vision_batch_size: int = 4  # Images per step of these.
    # First steps, on scenes of one cluster with faultless captions: what objects look like is
    # learned much faster where there is one of them.
    easy_steps: int = 0
    batch_size: int = 32  # Images or conversations per step.
    # Parts that a batch is split into to save memory; the result is the same.
    micro_batches: int = 1
    # Most captions that are learned of an image at a time; where there are more, each in its turn.
    captions_per_image: int = 2
    # Most tokens to learn of a caption, or of a conversation from its first answer on; a longer one
    # is cut and does not learn to end.
    max_new_tokens: int = 112
    # Type of the written weights; "auto": float16 of a new policy, else model.dtype.
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    log_every: int = 50  # Steps between rows of metrics.jsonl.
    sample_every: int = 0  # Steps between captions of held-out images in samples.jsonl; 0: none.
    # Places where rows of metrics go beside metrics.jsonl: "tensorboard", "wandb".
    loggers: tuple[str, ...] = ("tensorboard",)
    # Steps that jax.profiler traces to OUT/NAME/profile: one, or the first and the last. Counted
    # from 1, which compiles; none given: no trace.
    profile: tuple[int, ...] = ()
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(path="scratch", train_vision=True)
    )
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=1e-3, schedule="cosine")
    )
    mesh: MeshConfig = field(default_factory=MeshConfig)
    dist: DistConfig = field(default_factory=DistConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=200))
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(temperature=0.0))

    def check(self) -> None:
        _check_run(self)
        _check_loggers(self)
        self._require(
            self.batch_size % max(self.micro_batches, 1) == 0,
            "batch_size",
            f"must be a multiple of micro_batches={self.micro_batches}",
            f"set --batch-size {_round_up(self.batch_size, max(self.micro_batches, 1))}.",
        )
        if self.model.path == "scratch" and self.model.lora.on:
            raise UserError(
                "model.path='scratch' has weights of noise, which adapters alone cannot teach; "
                "leave model.lora out or give another --model.path."
            )
        self._at_least(0, "easy_steps", "vision_steps")
        self._require(
            self.vision_steps == 0 or (self.model.path, self.data.path) == ("scratch", "scenes"),
            "vision_steps",
            "is for model.path='scratch' on data.path='scenes'",
            "leave it at 0.",
        )
        self._require(
            self.easy_steps == 0 or self.data.path == "scenes",
            "easy_steps",
            f"has no effect on the file {self.data.path}",
            "leave it at 0.",
        )
        self._at_least(1, "vision_batch_size", "batch_size", "captions_per_image")
        self._at_least(1, "max_new_tokens", "log_every", "micro_batches")
        self._at_least(0, "sample_every")
        self._at_most(MOST_IMAGES, "vision_batch_size", "batch_size")
        self._at_most(MOST_CAPTIONS, "captions_per_image")
        self._at_most(MOST_TOKENS, "max_new_tokens")


@dataclass(frozen=True)
class CaptionConfig(Settings):
    """Captions of your own images."""

    images: tuple[Path, ...]  # Image files.
    # Policy: "base", a run, a Hugging Face folder or a name on the hub.
    model: str = "base"
    revision: str | None = None  # Branch, tag or commit of a hub name; default: its main branch.
    # Checkpoint of the run: "best", or the number of a step; default: its finished policy.
    checkpoint: str = ""
    prompt: str = PROMPT  # Request to the policy.
    max_new_tokens: int = 128  # Most tokens of a caption; it is cut there.
    temperature: float = 0.0  # Temperature; 0 takes the most likely token at each position.
    top_p: float = 1.0  # Probability of the most likely tokens that are sampled from.
    seed: int = 0  # Seed of the sampling, for temperatures above 0.
    max_pixels: int = 1024 * 1024  # Most pixels of an image; a larger one is shrunk to it.
    min_pixels: int = 0  # Least pixels of an image; a smaller one is enlarged to it.
    max_file_pixels: int = 64_000_000  # Most pixels of an image file; a larger one is refused.

    def check(self) -> None:
        check_pixels(self)
        self._require(len(self.images) > 0, "images", "is empty", "name an image file.")
        self._at_least(1, "max_new_tokens")
        self._at_most(MOST_TOKENS, "max_new_tokens")
        self._require(0 <= self.seed < 2**31, "seed", "must be at least 0 and below 2**31")
        check_temperature(self)
        self._require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")


@dataclass(frozen=True)
class ScoreConfig(Settings):
    """Precision, recall, linguistic quality and b-CapScore of captions from anywhere.

    A run that was cut goes on where it stopped when the same command is given again.
    """

    # A .jsonl file of {"caption", "references", "image", "boxes"} rows, or of {"id", "caption"}
    # rows with --data.
    input: Path
    # The .jsonl file that each row is appended to with its scores, in the order of the input.
    output: Path
    # Judge: --judge lexical reads references and boxes, --judge scene knows generated scenes,
    # --judge llm asks a model (--judge.model, --judge.base-url) that sees the image.
    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(kind="lexical"))
    # The .jsonl file that holds the images, references and scenes of the ids of the input;
    # `balcap scenes` writes one.
    data: Path | None = None
    batch_size: int = 256  # Rows judged at once and written together.

    def check(self) -> None:
        self._at_least(1, "batch_size")
        self._at_most(MOST_IMAGES, "batch_size")
        self.judge._require(  # noqa: SLF001
            self.judge.kind != "model",
            "kind",
            "judges in training alone, where it is fitted to the data first",
            "set another --judge.kind.",
        )
        self._require(
            self.judge.kind != "scene" or self.data is not None,
            "data",
            "must name the scenes for the scene judge",
            "set --data to the scenes.jsonl that `balcap scenes` wrote.",
        )
        self._require(
            self.input.resolve() != self.output.resolve(),
            "output",
            "is the input, too",
            "give another file as OUTPUT.",
        )


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Curves and caption gallery of a run, made again from its files."""

    run: Path  # Folder of the run.


@dataclass(frozen=True)
class ExportConfig(Settings):
    """The policy of a run as a Hugging Face folder for transformers, vLLM and --model.path."""

    run: Path  # Folder of the run: its finished policy, or its last checkpoint before the end.
    out: Path  # Folder to write, which must not exist yet or be empty.
    # Checkpoint of the run: "best", or the number of a step.
    checkpoint: str = ""
    # The trained adapter alone, as a folder of PEFT; for a run with model.lora.
    adapter: bool = False
    # The policy with the adapter merged into its weights, as without --adapter.
    merged: bool = False

    def check(self) -> None:
        self._require(
            not (self.adapter and self.merged),
            "adapter",
            "and merged=True ask for two things",
            "give one of --adapter and --merged.",
        )


@dataclass(frozen=True)
class ModelCheckConfig(Settings):
    """Whether a policy computes on this machine what transformers computes with its weights.

    Every line is pass, fail or skipped with the reason; the last block is for an issue.
    """

    # Policy: "base", a run, a Hugging Face folder or a name on the hub.
    model: str
    revision: str | None = None  # Branch, tag or commit of a hub name; default: its main branch.
    image: Path | None = None  # Image of the prompt; default: one that is drawn.
    prompt: str = PROMPT  # Words of the prompt.
    tokens: int = 20  # Tokens that are written and compared one by one.
    # Types to compute in; transformers computes in float32 always.
    dtype: Literal["both", "float32", "bfloat16"] = "both"
    # Judge to ask about two captions: --judge.model, --judge.base-url.
    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(kind="llm"))

    def check(self) -> None:
        self._at_least(2, "tokens")
        self._at_most(256, "tokens")
        self._require(
            self.judge.kind == "llm", "judge", "must be of kind llm", "leave --judge.kind out."
        )


@dataclass(frozen=True)
class AssembleConfig(Settings):
    """A LLaVA folder from a vision tower, a language model and a projector."""

    out: Path  # Folder to write, which must not exist yet or be empty.
    # CLIP or DINOv2: a folder with safetensors, or a name on the hub.
    tower: str = ""
    # Language model of type llama, mistral or qwen2: a folder, or a name on the hub.
    decoder: str = ""
    # Projector: "mlp2x", a new one of two layers, or a LLaVA folder whose trained one is taken.
    projector: str = NEW_PROJECTOR
    # Layer of the tower whose output is read: -1 the last, -2 the one before it.
    vision_feature_layer: int = -2
    # Features: "default" leaves the tower's class token out, "full" keeps it.
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    # Pixels of an image's side; the tower's positions are resized to it. 0: as the tower has it.
    image_size: int = 0
    image_token: str = "<image>"  # Placeholder of images, added where the tokenizer has none.
    # Type of the written weights; "": the decoder's.
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    seed: int = 0  # Seed of a new projector.

    def check(self) -> None:
        for name in ("tower", "decoder"):
            self._require(
                bool(getattr(self, name)), name, "is missing", f"name a folder with --{name}."
            )
        self._require(bool(self.projector), "projector", "is empty", "leave it out for a new one.")
        self._at_least(0, "image_size")
        self._require(self.image_size <= 4096, "image_size", "must be at most 4096")
        self._require(
            self.image_token.isprintable() and self.image_token.strip() == self.image_token != "",
            "image_token",
            "must be a text without spaces around it",
            "leave it out for '<image>'.",
        )
        self._require(0 <= self.seed < 2**31, "seed", "must be at least 0 and below 2**31")


@dataclass(frozen=True)
class ScenesConfig(Settings):
    """Generated scenes as image files with a scenes.jsonl for --data.path; with --questions it has
    questions for `balcap sft` in place of captions.
    """

    out: Path  # Folder to write to.
    count: int = 100  # Number of scenes.
    split: Literal["train", "heldout"] = "train"  # Split of the scenes; the two never share one.
    seed: int = 0  # Seed of the scenes; the same one gives the same scenes.
    # Yes/no questions of each scene, half of them with one thing wrong; 0: captions instead.
    questions: int = 0
    clusters: int = 0  # Clusters of objects in each scene; 0: two to four, as in training.

    def check(self) -> None:
        self._at_least(0, "questions", "clusters")
        self._require(self.questions != 1, "questions", "must be 0 or at least 2, a yes and a no")
        self._at_most(1000, "questions")
        self._require(self.clusters <= 9, "clusters", "must be at most 9")
        self._at_least(1, "count")
        self._at_most(10**7, "count")
        self._require(0 <= self.seed < 2**31, "seed", "must be at least 0 and below 2**31")


def _check_run(config: Any) -> None:
    """Checks what the configs of runs share: name, seed, steps and their schedule."""
    config._at_least(1, "steps")
    _check_profile(config)
    config._require(
        config.optim.schedule == "constant" or config.steps > config.optim.warmup_steps,
        "steps",
        f"must be above optim.warmup_steps={config.optim.warmup_steps} for the "
        f"{config.optim.schedule} schedule",
        "set --optim.warmup-steps 0 or more --steps.",
    )
    config._require(0 <= config.seed < 2**31, "seed", "must be at least 0 and below 2**31")
    config._require(
        config.name not in ("", ".", "..") and Path(config.name).name == config.name,
        "name",
        "must be the name of one folder",
        "put the path into --out.",
    )


def _check_profile(config: Any) -> None:
    window = config.profile
    example = "such as --profile 3 5."
    config._require(
        len(window) <= 2,
        "profile",
        "must be one step, or the first and the last",
        f"write {example}",
    )
    config._require(
        not window or 1 <= window[0] <= window[-1],
        "profile",
        "must hold steps from 1 on, the first before the last",
        f"write {example}",
    )
    config._require(
        not window or window[-1] <= config.steps,
        "profile",
        f"must lie within steps={config.steps}",
        f"name steps up to {config.steps}, or set --steps {max(window, default=0)} or more.",
    )


def _check_loggers(config: Any) -> None:
    for logger in config.loggers:
        if logger not in LOGGERS:
            raise UserError(
                f"loggers holds the unknown logger {logger!r}, known are "
                f"{', '.join(LOGGERS)}{did_you_mean(logger, LOGGERS)}"
            )
    repeated = len(set(config.loggers)) < len(config.loggers)
    config._require(not repeated, "loggers", "names a logger twice", "name each logger once.")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
