"""Settings of the judges, and of the commands that ask a model about the data."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from balcap_jax.config.base import Settings
from balcap_jax.config.sections import (
    MEMORY,
    MOST_CALLS,
    MOST_IMAGES,
    MOST_SECONDS,
    MOST_TOKENS,
    DataConfig,
)
from balcap_jax.storage.paths import is_remote

RULES, POLICY = "rules", "policy"  # of judge.fluency, beside folders
_READ_BY_KIND = dict.fromkeys(
    (
        "base_url", "key_env", "calls", "order", "structured", "temperature", "max_tokens",
        "concurrency", "requests_per_minute", "tokens_per_minute", "timeout",
        "retries", "backoff", "deadline", "cache", "replay", "prompt_price", "completion_price",
    ),
    ("llm",),
)  # fmt: skip
_READ_BY_KIND |= dict.fromkeys(("model", "image_side"), ("llm", "model"))
_READ_BY_KIND |= dict.fromkeys(("images_per_pass", "own_policy"), ("model",))
_READ_BY_KIND |= {"fluency": ("lexical", "model", "auto"), "dtype": ("model", "lexical", "auto")}


@dataclass(frozen=True)
class JudgeConfig(Settings):
    """The judge of the captions; all below failure_window is for kind=llm or kind=model."""

    # Kind of judge: "scene" (exact, for generated scenes), "lexical" (photos with references,
    # offline), "llm" (a multimodal model behind an OpenAI-compatible endpoint), "model" (a policy
    # folder that answers yes or no on the devices of the run; it judges precision, and the judge of
    # "auto" the rest), or "auto": scene for scenes, lexical where the data have references.
    kind: Literal["auto", "scene", "lexical", "llm", "model"] = "auto"
    # Share of captions without a signal above which the run stops, all saved.
    max_failure_share: float = 0.5
    failure_window: int = 1  # Last steps, whose captions that share is taken of.
    base_url: str = "http://127.0.0.1:8000/v1"  # URL of the endpoint; the default is vLLM's.
    # The model's name at the endpoint; of kind=model a policy: "base", a run, a Hugging Face folder
    # or a name on the hub.
    model: str = ""
    key_env: str = "BALCAP_JUDGE_KEY"  # Environment variable that holds the key, if one is needed.
    # One call per caption ("joint"), or one per caption and reward ("separate").
    calls: Literal["joint", "separate"] = "joint"
    # Place of the reference units in a joint call: before the caption, where the captions of a
    # group share them ("units_first"), or behind it ("caption_first").
    order: Literal["units_first", "caption_first"] = "units_first"
    # Way to ask for the form of the answer; where a server refuses it, the next one is taken.
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    temperature: float = 0.0  # Temperature of the model; some hosted ones accept only 1.
    max_tokens: int = 4096  # Most tokens of an answer; what is cut gets up to 4 times as many.
    image_side: int = 1024  # Pixels on the longer side that larger images are shrunk to.
    concurrency: int = 64  # Calls under way at once.
    requests_per_minute: int = 0  # Most requests per minute; 0: no limit.
    tokens_per_minute: int = 0  # Most tokens of prompts and answers; 0: no limit.
    timeout: float = 120.0  # Seconds for one call.
    retries: int = 6  # Calls after the first, when one fails or its answer is unusable.
    backoff: float = 0.5  # Seconds before the first retry, about; doubled for each further one.
    deadline: float = 900.0  # Seconds for all captions of a step; what is late has no signal.
    cache: Path = Path("runs/judge_cache.sqlite")  # File of all answers, for all runs.
    replay: bool = False  # Answers from the cache alone; those that are missing are reported.
    prompt_price: float = 0.0  # Price of a million prompt tokens, to count the cost.
    completion_price: float = 0.0  # Price of a million tokens of answers.
    # Linguistic quality where words are judged offline: by "rules" alone, or by a language model's
    # likelihood of the caption without its image as well: "policy", the one that the run starts
    # from, or any other, by its folder or its name on the hub.
    fluency: str = RULES
    # Type that models on the devices of the run, of kind=model and of fluency, are kept and run in.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    images_per_pass: int = 8  # Images that kind=model is asked about at once.
    # Allows the policy that is trained as its own judge, which believes its own inventions.
    own_policy: bool = False
    room = "judge."

    @property
    def device_models(self) -> dict[str, str]:
        """What the settings that name models on the devices of the run hold: a policy's folder or
        name, or "policy".
        """
        given = {"model": self.model if self.kind == "model" else "", "fluency": self.fluency}
        return {setting: name for setting, name in given.items() if name not in ("", RULES)}

    def check(self) -> None:
        self._no_dead_settings("kind", _READ_BY_KIND)
        self._no_dead_settings("calls", {"order": ("joint",)})
        self._require(
            self.kind == "model" or self.fluency != RULES or self.dtype == "bfloat16",
            "dtype",
            f"has no effect with {self.room}kind={self.kind!r} and {self.room}fluency='rules'",
            "leave it at bfloat16.",
        )
        self._require(
            not is_remote(self.cache),
            "cache",
            "must be a file on this machine's disk, where SQLite can lock it",
        )
        self._require(
            bool(self.fluency.strip()) and self.fluency.isprintable(),
            "fluency",
            "must be rules, policy, or the folder or name of a model",
        )
        share = self.max_failure_share
        self._require(0 <= share <= 1, "max_failure_share", "must be a share from 0 to 1")
        self._at_least(1, "failure_window", "max_tokens", "concurrency", "images_per_pass")
        self._at_most(MOST_IMAGES, "images_per_pass")
        self._require(
            self.kind != "model" or bool(self.model),
            "model",
            "is missing for judge.kind='model'",
            "name the folder of a policy with --judge.model.",
        )
        self._at_least(28, "image_side")  # the smallest image that towers take
        self._at_least(0, "temperature", "requests_per_minute", "tokens_per_minute", "retries")
        self._at_least(0, "backoff", "prompt_price", "completion_price")
        self._positive("timeout", "deadline")
        self._at_most(MOST_SECONDS, "timeout", "deadline", "backoff")
        self._at_most(MOST_CALLS, "concurrency")
        self._at_most(MOST_TOKENS, "max_tokens")
        # The longest side of a JPEG.
        self._require(self.image_side <= 65500, "image_side", "must be at most 65500")
        self._require(self.model.isprintable(), "model", "holds characters that no name has")
        self._require(
            _is_endpoint(self.base_url),
            "base_url",
            "must be a URL with a host and, where there is one, a port from 1 to 65535",
            "write it like http://127.0.0.1:8000/v1.",
        )
        url = urlsplit(self.base_url)
        # The settings are written into the run; keys must not be.
        if url.username or url.password or url.query or url.fragment:
            self._require(
                False,  # noqa: FBT003
                "base_url" if not url.password else "key_env",
                "goes with a base_url that carries a user, a password, a query or a fragment",
                "put the key alone into the environment variable that judge.key_env names.",
            )


@dataclass(frozen=True)
class AuditConfig(JudgeConfig):
    """A second judge that some captions of a step go to as well; a policy learns nothing of it."""

    every: int = 0  # Steps between audits; 0: none.
    captions: int = 64  # Captions of a step that are audited, at most all of them.
    room = "audit."

    def check(self) -> None:
        super().check()
        self._at_least(0, "every")
        self._at_least(1, "captions")
        self._at_most(MOST_IMAGES, "captions")
        default = AuditConfig.__dataclass_fields__["kind"].default
        self._require(
            self.every > 0 or (self.kind == default and not self.model),
            "every",
            "audits nothing, and a judge of the audit is named",
            "set --audit.every 50, or leave out what names it.",
        )


def _is_endpoint(text: str) -> bool:
    try:
        url = urlsplit(text)
        (url.hostname or "").encode("idna")  # refuses empty and endless parts of a name
        return (
            url.scheme in ("http", "https")
            and bool(url.hostname)
            and url.port != 0
            and not re.search(r"\][^:]", url.netloc)  # behind an address in brackets
            and text.isprintable()
            and not any(character.isspace() or character == "\\" for character in text)
        )
    except ValueError:  # of the port, of an address in brackets, of the name
        return False


@dataclass(frozen=True)
class JudgeCheckConfig(Settings):
    """Agreement of a model with the truth on 60 known captions, before it judges a run: of one
    behind an endpoint, or of a policy folder (--judge.kind model).
    """

    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(kind="llm"))

    def check(self) -> None:
        self.judge._require(  # noqa: SLF001
            self.judge.kind in ("llm", "model"),
            "kind",
            "asks no model, and the check is of a model",
            "leave --judge.kind out; `balcap bench judge` measures the lexical judge.",
        )


def require_endpoint(judge: JudgeConfig) -> None:
    """Refuses a judge that cannot write for a command that needs texts."""
    judge._require(  # noqa: SLF001
        judge.kind == "llm", "kind", "writes no texts", "leave --judge.kind out."
    )


@dataclass(frozen=True)
class UnitsConfig(Settings):
    """Reference units of all images of a data file, made once and stored beside it."""

    data: str  # The data file; its units go to DATA.units.jsonl, where training finds them.
    max_bad_images: int = 10  # Most unreadable images; one more stops the command.
    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(kind="llm"))

    def check(self) -> None:
        self._at_least(0, "max_bad_images")
        require_endpoint(self.judge)


@dataclass(frozen=True)
class RecaptionConfig(Settings):
    """References rewritten by a model that sees the image; resumable."""

    data: Path  # The .jsonl file of {"image", "caption"} rows.
    out: Path  # The .jsonl file to write, with the new captions; give it as --data.path.
    max_bad_images: int = 10  # Most unreadable images; one more stops the command.
    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(kind="llm"))

    def check(self) -> None:
        self._at_least(0, "max_bad_images")
        require_endpoint(self.judge)


@dataclass(frozen=True)
class CheckConfig(Settings):
    """Contents of a data file and all that is wrong with it; every row and image is read."""

    file: str  # The data: a file or a folder of any kind that --data.path takes.
    # Use of the data: "train" on rewards, of one image and its captions each; "sft" on given
    # answers, conversations of several turns and images too.
    task: Literal["train", "sft"] = "train"
    # Settings to read them with; --data.heldout-path and --data.heldout-split name what must share
    # no image.
    data: DataConfig = field(default_factory=lambda: DataConfig(path=MEMORY))

    def check(self) -> None:
        self._require(
            self.data.path == MEMORY, "file", "and --data.path both name data", "give one of them."
        )
