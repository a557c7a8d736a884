"""Rotary position embedding (arXiv 2104.09864) and the ways to stretch it to longer contexts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from balcap_jax.errors import UserError
from balcap_jax.models.inputs import AnyArray

PLAIN = ("default", "mrope")  # rope types without scaling
SCALINGS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are scaled; names and defaults as in Hugging Face's config.json.

    Attributes:
      rope_type: "linear" divides all frequencies; "llama3" (arXiv 2407.21783) and "yarn"
        (arXiv 2309.00071) divide the low ones only.
      factor: by how much.
      original_max_position_embeddings: context before the stretch, in tokens; not for "linear".
      low_freq_factor, high_freq_factor: of "llama3": wavelengths above context / low are divided,
        those below context / high are kept.
      beta_fast, beta_slow, attention_factor, truncate: of "yarn": frequencies with more than
        beta_fast turns in the context are kept, those with less than beta_slow are divided;
        attention_factor multiplies queries and keys.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    @classmethod
    def from_hf(cls, rope: Mapping[str, Any], *, context: int) -> "RopeScaling | None":
        """From `rope_parameters` or `rope_scaling`; None where nothing is scaled.

        Args:
          context: max_position_embeddings, the default of original_max_position_embeddings.

        Raises:
          KeyError: an entry is missing.
          UserError: a type of scaling that is not supported.
        """
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind in PLAIN:
            return None
        if kind not in SCALINGS:
            raise UserError(
                f"rope type {kind!r} in config.json is not supported; use a model with "
                f"{', '.join(map(repr, ('default', *SCALINGS)))}."
            )
        if kind == "linear":
            return cls("linear", float(rope["factor"]))
        original = int(rope.get("original_max_position_embeddings") or context)
        if kind == "llama3":
            return cls(
                "llama3",
                float(rope["factor"]),
                original,
                low_freq_factor=float(rope["low_freq_factor"]),
                high_freq_factor=float(rope["high_freq_factor"]),
            )
        factor = float(rope.get("factor") or context / original)
        return cls(
            "yarn",
            factor,
            original,
            beta_fast=float(rope.get("beta_fast") or 32.0),
            beta_slow=float(rope.get("beta_slow") or 1.0),
            attention_factor=_yarn_attention_factor(rope, factor),
            truncate=bool(rope.get("truncate", True)),
        )

    def to_hf(self) -> dict[str, Any]:
        """The entries of `rope_parameters` but for rope_theta."""
        entries: dict[str, Any] = {"rope_type": self.rope_type, "factor": self.factor}
        if self.rope_type == "linear":
            return entries
        entries["original_max_position_embeddings"] = self.original_max_position_embeddings
        names = (
            ("low_freq_factor", "high_freq_factor")
            if self.rope_type == "llama3"
            else ("beta_fast", "beta_slow", "attention_factor", "truncate")
        )
        return entries | {name: getattr(self, name) for name in names}


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """attention_factor as given, or from mscale, or 0.1 ln(factor) + 1 (arXiv 2309.00071, 3.4)."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    return temperature(above) / temperature(below) if above and below else temperature(1.0)


def rotary_frequencies(
    size: int, theta: float, scaling: RopeScaling | None = None
) -> Float[np.ndarray, " half"]:
    """theta ** (-2 i / size) for i in [0, size / 2), scaled; float32 as in Hugging Face."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling is None:
        return frequencies
    divided = frequencies / np.float32(scaling.factor)
    if scaling.rope_type == "linear":
        return divided
    kept = _llama3_kept(frequencies, scaling)
    if scaling.rope_type == "yarn":
        kept = _yarn_kept(size, theta, scaling)
    return (divided * (1 - kept) + frequencies * kept).astype(np.float32)


def _llama3_kept(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """How much of each frequency is kept, by the number of its turns in the original context."""
    turns = scaling.original_max_position_embeddings * frequencies / np.float32(2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((turns - low) / (high - low), 0.0, 1.0).astype(np.float32)


def _yarn_kept(size: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """How much of each frequency is kept: a ramp over the index, from beta_fast to beta_slow."""

    def index_with(turns: float) -> float:
        context = scaling.original_max_position_embeddings
        return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index_with(scaling.beta_fast), index_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    width = last - first if last != first else 0.001
    ramp = (np.arange(size // 2, dtype=np.float32) - np.float32(first)) / np.float32(width)
    return 1 - np.clip(ramp, 0.0, 1.0).astype(np.float32)


def axis_angles(
    positions: Int[AnyArray, "b axes t"],
    *,
    section: tuple[int, ...],
    frequencies: Float[np.ndarray, " half"],
) -> Float[Array, "b t half"]:
    """Rotary angles of M-RoPE: frequency i turns with the axis (temporal, height, width) whose
    section it is in (Qwen2-VL, arXiv 2409.12191, section 2.1). One section is plain RoPE.
    """
    axis = np.repeat(np.arange(len(section)), section)
    chosen = jnp.asarray(positions)[:, axis].swapaxes(1, 2).astype(jnp.float32)
    return chosen * frequencies[None, None]


def text_angles(
    positions: Int[AnyArray, "*b t"], *, frequencies: Float[np.ndarray, " half"]
) -> Float[Array, "*b t half"]:
    """Rotary angles where all axes have one position, which is plain RoPE."""
    frequencies = frequencies.reshape((1,) * positions.ndim + (-1,))
    return jnp.asarray(positions)[..., None].astype(jnp.float32) * frequencies


def rotate(
    x: Float[Array, "*b t n h"], angles: Float[Array, "*#b t half"]
) -> Float[Array, "*b t n h"]:
    """Rotary embedding in float32: the pair (x_i, x_{i + h/2}) turned by the i-th of `angles`."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rotate_by_matmul(
    x: Float[Array, "*b t n h"], angles: Float[Array, "*#b t half"]
) -> Float[Array, "*b t n h"]:
    """`rotate` for CPUs: the other one of each pair, with its sign, comes from a matmul.

    XLA's loops on CPUs ask at every number which half it lies in, forwards and backwards, and are
    no vector loops; a matmul of one entry per column costs a quarter of that, and is as exact.
    """
    half = x.shape[-1] // 2
    one = np.eye(half, dtype=np.float32)
    none = np.zeros_like(one)
    partner = np.block([[none, one], [-one, none]])  # (a, b) -> (-b, a)
    cos, sin = (
        jnp.concatenate([function(angles)] * 2, axis=-1)[..., None, :]
        for function in (jnp.cos, jnp.sin)
    )
    wide = x.astype(jnp.float32)
    turned = jnp.matmul(wide, partner, precision=jax.lax.Precision.HIGHEST)
    return (wide * cos + turned * sin).astype(x.dtype)
