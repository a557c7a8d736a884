"""Means of benchmarks as functions of images, and how far they vary with the choice of images."""

import warnings
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import stats

from balcap_jax.rewards.capscore import harmonic_mean

RESAMPLES = 9999
CONFIDENCE = 0.95
_LEAST_IMAGES = 2  # of one image nothing varies
_BATCH = 500  # resamples at once, for the memory


class Interval(NamedTuple):
    """Both ends; NaN where there are too few images to tell."""

    low: float
    high: float


class Measure(NamedTuple):
    """A number that a benchmark makes of its images: ratios of sums over images, combined.

    Attributes:
      totals: what each image adds to each ratio's upper sum; NaN is not allowed.
      weights: what each adds to its lower sum.
      fixed: lower sums that do not depend on what came of the images, in place of `weights`.
      combine: how the ratios become one number.
      scale: of the result.
    """

    totals: Float[np.ndarray, "n p"]
    weights: Num[np.ndarray, "n p"]
    fixed: tuple[float, ...] | None = None
    combine: Literal["mean", "harmonic"] = "mean"
    scale: float = 100.0

    def of(self, images: Int[np.ndarray, "... m"]) -> Float[np.ndarray, "..."]:
        """The number for a choice of images, by their places; NaN where a ratio has no images."""
        upper = self.totals[images].sum(axis=-2)
        if self.fixed is None:
            lower = self.weights[images].sum(axis=-2)
        else:
            lower = np.broadcast_to(np.array(self.fixed), upper.shape)
        ratios = np.where(lower > 0, upper / np.where(lower > 0, lower, 1.0), np.nan)
        if self.combine == "harmonic":
            return self.scale * harmonic_mean(np.moveaxis(ratios, -1, 0))
        return self.scale * ratios.mean(axis=-1)

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.totals)

    @property
    def value(self) -> float:
        """The number for all images."""
        return float(self.of(np.arange(self.images))) if self.images else float("nan")


def interval(measure: Measure, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Bootstrap 95 % interval over images (percentiles)."""
    return _bootstrap(measure.of, measure.images, seed=seed, resamples=resamples)


def paired_interval(
    one: Measure, other: Measure, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Bootstrap 95 % interval of `other` - `one`, of the same images in the same order."""
    assert one.images == other.images
    return _bootstrap(
        lambda images: other.of(images) - one.of(images),
        one.images,
        seed=seed,
        resamples=resamples,
    )


def _bootstrap(statistic, images: int, *, seed: int, resamples: int) -> Interval:
    if images < _LEAST_IMAGES:
        return Interval(float("nan"), float("nan"))
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        # Where all images have the same value.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(images),),
            lambda sample, axis=-1: statistic(np.moveaxis(sample, axis, -1).astype(np.int64)),
            n_resamples=resamples,
            confidence_level=CONFIDENCE,
            method="percentile",
            vectorized=True,
            batch=_BATCH,
            rng=np.random.default_rng(seed),
        )
    # Choices in which a ratio has no image say nothing.
    drawn = found.bootstrap_distribution
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return Interval(float("nan"), float("nan"))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return Interval(float(low), float(high))
