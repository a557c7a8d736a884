"""`balcap check`: whether real weights compute here what transformers computes with them."""

import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image
from rich import box
from rich.table import Table

from balcap_jax.commands.checks.endpoint import compare_captions, picture
from balcap_jax.commands.checks.lines import (
    BOUNDS,
    Line,
    SkipLine,
    compare_logits,
    compare_logprobs,
    compare_number,
    compare_tokens,
    line,
)
from balcap_jax.commands.checks.ours import SHIFT, Ours, device_limit, peak_memory
from balcap_jax.commands.checks.theirs import Theirs
from balcap_jax.config.commands import ModelCheckConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.images import BadImageError, Pixels, open_image
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.families import load_config, make_policy
from balcap_jax.models.hf.folders import commit_of, policy_folder
from balcap_jax.models.hf.weights import load_pretrained, stored_shapes

_PACKAGES = ("balcap_jax", "jax", "jaxlib", "flax", "transformers", "torch", "numpy")
_GB = 1e9
_BACKENDS = ("xla", "cudnn", "splash")


class Report(NamedTuple):
    """What a check has found.

    Attributes:
      lines: in the order in which they ran.
      facts: of the machine and the policy, by name; nothing that is secret or names a place.
    """

    lines: tuple[Line, ...]
    facts: dict[str, str]

    @property
    def failed(self) -> bool:
        return any(line.status == "fail" for line in self.lines)


def check(config: ModelCheckConfig, *, tell: Callable[[Line], None] = lambda _: None) -> Report:
    """Compares a policy with transformers, its attentions with the plain one, and asks the judge.

    Args:
      tell: called with each line when it is done.

    Raises:
      UserError: the policy, its processor or the image cannot be read at all.
    """
    start = perf_counter()
    image = _image(config.image)
    folder = policy_folder(config.model, revision=config.revision)
    sizes = load_config(folder)
    count = sum(int(np.prod(s)) for s in stored_shapes(make_policy(sizes)).values())
    inputs = _inputs(Processor.load(folder), image, config.prompt)
    dtypes = ("float32", "bfloat16") if config.dtype == "both" else (config.dtype,)
    limit = device_limit()
    narrow = limit is not None and 4 * count > 0.8 * limit
    policy, params = load_pretrained(folder, dtype="bfloat16" if narrow else "float32")
    params = jax.device_put(params, jax.devices()[0])
    load = Line(
        "load",
        "pass",
        f"{count / 1e9:.3f} billion weights, {inputs['input_ids'].shape[1]} tokens of prompt",
        seconds=perf_counter() - start,
    )
    lines = [load]
    tell(load)

    def add(name: str, compare: Callable[[], tuple[bool, str]]) -> None:
        lines.append(line(name, compare))
        tell(lines[-1])

    run = _Run(config, Ours(policy, params, inputs), Theirs(folder, sizes, count, inputs), count)
    for dtype in dtypes:
        if narrow and dtype == "float32":
            reason = f"float32 weights of {4 * count / _GB:.1f} GB do not fit on this device"
            lines += [Line(f"{name} {dtype}", "skipped", detail=reason) for name in run.compared]
            continue
        for name, compare in run.compared.items():
            add(f"{name} {dtype}", lambda compare=compare, dtype=dtype: compare(dtype))
    for backend in _BACKENDS:
        for dtype in dtypes:
            if narrow and dtype == "float32":
                continue
            add(
                f"attention {backend} {dtype}",
                lambda backend=backend, dtype=dtype: run.attention(backend, dtype),
            )
    add("judge", lambda: compare_captions(config.judge))
    return Report(tuple(lines), _facts(config, folder, sizes, count, perf_counter() - start))


def table(report: Report) -> Table:
    """The lines for people, within 80 columns."""
    rendered = Table(box=box.SIMPLE, show_header=False, width=80)
    rendered.add_column(no_wrap=True)
    rendered.add_column(no_wrap=True)
    rendered.add_column(overflow="fold")
    rendered.add_column(justify="right", no_wrap=True)
    colours = {"pass": "green", "fail": "bold red", "skipped": "yellow"}
    for entry in report.lines:
        said = entry.detail or entry.figure
        seconds = f"{entry.seconds:.1f} s" if entry.seconds else ""
        status = f"[{colours[entry.status]}]{entry.status}[/]"
        rendered.add_row(entry.name, status, said.replace("[", "\\["), seconds)
    return rendered


def block(report: Report) -> str:
    """What to paste into an issue: versions, device, sizes, figures; no paths, no keys."""
    counts = {
        status: sum(entry.status == status for entry in report.lines)
        for status in ("pass", "fail", "skipped")
    }
    lines = ["```", "balcap check: " + ", ".join(f"{n} {name}" for name, n in counts.items())]
    lines += [f"{name}: {value}" for name, value in report.facts.items()]
    width = max(len(entry.name) for entry in report.lines)
    for entry in report.lines:
        lines.append(
            f"{entry.name:<{width}}  {entry.status:<7}  {entry.figure}  {entry.seconds:.1f} s"
            if entry.status != "skipped"
            else f"{entry.name:<{width}}  skipped  {entry.detail}"
        )
    return "\n".join([*lines, "```"])


class _Run:
    """The comparisons of one policy, which share what transformers says."""

    def __init__(self, config: ModelCheckConfig, ours: Ours, theirs: Theirs, count: int) -> None:
        self.config, self.ours, self.theirs, self.count = config, ours, theirs, count
        self.compared = {
            "logits": self.logits,
            "greedy": self.greedy,
            "loss": self.loss,
            "gradient": self.gradient,
        }
        self._known: dict[str, object] = {}

    def logits(self, dtype: str) -> tuple[bool, str]:
        theirs = self._once("logits", self.theirs.logits)
        return compare_logits(self.ours.logits(dtype), theirs, bound=BOUNDS[dtype].logits)

    def greedy(self, dtype: str) -> tuple[bool, str]:
        count = self.config.tokens
        tokens, scores = self._once("greedy", lambda: self.theirs.greedy(count))
        mine = self.ours.greedy(dtype, count)
        return compare_tokens(mine, tokens, scores, bound=BOUNDS[dtype].logits)

    def loss(self, dtype: str) -> tuple[bool, str]:
        (ours, _), (theirs, _) = self._updates(dtype)
        return compare_number(ours, theirs, bound=BOUNDS[dtype].loss)

    def gradient(self, dtype: str) -> tuple[bool, str]:
        (_, ours), (_, theirs) = self._updates(dtype)
        return compare_number(ours, theirs, bound=BOUNDS[dtype].gradient, relative=True)

    def attention(self, backend: str, dtype: str) -> tuple[bool, str]:
        """The shared prompt with this attention beside each caption with a prompt of its own."""
        try:
            policy = self.ours.backend(backend, dtype)
        except UserError as error:
            raise SkipLine(str(error).partition(";")[0]) from error
        plain = self._once(
            f"plain {dtype}", lambda: self.ours.plain_logprobs(dtype, self._captions())
        )
        mine = self.ours.logprobs(policy, self._captions())
        return compare_logprobs(mine, plain, bound=BOUNDS[dtype].logprobs)

    def _updates(self, dtype: str) -> tuple[tuple[float, float], tuple[float, float]]:
        captions = self._captions()
        old = self._once("old", lambda: self.theirs.logprobs(captions)) - np.float32(SHIFT)
        theirs = self._once("update", lambda: self.theirs.update(captions, old))
        self._check_room()
        ours = self._once(f"ours {dtype}", lambda: self.ours.update(dtype, captions, old))
        return ours, theirs

    def _check_room(self) -> None:
        """The update holds weights and two float32 copies of the gradient."""
        limit = device_limit()
        if limit is not None and 12 * self.count > 0.9 * limit:
            raise SkipLine(
                f"weights and gradient of {12 * self.count / _GB:.1f} GB do not fit on this device"
            )

    def _captions(self) -> np.ndarray:
        """Two captions [2 n] of words at random: what nobody says shows more than what all say."""
        config = self.ours.policy.config
        special = {*config.banned_tokens, *config.stop_tokens, config.pad_token_id}
        words = np.setdiff1d(np.arange(config.vocab_size), list(special))
        return np.random.default_rng(0).choice(words, (2, self.config.tokens))

    def _once(self, name: str, make: Callable) -> object:
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]


def _image(path: Path | None) -> Image.Image:
    if path is None:
        return picture()
    try:
        return open_image(path, pixels=Pixels())
    except BadImageError as error:
        raise UserError(
            f"--image {path} cannot be read ({error}); give a readable RGB image file."
        ) from error


def _inputs(processor: Processor, image: Image.Image, prompt: str) -> dict[str, np.ndarray]:
    """The arrays of one prompt, as both sides read them."""
    row = processor.row(Example("check", image, prompt, ""))
    made = processor.image_processor(images=[image.convert("RGB")], return_tensors="np")
    ids = np.asarray(row.tokens, np.int64)[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "pixel_values": np.asarray(made["pixel_values"], np.float32),
    }
    if "image_grid_thw" in made:
        inputs["image_grid_thw"] = np.asarray(made["image_grid_thw"], np.int64)
    return inputs


def _facts(
    config: ModelCheckConfig, folder: Path, sizes: PolicyConfig, count: int, seconds: float
) -> dict[str, str]:
    device = jax.devices()[0]
    on_device, on_host = peak_memory()
    memory = "unknown" if on_device is None else f"{on_device / _GB:.2f} GB"
    text, vision = sizes.text, sizes.vision
    kind = type(sizes).__name__.removesuffix("Config")
    commit = commit_of(config.model, folder)
    named = "" if commit is None else f"{config.model}, commit {commit[:12]}, "
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    return {
        "versions": f"Python {platform.python_version()}, {_versions()}",
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"{platform.system()} {platform.machine()}",
        "policy": f"{named}{kind}, {count:,} weights",
        "decoder": f"{text.num_hidden_layers} x {text.hidden_size}, {text.num_attention_heads} / "
        f"{text.num_key_value_heads} heads, mlp {text.intermediate_size}, {text.vocab_size} words",
        "tower": f"{depth} x {vision.hidden_size}, heads of {vision.head_dim}",
        "peak memory": f"device {memory}, host {on_host / _GB:.2f} GB",
        "seconds": f"{seconds:.0f}",
    }


def _versions() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} -")
    return ", ".join(found)
