"""The update of the policy: clipped objective over micro-batches and one optimizer step, jitted."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.errors import UserError
from balcap_jax.models.inputs import Prompts
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import batch_shards, constrain_batch, param_shardings
from balcap_jax.rl.losses import mean_of, policy_loss
from balcap_jax.rl.train_state import TrainState, apply_gradients, split_trainable


class Batch(NamedTuple):
    """What the update reads: a rollout with its advantages.

    Attributes:
      prompts: the images and their prompts.
      tokens: the completions, stop token included.
      mask: True where a token was sampled.
      old_logprobs: logprobs by the sampler, of the policy that sampled.
      advantages: one per caption.
      valid: the caption has a signal; without one it has no weight, neither in loss nor in count.
      features: encoded images where the vision tower is frozen; None: encode them here.
      reference_logprobs: of the frozen reference policy, where the KL term is on.
    """

    prompts: Prompts
    tokens: Int[Array, "b g c"]
    mask: Bool[Array, "b g c"]
    old_logprobs: Float[Array, "b g c"]
    advantages: Float[Array, "b g"]
    valid: Bool[Array, "b g"]
    features: Float[Array, "b m d"] | None = None
    reference_logprobs: Float[Array, "b g c"] | None = None


def split_micro_batches(tree: Any, count: int) -> Any:
    """[b ...] -> [count, b / count, ...] for a scan; micro-batch i holds prompts i, i + count, ...

    Strided, so that each device finds its share of every micro-batch among its own prompts.
    """

    def split(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return constrain_batch(jax.tree.map(split, tree), axis=1)


def join_micro_batches(tree: Any) -> Any:
    """The inverse of `split_micro_batches`."""

    def join(x):
        return jnp.swapaxes(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    return constrain_batch(jax.tree.map(join, tree))


def make_update(
    policy: VisionLanguagePolicy,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    loss_normaliser: str = "dapo",
    kl_coef: float = 0.0,
    temperature: float = 1.0,
    banned_tokens: tuple[int, ...] = (),
    micro_batches: int = 1,
    train_vision: bool = False,
    chunk: int = 32,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The step `update(state, batch) -> (state, metrics)`, compiled, its state donated.

    Gradients and counts are summed over micro-batches and devices and divided once, so the split
    does not change the result. A step whose gradients are not finite leaves parameters and
    optimizer as they were and is counted. Several updates on one rollout are several calls with the
    same `old_logprobs`.

    Args:
      temperature, banned_tokens: as in the sampler.
      micro_batches: parts of the B prompts that are run one after the other.
      train_vision: the images are encoded here, with gradient, and `Batch.features` is not read.
      chunk: see `token_logprobs`.

    Returns:
      `update`. Its metrics are scalars on the device, means over the tokens with a signal: loss,
      clip_low, clip_high (shares), entropy, kl (to the reference, 0 without), drift (KL to the
      policy that sampled), ratio_mean, ratio_max, logprob_gap (mean |new - old|: on the first
      update of a rollout, the gap between sampler and trainer); and tokens, grad_norm (before
      clipping), skipped (so far).

    Raises:
      UserError: on the first call, when the batch cannot be split as asked.
    """

    def micro_loss(trainable: dict, frozen: dict, batch: Batch):
        params = {**trainable, **frozen}
        features = batch.features
        if features is None:
            features = policy.encode_images(params, batch.prompts.images)
        logprobs, entropy = completion_logprobs(
            policy,
            params,
            batch.prompts,
            features,
            batch.tokens,
            temperature=temperature,
            banned_tokens=banned_tokens,
            chunk=chunk,
        )
        loss = policy_loss(
            logprobs,
            batch.old_logprobs,
            batch.advantages,
            batch.mask,
            clip_low=clip_low,
            clip_high=clip_high,
            normaliser=loss_normaliser,
            max_length=batch.tokens.shape[-1],
            valid=batch.valid,
            reference_logprobs=batch.reference_logprobs,
            kl_coefficient=kl_coef,
        )
        live = batch.mask & batch.valid[..., None]
        log_ratio = jnp.where(live, jax.lax.stop_gradient(logprobs) - batch.old_logprobs, 0.0)
        ratio = jnp.where(live, jnp.exp(log_ratio), 0.0)
        sums = {
            "entropy": jnp.sum(jnp.where(live, entropy, 0.0)),
            "ratio": jnp.sum(ratio),
            "logprob_gap": jnp.sum(jnp.abs(log_ratio)),
        }
        return loss.total, (loss, sums, jnp.max(ratio))

    def update(state: TrainState, batch: Batch):
        check_split(batch.tokens.shape[0], micro_batches, mesh)
        trainable, frozen = split_trainable(
            state.params, frozen=() if train_vision else policy.vision_paths
        )
        if train_vision:
            batch = batch._replace(features=None)

        def accumulate(gradients, micro: Batch):
            new, aux = jax.grad(micro_loss, has_aux=True)(trainable, frozen, micro)
            # float32 also where the parameters are not: bfloat16 would swallow the later addends
            gradients = jax.tree.map(lambda g, n: g + n.astype(g.dtype), gradients, new)
            return gradients, aux

        gradients = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trainable)
        gradients = _like_parameters(mesh, gradients)
        gradients, (loss, sums, ratio_max) = jax.lax.scan(
            accumulate, gradients, split_micro_batches(batch, micro_batches)
        )
        loss, sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), (loss, sums))
        share = mean_of(jnp.ones(()), loss.count)  # 0 where no caption had a signal
        gradients = jax.tree.map(lambda g: g * share, gradients)
        state, grad_norm = apply_gradients(state, optimizer, gradients)
        metrics = {
            "loss": mean_of(loss.total, loss.count),
            "clip_low": mean_of(loss.clipped_low, loss.tokens),
            "clip_high": mean_of(loss.clipped_high, loss.tokens),
            "entropy": mean_of(sums["entropy"], loss.tokens),
            "kl": mean_of(loss.kl, loss.tokens),
            "drift": mean_of(loss.drift, loss.tokens),
            "ratio_mean": mean_of(sums["ratio"], loss.tokens),
            "ratio_max": jnp.max(ratio_max),
            "logprob_gap": mean_of(sums["logprob_gap"], loss.tokens),
            "tokens": loss.tokens,
            "grad_norm": grad_norm,
            "skipped": state.skipped,
        }
        # Out as it came in, or the next call would compile again.
        return _like_parameters(mesh, state), metrics

    return _on_mesh(mesh, jax.jit(update, donate_argnums=0))


def make_reference_logprobs(
    policy: VisionLanguagePolicy,
    mesh: Mesh,
    *,
    temperature: float = 1.0,
    banned_tokens: tuple[int, ...] = (),
    micro_batches: int = 1,
    chunk: int = 32,
) -> Callable[[dict, Batch], Float[Array, "b g c"]]:
    """`reference(params, batch)`: the logprobs for `Batch.reference_logprobs`, compiled.

    Images are encoded with the reference's own tower where `Batch.features` is None. Only needed
    where the KL term is on.
    """

    def reference(params: dict, batch: Batch):
        check_split(batch.tokens.shape[0], micro_batches, mesh)

        def micro_reference(micro: Batch):
            features = micro.features
            if features is None:
                features = policy.encode_images(params, micro.prompts.images)
            logprobs, _ = completion_logprobs(
                policy,
                params,
                micro.prompts,
                features,
                micro.tokens,
                temperature=temperature,
                banned_tokens=banned_tokens,
                chunk=chunk,
            )
            return logprobs

        parts = split_micro_batches(batch, micro_batches)
        return join_micro_batches(jax.lax.map(micro_reference, parts))

    return _on_mesh(mesh, jax.jit(reference))


def _on_mesh(mesh: Mesh, function: Callable) -> Callable:
    @wraps(function)  # `__wrapped__` is the jitted function: to trace or to compile, on the mesh
    def call(*args):
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def _like_parameters(mesh: Mesh, tree: Any) -> Any:
    return jax.lax.with_sharding_constraint(tree, param_shardings(mesh, tree))


def check_split(prompts: int, micro_batches: int, mesh: Mesh) -> None:
    """Raises a UserError where the prompts of a step cannot be split as asked."""
    shards = batch_shards(mesh)
    if prompts % (micro_batches * shards):
        raise UserError(
            f"{prompts} prompts cannot be split into {micro_batches} micro-batches over {shards} "
            f"data shards; make their number a multiple of {micro_batches * shards}."
        )
