"""Settings of the rooms that a run goes through: model, data, rollout, reward, update and so on.

The comment beside a field is its text in `--help`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from balcap_jax.config.base import Settings
from balcap_jax.errors import UserError

REWARDS = ("precision", "recall", "linguistic")
PROMPT = "Describe the image."  # the request to the policy where the data have none
# What stands before a statement that is asked of an image, in training and in judging.
QUESTION_PROMPT = "True of the image, yes or no?"

Advantage = Literal["gdpo", "grpo", "rloo", "trl", "nvlabs", "verl", "nemo", "swift"]
# Settings that only some advantages read; the presets are fixed by the code they are named after.
_READ_BY_ADVANTAGE = {
    "eps": ("gdpo", "grpo"),
    "ddof": ("gdpo", "grpo"),
    "whiten": ("gdpo",),
    "grpo_scale": ("grpo",),
    "grpo_weights": ("grpo",),
}
_READ_BY_GRPO_WEIGHTS = {"grpo_weight_steps": ("fixed", "running")}
# Names in the scores of an evaluation that no reward may have.
BESIDE_REWARDS = ("b_capscore", "words", "rho", "captions", "no_signal")
# More than these at once are a slip of the keyboard: they would only fill the memory.
MOST_IMAGES = 2**16
MOST_CAPTIONS = 2**12  # of an image
MOST_TOKENS = 2**20  # of a caption; what a policy can is checked where it is loaded
MOST_CALLS = 2**16  # at once
LEAST_TEMPERATURE = 1e-6  # below it logits grow until they are infinite
MOST_SECONDS = 10**6  # of a wait; far longer ones are none that a clock can count
MEMORY = "memory"  # the data's path in a run whose rows were given in Python


@dataclass(frozen=True)
class LoraConfig(Settings):
    """Low-rank adapters in place of training whole weights (LoRA, arXiv:2106.09685)."""

    rank: int = 0  # Rank of the adapters; 0: whole weights are trained.
    alpha: float = 32.0  # Strength: an adapter counts alpha / rank times.
    rslora: bool = False  # Strength alpha / sqrt(rank) instead, which fits high ranks.
    # Share of an adapter's inputs that an update leaves out. The sampler leaves out nothing, so the
    # ratio of new to old policy is no longer 1 at the first update of a rollout.
    dropout: float = 0.0
    # Layers that get an adapter: last names of the decoder's such as q_proj, parts ("decoder",
    # "projector", "tower"), or paths such as "visual/blocks/mlp/*"; none given: all matmuls of the
    # decoder's layers.
    targets: tuple[str, ...] = ()
    # Adapter to start from, a folder of PEFT, a run with adapters or a name on the hub; it says
    # rank, alpha, rslora and targets itself.
    start: str = ""
    room = "model.lora."

    @property
    def on(self) -> bool:
        """Adapters are trained, and the weights below them are not."""
        return self.rank > 0 or bool(self.start)

    def check(self) -> None:
        self._at_least(0, "rank")
        self._positive("alpha")
        self._require(0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1")
        for name in ("alpha", "rslora", "dropout", "targets", "rank"):
            default = type(self).__dataclass_fields__[name].default
            changed = getattr(self, name) != default
            self._require(
                not (changed and self.start and name != "dropout"),
                name,
                f"has no effect with model.lora.start={self.start!r}, which says it itself",
                "leave it out.",
            )
            self._require(
                self.on or not changed,
                name,
                "has no effect with model.lora.rank=0, which trains whole weights",
                "set --model.lora.rank 16, or leave it out.",
            )


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The policy."""

    # Policy to start from: "base" (the small one in the package), "scratch" (new, for sft only), a
    # run, a Hugging Face folder, or a name on the hub such as Qwen/Qwen2.5-VL-3B-Instruct.
    path: str = "base"
    revision: str | None = None  # Branch, tag or commit of a hub name; default: its main branch.
    # Type of matmuls and of the written policy. Trained parameters, norms, softmax and losses are
    # always float32: small steps would vanish in the rounding of bfloat16.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Attention kernel: "cudnn" (NVIDIA GPUs, bfloat16), "splash" (TPUs), "xla" (anywhere), or
    # "auto": what fits.
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    # Parts to train: "projector", "tower", "decoder", or paths of weights such as
    # "language_model/layers/mlp/*"; none given: as train_vision says, which counts only then.
    train: tuple[str, ...] = ()
    train_vision: bool = False  # Training of the vision tower, too; it is frozen otherwise.
    lora: LoraConfig = field(default_factory=LoraConfig)
    # Values of a layer that the backward pass keeps and does not compute again, from fast to small:
    # all ("none"), the outputs of matmuls ("dots"), of attention ("attention"), what the devices of
    # mesh.tensor have summed ("sums"), nothing ("full").
    remat: Literal["none", "dots", "attention", "sums", "full"] = "none"
    # Type of the decoder's residual stream and of the sums between devices; "bfloat16" halves both.
    residual: Literal["float32", "bfloat16"] = "float32"
    room = "model."

    def check(self) -> None:
        self._require(bool(self.path.strip()), "path", "names no policy", "name one, or base.")
        self._require(
            self.residual == self.dtype or self.residual == "float32",
            "residual",
            f"would round more than the matmuls of model.dtype={self.dtype!r}",
            "set --model.dtype bfloat16 too, or leave it out.",
        )
        self._require(
            not (self.train and self.lora.on),
            "train",
            "has no effect with model.lora, which trains adapters alone",
            "leave it out and name the parts in --model.lora.targets.",
        )


@dataclass(frozen=True)
class DataConfig(Settings):
    """Images, prompts and reference captions."""

    # Data: "scenes" (generated, embedded in the package), a .jsonl file of {"image", "caption"}
    # rows, a .json file of LLaVA, ShareGPT4V or COCO captions, a .parquet file of ClaimDiff-RL, the
    # folder of a TFDS data set, or tar files of WebDataset (shard-{000..999}.tar); here, or in a
    # bucket (gs://BUCKET/...).
    path: str = "scenes"
    # Kind of the data; "auto" looks into them.
    format: Literal["auto", "jsonl", "llava", "coco", "claimdiff", "tfds", "webdataset"] = "auto"
    images: str = ""  # Folder that paths of images start from; default: the one of the file.
    boxes: str = ""  # An instances_*.json with the objects of COCO images.
    split: str = "train"  # Split of a TFDS data set.
    heldout: int = 200  # Examples kept apart for the evaluation.
    heldout_path: str = ""  # Data to hold out, of any kind; default: the end of the others.
    heldout_split: str = ""  # Split of a TFDS data set to hold out.
    max_bad_images: int = 10  # Most unreadable images and invalid rows; one more stops the run.
    # Most pixels of an image; a larger one is shrunk to it, in its proportions. The longest prompt
    # of a batch decides how far all are padded.
    max_pixels: int = 1024 * 1024
    min_pixels: int = 0  # Least pixels of an image; a smaller one is enlarged to it.
    # Most pixels of an image file; a larger one is not opened: decoding takes 5 bytes for each.
    max_file_pixels: int = 64_000_000
    # Batches among which photos of similar size are brought together, so that little is padded; an
    # epoch has the same photos. 0: batches by chance alone.
    group_by_length: int = 32
    workers: int = 4  # Threads that read and process images ahead of the device.
    room = "data."

    def check(self) -> None:
        self._require(bool(self.path.strip()), "path", "names no data", "name a file or a folder.")
        self._at_least(1, "heldout", "workers")
        self._at_most(MOST_IMAGES, "heldout")
        self._at_most(1024, "workers")
        if self.path == "scenes":  # made on the spot: nothing to find, to hold out or to be bad
            for name in ("format", "images", "boxes", "split", "heldout_path", "heldout_split"):
                default = type(self).__dataclass_fields__[name].default
                self._require(
                    getattr(self, name) == default,
                    name,
                    "has no effect with data.path='scenes'",
                    "leave it out or give a --data.path.",
                )
        self._at_least(0, "max_bad_images", "group_by_length")
        self._at_most(4096, "group_by_length")
        check_pixels(self)


def check_temperature(settings: Any) -> None:
    """Refuses a temperature that logits divided by are infinite, and so no text at all."""
    settings._at_least(0, "temperature")
    settings._require(
        not 0 < settings.temperature < LEAST_TEMPERATURE,
        "temperature",
        f"must be 0, for the likeliest token, or at least {LEAST_TEMPERATURE:g}",
    )


def check_pixels(settings: Any) -> None:
    """Refuses bounds of images that nothing fits between."""
    settings._at_least(56 * 56, "max_pixels")  # what towers make a few tokens of
    settings._at_least(0, "min_pixels")
    settings._at_least(1, "max_file_pixels")
    settings._at_most(2**24, "min_pixels")  # all images are enlarged to it
    settings._require(
        settings.min_pixels <= settings.max_pixels,
        "min_pixels",
        f"must be at most {settings.room}max_pixels={settings.max_pixels}",
    )


@dataclass(frozen=True)
class RolloutConfig(Settings):
    """Sampling of captions in training."""

    group_size: int = 8  # Captions per image; they are compared with one another.
    max_new_tokens: int = 112  # Most tokens of a caption; it is cut there.
    temperature: float = 1.0  # Temperature of the softmax that captions are sampled from.
    top_p: float = 1.0  # Probability of the most likely tokens that are sampled from.
    # Steps that learning stays behind sampling: so many batches are judged while the device goes
    # on, and the policy has moved so many steps on when it learns from them. 0: strictly on-policy,
    # and the device waits for the judge.
    overlap_steps: Literal[0, 1, 2, 3, 4] = 0
    room = "rollout."

    def check(self) -> None:
        self._require(
            self.group_size >= 2,
            "group_size",
            "must be at least 2, because the captions of an image are compared with one another",
            "set --rollout.group-size 2 or more.",
        )
        self._at_least(1, "max_new_tokens")
        self._at_most(MOST_CAPTIONS, "group_size")
        self._at_most(MOST_TOKENS, "max_new_tokens")
        self._positive("temperature")
        self._at_least(LEAST_TEMPERATURE, "temperature")
        self._require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")


@dataclass(frozen=True)
class RLConfig(Settings):
    """Update of the policy from the rewards."""

    # Advantages: "gdpo" normalises each reward in its group, then sums and whitens; "grpo" sums
    # first; "rloo" compares with the other captions of the image (leave one out) and divides by
    # nothing. The others repeat the conventions of published codes exactly.
    advantage: Advantage = "gdpo"
    eps: float = 1e-4  # Number added to standard deviations (gdpo, grpo).
    ddof: Literal[0, 1] = 1  # Form of the standard deviation; 1: unbiased (gdpo, grpo).
    whiten: bool = True  # Whitening of the summed advantages over the batch (gdpo).
    # Standard deviation that grpo divides by: of the group, of the batch, of both one after the
    # other, or none.
    grpo_scale: Literal["group", "batch", "both", "none"] = "group"
    # Weights of the rewards under grpo: as given; divided by each reward's mean spread within
    # groups over the first steps ("fixed"), or over the last ones ("running").
    grpo_weights: Literal["given", "fixed", "running"] = "given"
    grpo_weight_steps: int = 10  # Number of these steps.
    clip_low: float = 0.2  # Width below 1 of the range that the ratio is clipped to.
    clip_high: float = 0.2  # Width above 1 of that range.
    # Bound of the weights of tokens that an older policy has sampled (truncated importance
    # sampling); 2 is usual. The ratio is then that to the policy before the updates of the step. 0:
    # no weights, and the ratio to the policy that sampled.
    importance_cap: float = 0.0
    # Divisor of the loss: the tokens of the batch ("dapo"), those of each caption ("grpo") or the
    # longest possible caption ("dr_grpo").
    loss_normaliser: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    kl_coef: float = 0.0  # Weight of the KL divergence from the starting policy; 0 is off.
    updates_per_rollout: int = 1  # Optimizer steps on the captions of one rollout.
    # Parts that the batch of an update is split into to save memory; the result is the same.
    micro_batches: int = 1
    # Packing of real tokens, so that padding of captions and prompts is not computed; without it
    # the update is the same within rounding, and slower.
    packing: bool = True
    room = "rl."

    def check(self) -> None:
        self._no_dead_settings("advantage", _READ_BY_ADVANTAGE)
        self._no_dead_settings("grpo_weights", _READ_BY_GRPO_WEIGHTS)
        self._positive("eps", "clip_high")
        self._require(0 < self.clip_low < 1, "clip_low", "must lie between 0 and 1")
        self._require(
            self.importance_cap == 0 or self.importance_cap >= 1,
            "importance_cap",
            "must be at least 1, which is the weight of a token of the policy itself, or 0, for no "
            "weights",
        )
        self._at_least(0, "kl_coef")
        self._at_least(1, "updates_per_rollout", "micro_batches", "grpo_weight_steps")
        self._at_most(1024, "updates_per_rollout")
        self._at_most(10**5, "grpo_weight_steps")


@dataclass(frozen=True)
class OptimConfig(Settings):
    """AdamW."""

    learning_rate: float = 5e-4  # Peak learning rate.
    warmup_steps: int = 5  # Steps over which the learning rate rises linearly.
    # Schedule of the learning rate after the warm-up.
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.0  # Weight decay, not on norms and biases.
    b1: float = 0.9  # Decay of the mean of gradients.
    b2: float = 0.95  # Decay of the mean of squared gradients.
    max_grad_norm: float = 1.0  # Norm that larger gradients are scaled down to.
    # Peak learning rates of parts, as NAME=RATE with the names of model.train, such as
    # "projector=1e-3"; the others have learning_rate. The first that names a weight counts.
    rates: tuple[str, ...] = ()
    room = "optim."

    @property
    def by_part(self) -> tuple[tuple[str, float], ...]:
        """The name and the peak learning rate of each entry of `rates`."""
        return tuple(
            (name, float(rate)) for name, _, rate in (r.partition("=") for r in self.rates)
        )

    def check(self) -> None:
        self._positive("learning_rate", "max_grad_norm")
        self._at_least(0, "warmup_steps", "weight_decay")
        for name in ("b1", "b2"):
            ok = 0 <= getattr(self, name) < 1
            self._require(ok, name, "must be at least 0 and below 1")
        for entry in self.rates:
            name, _, rate = entry.partition("=")
            self._require(
                bool(name) and _is_rate(rate),
                "rates",
                f"holds {entry!r}, which is no NAME=RATE with a rate above 0",
                "write such as --optim.rates projector=1e-3 tower=2e-6.",
            )
        names = [name for name, _ in self.by_part]
        self._require(
            len(set(names)) == len(names), "rates", "names a part twice", "name each part once."
        )


def _is_rate(text: str) -> bool:
    """Whether `text` is a number above 0 and finite."""
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


@dataclass(frozen=True)
class MeshConfig(Settings):
    """Devices along each axis; the product is the number of devices."""

    # Copies of the policy, each with its share of the images; -1: all the rest. Without an
    # accelerator, and with a small policy, -1 makes a device of each core (docs/speed.md).
    data: int = -1
    fsdp: int = 1  # Devices that one copy's parameters are spread over; -1: all the rest.
    tensor: int = 1  # Devices that one layer's matmuls are split over; -1: all the rest.
    # Times at which an update brings the parameters together that fsdp spreads: for each "layer",
    # twice per micro-batch, or once per "update", which keeps them: in bfloat16 2 bytes each over
    # tensor.
    gather: Literal["layer", "update"] = "layer"
    room = "mesh."

    def check(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            self._require(size == -1 or size >= 1, name, "must be -1 or at least 1")
        if (self.data, self.fsdp, self.tensor).count(-1) > 1:
            raise UserError(
                f"mesh.data={self.data}, mesh.fsdp={self.fsdp}, mesh.tensor={self.tensor} has more "
                "than one -1, and only one axis can take the rest of the devices; give the others "
                "a size."
            )


@dataclass(frozen=True)
class DistConfig(Settings):
    """Processes of a run on several hosts, and how they find one another."""

    # Address that process 0 listens at, as HOST:PORT; "auto": from the environment (Cloud TPU,
    # SLURM, Open MPI), and on a single machine this process alone; "none": this process alone.
    coordinator: str = "auto"
    processes: int = 1  # Number of processes, where coordinator is HOST:PORT.
    process: int = 0  # Number of this process, from 0, where coordinator is HOST:PORT.
    start_timeout: float = 300.0  # Seconds in which all processes must have come.
    # Seconds without a sign of life after which a process counts as lost and the others end.
    lost_after: float = 30.0
    room = "dist."

    def check(self) -> None:
        named = self.coordinator not in ("auto", "none")
        host, _, port = self.coordinator.rpartition(":")
        self._require(
            not named or (host != "" and _is_port(port)),
            "coordinator",
            "must be HOST:PORT, 'auto' or 'none'",
            "give the address of process 0, such as --dist.coordinator 10.0.0.1:8476.",
        )
        self._at_least(1, "processes")
        self._at_most(2**16, "processes")
        for name, default in (("processes", 1), ("process", 0)):
            self._require(
                named or getattr(self, name) == default,
                name,
                f"has no effect with dist.coordinator={self.coordinator!r}",
                "give the address of process 0 with --dist.coordinator HOST:PORT.",
            )
        self._require(
            0 <= self.process < self.processes,
            "process",
            f"must be at least 0 and below dist.processes={self.processes}",
        )
        self._positive("start_timeout")
        self._at_least(1, "lost_after")
        self._at_most(MOST_SECONDS, "start_timeout", "lost_after")


def _is_port(text: str) -> bool:
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    return is_number and 0 < int(text) < 2**16


@dataclass(frozen=True)
class CheckpointConfig(Settings):
    """Saves of the run; SIGTERM and the last step save too."""

    every: int = 25  # Steps between saves.
    # Steps between snapshots of the weights alone, in bfloat16, all of which stay: a sixth of a
    # whole save, to look at with `balcap export RUN OUT --checkpoint parameters/STEP`; 0: none.
    parameters_every: int = 0
    keep: int = 2  # Latest checkpoints kept.
    # Keeping of the checkpoint with the best scores of held-out images, too; for this, steps are
    # evaluated (evaluation.every).
    keep_best: bool = True
    room = "checkpoint."

    def check(self) -> None:
        self._at_least(1, "every", "keep")
        self._at_least(0, "parameters_every")


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Captions of held-out images, before the first and after the last step and in between."""

    every: int = 0  # Steps between evaluations; 0: only before and after.
    batch_size: int = 100  # Images captioned at once.
    # Temperature; 1 draws from the distribution that training moves, 0 takes the likeliest tokens.
    temperature: float = 1.0
    room = "evaluation."

    def check(self) -> None:
        self._at_least(0, "every")
        check_temperature(self)
        self._at_least(1, "batch_size")
        self._at_most(MOST_IMAGES, "batch_size")
