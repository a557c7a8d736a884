"""What training carries from step to step, the optimizer, and the step that skips bad gradients."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.errors import UserError
from balcap_jax.models.selection import leaf_paths, overlaid, part_of, selects
from balcap_jax.parallel.sharding import param_shardings, path_name, replicate

SCHEDULES = ("constant", "linear", "cosine")


class TrainState(NamedTuple):
    """Everything a step changes; all arrays, so that it can be donated, sharded and saved.

    Attributes:
      step: updates tried, skipped ones included.
      params: all parameters of the policy, frozen ones included.
      opt_state: state of the optimizer, for the trainable parameters only.
      skipped: updates skipped because a gradient was not finite or no caption had a signal.
    """

    step: Int[Array, ""]
    params: dict
    opt_state: Any
    skipped: Int[Array, ""]


def make_schedule(
    *, learning_rate: float, warmup_steps: int = 0, total_steps: int = 0, schedule: str = "constant"
) -> optax.Schedule:
    """The learning rate as a function of the number of updates applied.

    Linear warmup to `learning_rate` in `warmup_steps`, then constant, or down to 0 at
    `total_steps` in a line or half a cosine. The first update of a warmup is not lost: its rate is
    learning_rate / warmup_steps, not 0.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule={schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}.")
    if schedule != "constant" and total_steps <= warmup_steps:
        raise UserError(
            f"total_steps={total_steps} leaves nothing after warmup_steps={warmup_steps} for the "
            f"{schedule} schedule; make it larger, or use the constant schedule."
        )
    decay_steps = total_steps - warmup_steps
    if schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    elif schedule == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps)
    else:
        after = optax.cosine_decay_schedule(learning_rate, decay_steps)
    if warmup_steps <= 1:
        return after
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    return optax.join_schedules([warmup, after], [warmup_steps])


# Last names of a path; "lambda1" is the layer scale of DINOv2.
NOT_DECAYED = ("scale", "bias", "lambda1")


def decays(params: dict) -> dict:
    """True where weight decay applies: everywhere but norms, biases and layer scales.

    By name, since stacked layers make a bias look like a matrix.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).rsplit("/", 1)[-1] not in NOT_DECAYED, params
    )


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    total_steps: int = 0,
    schedule: str = "constant",
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    max_grad_norm: float = 1.0,
    rates: Sequence[tuple[Sequence[str], float]] = (),
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) after clipping by global norm, on a schedule.

    Args:
      rates: (patterns of paths, peak learning rate) for parts that have one of their own; the first
        that matches counts. The schedule is the same for all.
    """
    rate = make_schedule(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        schedule=schedule,
    )
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays),
        *_own_rates(rates, learning_rate),
    )


def _own_rates(
    rates: Sequence[tuple[Sequence[str], float]], learning_rate: float
) -> list[optax.GradientTransformation]:
    """Steps at `learning_rate` brought to the rate of their part."""
    if not rates:
        return []

    def scaled(path: tuple, step: Array) -> Array:
        name = path_name(path)
        own = next((rate for patterns, rate in rates if selects(patterns, name)), learning_rate)
        return step * (own / learning_rate)

    return [
        optax.stateless(lambda steps, _: jax.tree_util.tree_map_with_path(scaled, steps)),
    ]


def split_trainable(params: dict, *, trained: Sequence[str]) -> tuple[dict, dict]:
    """(trainable, frozen) parameters, whose `overlaid` are `params` again.

    Args:
      trained: patterns of paths; see `selects`.
    """
    return (
        part_of(params, lambda path: selects(trained, path)),
        part_of(params, lambda path: not selects(trained, path)),
    )


def _new_state(
    params: dict, optimizer: optax.GradientTransformation, *, trained: Sequence[str]
) -> TrainState:
    trainable, _ = split_trainable(params, trained=trained)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(step=zero, params=params, opt_state=optimizer.init(trainable), skipped=zero)


def state_shapes(
    params: Any, optimizer: optax.GradientTransformation, *, trained: Sequence[str]
) -> TrainState:
    """Shape and dtype of each array of the state; `params` may be `jax.eval_shape` results."""
    return jax.eval_shape(lambda params: _new_state(params, optimizer, trained=trained), params)


def state_shardings(
    mesh: Mesh,
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    trained: Sequence[str],
) -> TrainState:
    """The sharding of each array of the state; `params` may be `jax.eval_shape` results."""
    return param_shardings(mesh, state_shapes(params, optimizer, trained=trained))


def init_state(
    mesh: Mesh,
    params: dict,
    optimizer: optax.GradientTransformation,
    *,
    trained: Sequence[str],
    keep: bool = True,
) -> TrainState:
    """A state at step 0 on the mesh. `params` may be host arrays.

    Args:
      keep: the caller goes on using `params`, so that the state gets a copy. False: they are the
        state's from here on, and what already lies as it should stays where it is.
    """
    shardings = state_shardings(mesh, params, optimizer, trained=trained)

    def own(x, sharding):
        if not keep:
            return jax.device_put(x, sharding)
        # The update donates its state, and the caller may keep `params` as the frozen reference.
        # may_alias=False to the new place is not enough: of a replicated array the shard on the old
        # device aliases. To where it lies it is a copy, without a program for each shape.
        if isinstance(x, jax.Array):
            here = x.is_fully_addressable
            x = jax.device_put(x, x.sharding, may_alias=False) if here else jnp.copy(x)
        return jax.device_put(x, sharding, may_alias=False)

    params = jax.tree.map(own, params, shardings.params)
    trainable, _ = split_trainable(params, trained=trained)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(trainable)
    step, skipped = replicate(mesh, jnp.int32(0)), replicate(mesh, jnp.int32(0))
    return TrainState(step=step, params=params, opt_state=opt_state, skipped=skipped)


def apply_gradients(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: dict,
    *,
    has_signal: Bool[Array, ""] | bool = True,
) -> tuple[TrainState, Float[Array, ""]]:
    """One optimizer step, and the norm of the gradients before clipping.

    Gradients that are not finite change nothing but the counts: one inf would stay in the moments
    of Adam for good. Nor do gradients of nothing, with which the moments and the weight decay would
    move the parameters all the same.

    Args:
      gradients: of the trainable parameters; the paths in it say which those are.
      has_signal: there was something to learn from, be its gradient 0 or not.
    """
    norm = optax.tree.norm(gradients)
    good = jnp.isfinite(norm) & has_signal
    learning = set(leaf_paths(gradients))
    trainable = part_of(state.params, lambda path: path in learning)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    stepped = optax.apply_updates(trainable, updates)

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    return TrainState(
        step=state.step + 1,
        params=overlaid(state.params, keep(stepped, trainable)),
        opt_state=keep(opt_state, state.opt_state),
        skipped=state.skipped + jnp.where(good, 0, 1),
    ), norm
