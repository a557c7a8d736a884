"""Settings of `balcap eval`: captions of a model or of a file, and each benchmark's data and judge.

The comment beside a field is its text in `--help`.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from balcap_jax.config.base import Settings
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import (
    MOST_IMAGES,
    MOST_TOKENS,
    PROMPT,
    check_pixels,
    check_temperature,
)
from balcap_jax.errors import UserError

# The judges that the benchmarks' authors use.
OFFICIAL_JUDGES = {
    "dcscore": ("gpt-4o-2024-05-13",),
    "captionqa": ("Qwen/Qwen2.5-72B-Instruct", "Qwen2.5-72B-Instruct"),
    "caparena": ("gpt-4o-2024-08-06",),
}
_OPENAI = "https://api.openai.com/v1"
_CACHE = Path("runs/eval_cache.sqlite")  # apart from that of training, whose prompts are others
# Settings that say how our own judge asks; the benchmarks say it themselves.
_OF_OUR_JUDGE = (
    "calls", "order", "structured", "temperature", "max_tokens", "failure_window",
)  # fmt: skip
DETAIL = "Describe this image in detail."


@dataclass(frozen=True)
class TextJudgeConfig(JudgeConfig):
    """The judge of a benchmark, which asks for text: a model behind an endpoint."""

    def check(self) -> None:
        if self.kind != "llm":
            does = {"model": "answers only yes or no", "auto": "names no model to ask"}
            raise UserError(
                f"judge.kind={self.kind!r} {does.get(self.kind, 'goes by its own rules')}, and "
                "this benchmark needs a judge that writes text; leave --judge.kind out and name a "
                "model behind an endpoint with --judge.model (vLLM serves a folder), or take "
                "`balcap eval bcapscore`, which any judge can score."
            )
        super().check()


def _judge(benchmark: str, **changes) -> TextJudgeConfig:
    # 2048: what hosted models shrink an image of high detail to first.
    given = {
        "kind": "llm", "model": OFFICIAL_JUDGES[benchmark][0], "base_url": _OPENAI,
        "cache": _CACHE, "image_side": 2048,
    }  # fmt: skip
    return TextJudgeConfig(**(given | changes))


@dataclass(frozen=True)
class _Captions(Settings):
    """Captions to evaluate, which all benchmarks share."""

    # Captions in a file: {image: caption} as JSON, or JSONL rows of an id and a caption; in place
    # of --model.
    captions: Path | None = None
    # Policy that makes the captions: a run, a Hugging Face folder, "base" or a name on the hub.
    model: str = ""
    revision: str | None = None  # Branch, tag or commit of a hub name; default: its main branch.
    # Checkpoint of the run: "best", or the number of a step; default: its finished policy.
    checkpoint: str = ""
    # Name of the model in reports; default: that of its folder or of the captions' file.
    name: str = ""
    # Folder of the results, a folder below it for each benchmark; default: eval/ in the run, else
    # runs/NAME/eval.
    out: Path | None = None
    allow_missing: bool = False  # Images without a caption are left out.
    prompt: str = DETAIL  # Request to the policy.
    max_new_tokens: int = 500  # Most tokens of a caption; it is cut there.
    temperature: float = 0.0  # Temperature of the policy; 0 takes the most likely token.
    top_p: float = 1.0  # Probability of the most likely tokens that are sampled from.
    # Seed of the captions, of the order in battles, and of the bootstrap.
    seed: int = 0
    batch_size: int = 8  # Images that are captioned at once.
    # Type that the policy is kept and run in; of a checkpoint it is that of its run.
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_pixels: int = 1024 * 1024  # Most pixels of an image; a larger one is shrunk to it.
    min_pixels: int = 0  # Least pixels of an image; a smaller one is enlarged to it.
    max_file_pixels: int = 64_000_000  # Most pixels of an image file; a larger one is refused.
    shown: int = 40  # Images in the report, with all that was found.

    def check(self) -> None:
        check_pixels(self)
        self._at_least(1, "max_new_tokens", "batch_size")
        self._at_least(0, "shown")
        check_temperature(self)
        self._at_most(MOST_TOKENS, "max_new_tokens")
        self._at_most(MOST_IMAGES, "batch_size")
        self._require(0 <= self.seed < 2**31, "seed", "must be at least 0 and below 2**31")
        self._require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        self._require(
            not (self.captions and self.model),
            "captions",
            f"and model={self.model!r} both give captions",
            "leave one of --captions and --model out.",
        )
        self._require(
            not self.checkpoint or self.dtype == "float32",
            "dtype",
            f"has no effect with checkpoint={self.checkpoint!r}, which is run as its run was",
            "leave one of --dtype and --checkpoint out.",
        )
        self._require(self.name.isprintable(), "name", "holds characters that no name has")


def _check_judge(judge: JudgeConfig, benchmark: str) -> None:
    """Refuses what the benchmark itself says."""
    for name in _OF_OUR_JUDGE:
        default = JudgeConfig.__dataclass_fields__[name].default
        judge._require(  # noqa: SLF001
            getattr(judge, name) == default,
            name,
            f"has no effect on {benchmark}, which says itself how its judge is asked",
            f"leave it at {default}.",
        )


@dataclass(frozen=True)
class DCScoreConfig(_Captions):
    """Facts of captions, verified by the image and matched to those that people wrote."""

    # Oracle facts: the file human_annotated_oracle_facts.jsonl of DeCapBench.
    facts: Path | None = None
    images: Path | None = None  # Folder of the images that the facts are of.
    official: Path | None = None  # Checkout of MAGAer13/DeCapBench, whose prompts are taken.
    matchings: int = 3  # Matchings of the facts of each caption.
    verifications: int = 3  # Verifications of the facts of each caption.
    judge: TextJudgeConfig = field(default_factory=lambda: _judge("dcscore"))

    def check(self) -> None:
        super().check()
        self._at_least(1, "matchings", "verifications")
        self._at_most(100, "matchings", "verifications")
        _check_judge(self.judge, "DCScore")


@dataclass(frozen=True)
class CaptionQAConfig(_Captions):
    """Questions about images that a text model answers by captions."""

    # Questions: a folder of the data set with all four domains, or a file of questions.
    data: Path | None = None
    download: bool = False  # Fetching the data set Borise/CaptionQA from the hub, in place of data.
    # Domains that are asked about: natural, document, ecommerce, embodiedai; default: all.
    domains: tuple[str, ...] = ()
    images: Path | None = None  # Folder of the images, where the data hold none and a model is run.
    official: Path | None = None  # Checkout of bronyayang/CaptionQA, whose prompts are taken.
    temperature: float = 0.7  # Temperature of the policy; 0 takes the most likely token.
    judge: TextJudgeConfig = field(
        default_factory=lambda: _judge("captionqa", base_url="http://127.0.0.1:8000/v1")
    )

    def check(self) -> None:
        super().check()
        _check_judge(self.judge, "CaptionQA")
        self._require(
            not (self.data and self.download),
            "data",
            "and download=True both name the questions",
            "give one of --data and --download.",
        )


@dataclass(frozen=True)
class CapArenaConfig(_Captions):
    """Battles of captions against those of three baseline models."""

    data: Path | None = None  # Battles: the file caparena_auto_600.json.
    images: Path | None = None  # Folder of its images.
    official: Path | None = None  # Checkout of njucckevin/CapArena, whose prompts are taken.
    # Each battle in both orders, which tells how often the verdict changes with the order.
    both_orders: bool = False
    judge: TextJudgeConfig = field(default_factory=lambda: _judge("caparena"))

    def check(self) -> None:
        super().check()
        _check_judge(self.judge, "CapArena-Auto")


@dataclass(frozen=True)
class BCapScoreConfig(_Captions):
    """Precision, recall and linguistic quality of captions, and b-CapScore of all of them."""

    data: Path | None = None  # Images with references: a file that --data.path of a run takes.
    prompt: str = PROMPT  # Request to the policy, where the data have none.
    max_new_tokens: int = 128  # Most tokens of a caption; it is cut there.
    judge: JudgeConfig = field(default_factory=JudgeConfig)


_SHARED = ("model", "revision", "checkpoint", "name", "out")
BENCHMARKS = ("dcscore", "captionqa", "caparena", "bcapscore")


@dataclass(frozen=True)
class EvalAllConfig(Settings):
    """All benchmarks whose data are given, of one model, with one report; --config names a file."""

    # Policy that makes the captions: a run, a Hugging Face folder, "base" or a name on the hub.
    model: str = ""
    revision: str | None = None  # Branch, tag or commit of a hub name; default: its main branch.
    # Checkpoint of the run: "best", or the number of a step; default: its finished policy.
    checkpoint: str = ""
    # Name of the model in reports; default: that of its folder.
    name: str = ""
    # Folder of the results, a folder below it for each benchmark; default: eval/ in the run, else
    # runs/NAME/eval.
    out: Path | None = None
    dcscore: DCScoreConfig = field(default_factory=DCScoreConfig)
    captionqa: CaptionQAConfig = field(default_factory=CaptionQAConfig)
    caparena: CapArenaConfig = field(default_factory=CapArenaConfig)
    bcapscore: BCapScoreConfig = field(default_factory=BCapScoreConfig)

    def check(self) -> None:
        for benchmark in BENCHMARKS:
            inner = getattr(self, benchmark)
            for name in _SHARED:
                if getattr(inner, name) != type(inner).__dataclass_fields__[name].default:
                    raise UserError(
                        f"{benchmark}.{name} is said once for all benchmarks; write {name} above "
                        "the tables."
                    )

    def benchmarks(self) -> dict[str, _Captions]:
        """The settings of each benchmark whose data are given, with what is said for all.

        Raises:
          UserError: no benchmark has data.
        """
        found: dict[str, _Captions] = {}
        for benchmark in BENCHMARKS:
            inner = getattr(self, benchmark)
            data = inner.facts if benchmark == "dcscore" else inner.data
            if data is None and not getattr(inner, "download", False):
                continue
            given = {name: getattr(self, name) for name in _SHARED}
            if inner.captions is not None:  # from its file: no model is run for it
                given |= {"model": "", "revision": None, "checkpoint": ""}
                given["name"] = self.name or (Path(self.model).name if self.model else "")
            found[benchmark] = dataclasses.replace(inner, **given)
        if not found:
            raise UserError(
                "No benchmark has data; give one of --dcscore.facts, --captionqa.data, "
                "--caparena.data and --bcapscore.data, or a --config that does."
            )
        return found


@dataclass(frozen=True)
class EvalReportConfig(Settings):
    """Evaluations side by side: a table, plots and captions, as one page of HTML."""

    folders: tuple[Path, ...]  # Folders of results, the first one is compared with the others.
    # Page to write; default: report.html in the last folder.
    html: Path | None = None
    shown: int = 40  # Images on the page.
    seed: int = 0  # Seed of the bootstrap.

    def check(self) -> None:
        self._require(len(self.folders) > 0, "folders", "is empty", "name a folder of results.")
        self._at_least(0, "shown")
        self._require(0 <= self.seed < 2**31, "seed", "must be at least 0 and below 2**31")
