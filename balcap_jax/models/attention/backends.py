"""Which attention a policy computes with: plain XLA, cuDNN (NVIDIA) or splash attention (TPU).

All give the same results within rounding. Decoding is plain XLA always: one query per caption is
bound by the memory that keys and values are read from, whatever the kernel.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from balcap_jax.errors import UserError
from balcap_jax.models.attention import cudnn as cudnn_attention
from balcap_jax.models.attention import plain
from balcap_jax.models.attention.packed import attend_tiles, through_slots
from balcap_jax.models.decoder.rotary import rotate, rotate_by_matmul

NAMES = ("auto", "xla", "cudnn", "splash")

HALF = ("bfloat16", "float16")


class Attention(NamedTuple):
    """The attentions of one backend; arguments as of the functions in `attention`.

    Attributes:
      causal: `attend_causal` of prompts, which are padded on the right.
      group: `attend_group`.
      packed: the same of packed tokens, which `packing.Packing` says the places of.
      segments: `attend_segments` of ids that count up from 0, padded on the right.
      rows: `attend_rows`.
      rotate: `rotary.rotate`, of the decoder's queries and keys.
      by_layer: a few layers are compiled one after the other, where a loop over them would cost
        more than it saves.
    """

    causal: Callable
    group: Callable
    packed: Callable
    segments: Callable
    rows: Callable
    rotate: Callable = rotate
    by_layer: bool = False


def xla() -> Attention:
    """Runs everywhere, and is what the others are compared with."""
    return _of(plain)._replace(packed=attend_tiles)


def cpu() -> Attention:
    """`xla`, as XLA's compiler for CPUs makes the best of it."""
    return xla()._replace(
        packed=partial(attend_tiles, attend=plain.attend_by_columns),
        rotate=rotate_by_matmul,
        by_layer=True,
    )


def cudnn(*, implementation: str = cudnn_attention.CUDNN) -> Attention:
    """For NVIDIA GPUs from Ampere on, in bfloat16 or float16."""
    return _of(cudnn_attention, implementation=implementation)


def splash(*, interpret: bool = False) -> Attention:
    """For TPUs; `interpret`: for tests on any machine."""
    # Pallas takes long to import, and only TPUs need it.
    from balcap_jax.models.attention import splash as splash_attention  # noqa: PLC0415

    return _of(splash_attention, interpret=interpret)


def _of(module: ModuleType, **options: Any) -> Attention:
    """The functions of a module, with these options."""

    def function(kind: str) -> Callable:
        plain = getattr(module, f"attend_{kind}")
        return partial(plain, **options) if options else plain

    group = function("group")
    return Attention(
        causal=function("causal"),
        group=group,
        packed=through_slots(group),
        segments=function("segments"),
        rows=function("rows"),
    )


def choose(
    name: str,
    *,
    dtype: DTypeLike,
    head_dims: Sequence[int],
    device: jax.Device | None = None,
) -> Attention:
    """The backend of this name; "auto" takes the one that is made for the device, if it can.

    Args:
      dtype: of queries, keys and values.
      head_dims: every head size of the policy.
      device: that programs will run on; JAX's first by default.

    Raises:
      UserError: no such name, or the backend that it names cannot compute this.
    """
    if name not in NAMES:
        raise UserError(f"attention={name!r} must be one of {', '.join(NAMES)}; choose one.")
    device = jax.devices()[0] if device is None else device
    unfit = {
        "cudnn": _unfit_for_cudnn(device, dtype, head_dims),
        "splash": "" if device.platform == "tpu" else f"runs on TPUs and not on {_kind(device)}",
    }
    if name == "auto":
        name = next((known for known, reason in unfit.items() if not reason), "xla")
    elif unfit.get(name):
        raise UserError(
            f"attention={name!r} {unfit[name]}; set it to 'auto', which takes what fits."
        )
    if name == "xla" and device.platform == "cpu":
        return cpu()
    return {"xla": xla, "cudnn": cudnn, "splash": splash}[name]()


def _unfit_for_cudnn(device: jax.Device, dtype: DTypeLike, head_dims: Sequence[int]) -> str:
    """Why cuDNN's fused attention cannot compute this; empty if it can."""
    capability = float(getattr(device, "compute_capability", None) or 0)
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return f"runs on NVIDIA GPUs and not on {_kind(device)}"
    if capability < 8:
        return f"runs on GPUs of compute capability 8.0 or more and not on {_kind(device)}"
    if jnp.dtype(dtype).name not in HALF:
        return f"computes in {' or '.join(HALF)} and not in {jnp.dtype(dtype).name}"
    largest = 256 if capability >= 9 else 128
    for size in head_dims:
        if size % 8 or size > largest:
            return f"takes head sizes that are multiples of 8 up to {largest} and not {size}"
    return ""


def _kind(device: jax.Device) -> str:
    return f"{device.platform} ({device.device_kind})"
