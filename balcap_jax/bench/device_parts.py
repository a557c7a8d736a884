"""The parts of `balcap bench device`, each in a process of its own, which has the device to itself.

A part gives rows `{"what", "seconds", "beside"}`: what was done, how long it took (None where that
is not the point), and what that is worth, in words.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from balcap_jax.bench import step
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import DataConfig
from balcap_jax.errors import UserError
from balcap_jax.models.attention.backends import NAMES, Attention, choose, xla
from balcap_jax.models.attention.plain import KV
from balcap_jax.plan.workloads.presets import Preset, preset_of
from balcap_jax.runs.device_rates import chip_of
from balcap_jax.runs.folder import read_jsonl

Row = dict[str, Any]
FAR = {"float32": 1e-4, "bfloat16": 3e-2}  # of the largest number: more is no rounding


def measure(part: str, settings: str) -> None:
    """Prints `{"rows": [...]}`, or of "facts" what the device is, as one line of JSON.

    Args:
      part: a name in `PARTS`, or "facts".
      settings: its arguments as JSON.
    """
    given = json.loads(settings)
    found = facts() if part == "facts" else {"rows": PARTS[part](**given)}
    print(json.dumps(found))  # noqa: T201 - read by the parent


def facts() -> dict[str, Any]:
    """The device and the versions."""
    device = jax.devices()[0]
    try:
        versions = step.versions("hf")
    except ModuleNotFoundError:  # no torch
        versions = step.versions(None)
    stats = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "chip": chip_of(device.device_kind),
        "memory_bytes": stats.get("bytes_limit"),
        "versions": versions,
    }


# ---- attention


def attention(preset: str, rounds: int) -> list[Row]:
    """Every backend that fits beside the plain one, in value and time of forward and backward."""
    sizes = preset_of(preset)
    text, vision = sizes.config.text, sizes.config.vision
    backends: dict[str, Attention] = {}
    rows = []
    for name in NAMES[1:]:
        try:
            backends[name] = choose(
                name, dtype=sizes.dtype, head_dims=(text.head_dim, vision.head_dim)
            )
        except UserError as error:
            rows.append(_row(f"attention, {name}", None, f"not run: {error}"))
    for field, arguments in _attention_inputs(sizes).items():
        plain_seconds, expected = _timed(getattr(xla(), field), arguments, rounds)
        for name, backend in backends.items():
            seconds, found = plain_seconds, expected
            if name != "xla":
                seconds, found = _timed(getattr(backend, field), arguments, rounds)
            differs = _difference(found, expected)
            words = "the plain one" if name == "xla" else (
                f"{plain_seconds / seconds:.2f} x as fast as xla, differs by {differs:.1e} of the "
                "largest number"
            )  # fmt: skip
            if differs > FAR[sizes.dtype]:
                words += ": WRONG, more than rounding"
            rows.append(_row(f"attention {field}, {name}", seconds, words))
    return rows


def _attention_inputs(preset: Preset) -> dict[str, tuple]:
    """Normal queries, keys and values of the preset's shapes, by the field of `Attention`."""
    text, vision = preset.config.text, preset.config.vision
    patch = vision.patch_size
    patches = preset.image[0] // patch * (preset.image[1] // patch)
    merge = getattr(vision, "spatial_merge_size", 1)
    prefix = patches // merge**2 + preset.text_tokens
    whole = prefix + preset.group * preset.completion
    rng = np.random.default_rng(0)

    def normal(tokens: int, heads: int, size: int) -> jax.Array:
        drawn = rng.standard_normal((preset.batch, tokens, heads, size), np.float32)
        return jnp.asarray(drawn, preset.dtype)

    heads, of_kv = text.num_attention_heads, text.num_key_value_heads
    size, seen = text.head_dim, vision.head_dim
    vision_heads = getattr(vision, "num_heads", None) or vision.num_attention_heads
    mask = jnp.ones((preset.batch, prefix), bool)
    patch_arrays = [normal(patches, vision_heads, seen) for _ in range(3)]
    return {
        "causal": (*(normal(prefix, n, size) for n in (heads, of_kv, of_kv)), mask),
        "group": (
            normal(whole, heads, size),
            KV(normal(whole, of_kv, size), normal(whole, of_kv, size)),
            mask,
            preset.group,
        ),
        "segments": (*patch_arrays, jnp.zeros((preset.batch, patches), jnp.int32)),
    }


def _timed(attend: Callable, arguments: tuple, rounds: int) -> tuple[float, Any]:
    """(median seconds of forward and backward, values with gradients), after a first call."""
    arrays = [x for x in arguments if not isinstance(x, int)]
    static = [x for x in arguments if isinstance(x, int)]
    learned = sum(1 for x in arrays if not _is_count(x))

    def objective(*arrays: Any) -> tuple[jax.Array, jax.Array]:
        out = attend(*arrays, *static)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    run = jax.jit(jax.grad(objective, range(learned), has_aux=True))
    found = jax.block_until_ready(run(*arrays))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        times.append(time.perf_counter() - start)
    return statistics.median(times), found


def _is_count(x: Any) -> bool:
    """Whether it is a mask or ids, which have no gradient."""
    return isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jnp.floating)


def _difference(found: Any, expected: Any) -> float:
    """The largest, as a share of the largest number of its array; NaN counts as all of it."""
    shares = []
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        share = np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-6)
        shares.append(1.0 if np.isnan(share) else float(share))
    return max(shares)


# ---- steps


def steps(preset: str, rounds: int, against: str | None = None) -> list[Row]:
    """Rollout, decode step and update beside the measured limits and, where asked, Hugging Face."""
    if against is not None and jax.devices()[0].platform != "cpu":
        import torch

        if not torch.cuda.is_available():
            return [_row(f"{preset}, Hugging Face", None, "not run: torch sees no GPU")]
    known: list[Row] = []

    def heard(what: str, seconds: float) -> None:
        """Told at once, since who has a device for minutes may end this before it is done."""
        known.append(_row(f"{preset} {what}", seconds, "before it was ended"))
        print(json.dumps({"rows": known}), flush=True)  # noqa: T201 - read by the parent

    report = step.run(preset, against=against, rounds=rounds, heard=heard)
    ours, limits, rows = report["sides"]["balcap"], report["limits"], []
    for part in step.PARTS:
        side = ours[part]
        beside = f"{side['tokens_per_second']:.0f} tokens/s, first call {side['first']:.1f} s"
        if against is not None:
            theirs = report["sides"]["hf"][part]
            beside += f"; HF {theirs['median']:.3f} s, {report['ratios'][part]:.2f} x"
        rows.append(_row(f"{preset} {part}", side["median"], beside))
    for name in ("decode_step", "update"):
        limit = limits[name]
        bound = "bytes" if limit["bytes_floor"] > limit["flops_floor"] else "flops"
        floor = max(limit["bytes_floor"], limit["flops_floor"])
        beside = f"{limit['reached']:.0%} of its floor by {bound}, {floor:.5f} s"
        rows.append(_row(f"{preset} {name.replace('_', ' ')}, floor", limit["seconds"], beside))
    rates = (
        f"copies {limits['bytes_per_second'] / 1e9:.0f} GB/s, multiplies "
        f"{limits['flops_per_second'] / 1e12:.2f} TFLOP/s"
    )
    rows.append(_row("limits of the device as measured", None, rates))
    peak = f"{ours['peak_bytes'] / 1e9:.2f} GB"
    if against is not None:
        peak += f"; HF {report['sides']['hf']['peak_bytes'] / 1e9:.2f} GB"
    rows.append(_row(f"{preset} peak memory", None, peak))
    losses = ", ".join(f"{name} {value:.6f}" for name, value in report["checksum"].items())
    return [*rows, _row(f"{preset} checksums before the first update", None, losses)]


# ---- a run


def training(steps: int, **sizes: int) -> list[Row]:
    """A run of `balcap train` at its defaults, of so many steps; `sizes` are of `_run_config`."""
    from balcap_jax.training.trainer import train

    with tempfile.TemporaryDirectory() as made:
        run = train(_run_config(Path(made), steps, **sizes))
        logged = read_jsonl(run / "metrics.jsonl")
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    later = logged[1:] or logged  # the first one compiles
    row = {name: _median([one[name] for one in later if name in one]) for name in later[-1]}
    parts = ", ".join(
        f"{name} {row[f'seconds/{name}']:.3f}" for name in ("data", "rollout", "judge", "update")
    )
    beside = f"{parts}; idle {row['device_idle_share']:.0%}"
    if "mfu/step" in row:
        beside += f"; MFU {row['mfu/step']:.1%}, of the update {row['mfu/update']:.1%}"
    if "device_memory_mb" in row:
        beside += f"; {row['device_memory_mb'] / 1e3:.2f} GB"
    before, after = summary["before"]["b_capscore"], summary["after"]["b_capscore"]
    gap = max(one["logprob_gap"] for one in logged)
    return [
        _row(f"a step of the default run, median of {len(later)}", row["seconds/step"], beside),
        _row(
            f"the whole run of {steps} steps",
            summary["seconds"],
            f"{summary['programs']} programs made ready in {summary['compile_seconds']} s; "
            f"b-CapScore {before:.1f} to {after:.1f}; sampler and update differ by {gap:.1e}",
        ),
    ]


def _run_config(
    out: Path, steps: int, *, images: int = 8, heldout: int = 40, tokens: int = 112
) -> TrainConfig:
    devices = jax.device_count()
    return TrainConfig.of(
        {
            "out": str(out),
            "steps": steps,
            "loggers": [],
            "prompts_per_step": -(-images // devices) * devices,  # each has the same share
            "rollout.max_new_tokens": tokens,
            "data": DataConfig(heldout=heldout),
        }
    )


def _median(values: list[Any]) -> float:
    numbers = [v for v in values if isinstance(v, int | float)]
    return statistics.median(numbers) if numbers else float("nan")


def _row(what: str, seconds: float | None, beside: str) -> Row:
    return {"what": what, "seconds": seconds, "beside": beside}


PARTS: dict[str, Callable[..., list[Row]]] = {
    "attention": attention,
    "step": steps,
    "run": training,
    "hf": steps,
}
