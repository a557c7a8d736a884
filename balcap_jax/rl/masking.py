"""Length control: what the length of a caption does to its rewards, before any normalisation.

The ratio is `rho = length(caption) / length(reference)`, in whatever unit both lengths share.
All functions are pure and shaped `rewards [B, G, K]`, `lengths [B, G]`, `reference_lengths [B]`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from balcap_jax.errors import UserError

AnyArray = Array | np.ndarray
Number = float | int
MODES = ("zero", "drop")
CONTROLS = (*MODES, "linear", "none")


def length_ratio(
    lengths: Num[AnyArray, "b g"], reference_lengths: Num[AnyArray, " b"]
) -> Float[Array, "b g"]:
    """rho, float32. An empty reference counts as one unit, so that rho stays finite."""
    reference = jnp.maximum(jnp.asarray(reference_lengths, jnp.float32), 1.0)
    return jnp.asarray(lengths, jnp.float32) / reference[:, None]


def out_of_range(
    lengths: Num[AnyArray, "b g"],
    reference_lengths: Num[AnyArray, " b"],
    *,
    lower: Number = 0.5,
    upper: Number = 2.0,
) -> Bool[Array, "b g"]:
    """True where rho is below `lower` or above `upper`; the bounds themselves are in range.

    Raises:
      UserError: `lower >= upper`.
    """
    if not lower < upper:
        raise UserError(
            f"lower={lower} must be below upper={upper}; the published values are 0.5 and 2."
        )
    rho = length_ratio(lengths, reference_lengths)
    return (rho < lower) | (rho > upper)


@partial(jax.jit, static_argnames=("reward_index", "lower", "upper", "mode"))
def mask_by_length(
    rewards: Float[AnyArray, "b g k"],
    lengths: Num[AnyArray, "b g"],
    reference_lengths: Num[AnyArray, " b"],
    *,
    reward_index: int,
    lower: Number = 0.5,
    upper: Number = 2.0,
    mode: str = "zero",
) -> Float[Array, "b g k"]:
    """Length-conditional masking of one reward (arXiv:2605.07394): kept where rho is in range.

    The two modes are two algorithms. "zero" (the paper) scores an out-of-range caption 0: it
    falls below its group, so the mask itself is a length penalty. "drop" makes it no signal (NaN):
    the caption's length is neither punished nor rewarded, and its group is compared without it.

    A reward that is already NaN stays NaN in both modes: a caption that the judge could not score
    has no signal, whatever its length.

    Args:
      rewards: NaN = no signal.
      lengths: of the captions, same unit as `reference_lengths`.
      reward_index: which of the K rewards; the others pass unchanged.
      lower, upper: the range of rho that keeps the reward, bounds included.
      mode: "zero" or "drop".

    Returns:
      float32.

    Raises:
      UserError: `lower >= upper`, an unknown mode, or no such reward.
    """
    if mode not in MODES:
        raise UserError(f"mode={mode!r} is unknown; set it to 'zero' or 'drop'.")
    outside = out_of_range(lengths, reference_lengths, lower=lower, upper=upper)
    reward = _reward(rewards, reward_index)
    if mode == "zero":
        masked = jnp.where(outside & ~jnp.isnan(reward), 0.0, reward)
    else:
        masked = jnp.where(outside, jnp.nan, reward)
    return jnp.asarray(rewards, jnp.float32).at[..., reward_index].set(masked)


@partial(jax.jit, static_argnames=("reward_index", "coefficient"))
def linear_length_penalty(
    rewards: Float[AnyArray, "b g k"],
    lengths: Num[AnyArray, "b g"],
    reference_lengths: Num[AnyArray, " b"],
    *,
    reward_index: int,
    coefficient: Number = 0.5,
) -> Float[Array, "b g k"]:
    """One reward minus `coefficient * |rho - 1|`: the baseline of the paper's ablation.

    The paper gives no formula. Two-sided, like the mask it is compared with (a penalty on long
    captions alone rewards ever shorter ones), and on the same reward, so that the number of
    rewards and their weights stay equal across the ablation. With the default, a caption at the
    mask's upper bound of 2 loses half of the reward's range. NaN stays NaN.

    Raises:
      UserError: a negative coefficient, or no such reward.
    """
    if not coefficient >= 0.0:
        raise UserError(f"coefficient={coefficient} must be >= 0; set it to 0 for no penalty.")
    distance = jnp.abs(length_ratio(lengths, reference_lengths) - 1.0)
    penalised = _reward(rewards, reward_index) - coefficient * distance
    return jnp.asarray(rewards, jnp.float32).at[..., reward_index].set(penalised)


def control_length(
    control: str,
    rewards: Float[AnyArray, "b g k"],
    lengths: Num[AnyArray, "b g"],
    reference_lengths: Num[AnyArray, " b"],
    *,
    reward_index: int,
    lower: Number = 0.5,
    upper: Number = 2.0,
    coefficient: Number = 0.5,
) -> Float[Array, "b g k"]:
    """The length control of a run by its name: a mask mode, "linear", or "none".

    Raises:
      UserError: an unknown name, or as the functions above.
    """
    if control not in CONTROLS:
        known = ", ".join(CONTROLS)
        raise UserError(f"length control {control!r} is unknown; set it to one of {known}.")
    if control == "none":
        return jnp.asarray(rewards, jnp.float32)
    if control == "linear":
        return linear_length_penalty(
            rewards, lengths, reference_lengths, reward_index=reward_index, coefficient=coefficient
        )
    return mask_by_length(
        rewards,
        lengths,
        reference_lengths,
        reward_index=reward_index,
        lower=lower,
        upper=upper,
        mode=control,
    )


def _reward(rewards, index: int) -> Float[Array, "b g"]:
    count = rewards.shape[-1]
    if not 0 <= index < count:
        raise UserError(f"reward_index={index} must be from 0 to {count - 1}; there are {count}.")
    return jnp.asarray(rewards, jnp.float32)[..., index]
