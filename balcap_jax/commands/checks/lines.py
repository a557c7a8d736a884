"""Lines of a check: what was compared, how far apart it is, and how far apart it may be.

The bounds are in docs/first_real_run.md with the reasons for them.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from balcap_jax.models.json_files import reason_of

Status = Literal["pass", "fail", "skipped"]


class Bounds(NamedTuple):
    """How far our numbers may be from those of transformers in float32.

    Attributes:
      logits: largest difference as a share of the range of the logits; two tokens nearer than this
        are a tie, of which either may be the likelier one.
      logprobs: mean difference, in nats, between two ways to the same logprobs of a caption.
      loss: absolute difference of the loss, whose ratios and advantages are about 1.
      gradient: relative difference of the gradient's norm.
    """

    logits: float
    logprobs: float
    loss: float
    gradient: float


BOUNDS = {
    "float32": Bounds(logits=1e-4, logprobs=1e-3, loss=1e-3, gradient=1e-3),
    "bfloat16": Bounds(logits=5e-2, logprobs=1e-1, loss=1e-1, gradient=2e-1),
}


class Line(NamedTuple):
    """One thing that was checked.

    Attributes:
      name: what.
      status: how it went.
      figure: the numbers, for everybody's eyes: no paths, no addresses.
      detail: more for the user's own terminal, the reason of a failure or of skipping.
      seconds: that it took; 0 where nothing ran.
    """

    name: str
    status: Status
    figure: str = ""
    detail: str = ""
    seconds: float = 0.0


class SkipLine(Exception):  # noqa: N818 - it is none
    """A line cannot be checked here; the text says why."""


def line(name: str, compare: Callable[[], tuple[bool, str]]) -> Line:
    """The line of `compare`, which returns whether it is well and the figures, and may raise.

    What it raises is a failure of that line alone: the others are to be seen as well.
    """
    start = perf_counter()
    try:
        well, figure = compare()
    except SkipLine as reason:
        return Line(name, "skipped", detail=str(reason))
    except Exception as error:  # noqa: BLE001 - torch, XLA and drivers raise anything
        kind = type(error).__name__
        return Line(
            name, "fail", kind, f"{kind}: {reason_of(error)}", seconds=perf_counter() - start
        )
    return Line(name, "pass" if well else "fail", figure, seconds=perf_counter() - start)


def compare_logits(
    ours: Float[np.ndarray, "t v"], theirs: Float[np.ndarray, "t v"], *, bound: float
) -> tuple[bool, str]:
    """Largest difference over all positions and words, as a share of the range."""
    error = _share(np.abs(ours - theirs).max(), theirs)
    same = float((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean())
    return error <= bound, f"{error:.1e} of their range (at most {bound:.0e}), same top {same:.1%}"


def compare_tokens(
    ours: Int[np.ndarray, " n"],
    theirs: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, "n v"],
    *,
    bound: float,
) -> tuple[bool, str]:
    """Equal, or up to a token at which their own logits are a tie within `bound`.

    After the first difference the two write different texts, so that nothing is compared there.

    Args:
      scores: their logits at each of their tokens; -inf where a token is never sampled.
    """
    differ = np.flatnonzero(ours != theirs)
    if len(differ) == 0:
        return True, f"all {len(ours)} equal"
    at = int(differ[0])
    finite = scores[at][np.isfinite(scores[at])]
    gap = _share(scores[at, theirs[at]] - scores[at, ours[at]], finite)
    return bool(gap <= bound), f"{at} of {len(ours)} equal, then {gap:.1e} apart (tie: {bound:.0e})"


def compare_number(
    ours: float, theirs: float, *, bound: float, relative: bool = False
) -> tuple[bool, str]:
    """The difference of two numbers; NaN is never within the bound."""
    error = abs(ours - theirs)
    if relative:
        error /= max(abs(theirs), 1e-30)
    kind = "relative" if relative else "absolute"
    return bool(error <= bound), f"{ours:.6g} and {theirs:.6g}: {error:.1e} {kind} ({bound:.0e})"


def compare_logprobs(
    ours: Float[np.ndarray, "*n"], plain: Float[np.ndarray, "*n"], *, bound: float
) -> tuple[bool, str]:
    """Mean difference of the logprobs of tokens, in nats."""
    error = float(np.abs(ours - plain).mean())
    return error <= bound, f"{error:.1e} nats per token (at most {bound:.0e})"


def _share(value: float, of: np.ndarray) -> float:
    return float(value / max(float(of.max() - of.min()), 1e-30))
