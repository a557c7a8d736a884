"""The update of the policy: clipped objective over micro-batches and one optimizer step, jitted."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from balcap_jax.errors import UserError
from balcap_jax.models.decoder.lora import with_dropout_keys
from balcap_jax.models.inputs import Prompts
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.packing import Packing, Room
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.selection import overlaid, selects, trains_vision
from balcap_jax.parallel.compiled import on_mesh
from balcap_jax.parallel.sharding import (
    batch_shards,
    constrain_batch,
    gather_for_update,
    param_shardings,
)
from balcap_jax.rl.balance import Parts
from balcap_jax.rl.losses import PolicyLoss, mean_of, policy_loss
from balcap_jax.rl.train_state import TrainState, apply_gradients, split_trainable

T = TypeVar("T")  # a batch
U = TypeVar("U")  # totals of it


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
      start_logprobs: of the policy before the first of several updates on these captions, where
        importance weights are on.
    """

    prompts: Prompts
    tokens: Int[Array, "b g c"]
    mask: Bool[Array, "b g c"]
    old_logprobs: Float[Array, "b g c"]
    advantages: Float[Array, "b g"]
    valid: Bool[Array, "b g"]
    features: Float[Array, "b m d"] | None = None
    reference_logprobs: Float[Array, "b g c"] | None = None
    start_logprobs: Float[Array, "b g c"] | None = None


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


@dataclass(frozen=True)
class Scorer:
    """Logprobs of a batch's completions, for the update and for the reference policy alike.

    Attributes:
      temperature, banned_tokens: as in the sampler.
      chunk, frozen_head: see `token_logprobs`.
      room: of each row of packed tokens; None: all slots are computed, padding too.
      rows: in how many parts the mesh splits a batch.
    """

    policy: VisionLanguagePolicy
    temperature: float = 1.0
    banned_tokens: tuple[int, ...] = ()
    chunk: int = 32
    frozen_head: bool = False
    room: Room | None = None
    rows: int = 1

    def __call__(
        self, params: dict, batch: Batch
    ) -> tuple[Float[Array, "b g c"], Float[Array, "b g c"]]:
        """Logprobs and entropies; the images are encoded where `batch.features` is None. Tokens
        that are masked, or of a caption without signal, have numbers without meaning.
        """
        features = batch.features
        if features is None:
            features = self.policy.encode_images(params, batch.prompts.images)
        packing = None
        if self.room is not None:
            live = batch.mask & batch.valid[..., None]
            packing = Packing.of(self.room, batch.prompts.mask, live, rows=self.rows)
        return completion_logprobs(
            self.policy,
            params,
            batch.prompts,
            features,
            batch.tokens,
            temperature=self.temperature,
            banned_tokens=self.banned_tokens,
            chunk=self.chunk,
            frozen_head=self.frozen_head,
            packing=packing,
        )


class _Totals(NamedTuple):
    """Of a micro-batch, or of all of them: sums over its tokens, and the largest ratio."""

    loss: PolicyLoss
    entropy: Float[Array, "*n"]
    ratio: Float[Array, "*n"]
    logprob_gap: Float[Array, "*n"]
    ratio_max: Float[Array, "*n"]


def make_update(
    policy: VisionLanguagePolicy,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    loss_normaliser: str = "dapo",
    kl_coef: float = 0.0,
    importance_cap: float = 0.0,
    temperature: float = 1.0,
    banned_tokens: tuple[int, ...] = (),
    micro_batches: int = 1,
    trained: Sequence[str] | None = None,
    chunk: int = 32,
    seed: int = 0,
    gather_once: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """The step `update(state, batch, room=None) -> (state, metrics)`, compiled, its state donated.

    `room`, see `models.packing.room_for`, is of the rows of real tokens that are computed; without
    it all slots are, padding too. The result is the same within rounding.

    Gradients and counts are summed over micro-batches and devices and divided once, so the split
    does not change the result. A step whose gradients are not finite, or in which no caption has a
    signal, leaves parameters and optimizer as they were and is counted. Several updates on one
    rollout are several calls with the same batch.

    Args:
      temperature, banned_tokens: as in the sampler.
      micro_batches: parts of the B prompts that are run one after the other.
      trained: patterns of the paths that train (see `selects`); default: the decoder. Where they
        take in what makes image features, the images are encoded here, with gradient, and
        `Batch.features` is not read.
      chunk: see `token_logprobs`.
      seed: of the adapters' dropout, together with the step and the number of the micro-batch.
      gather_once: see `summed_gradients`.

    Returns:
      `update`. Its metrics are scalars on the device, means over the tokens with a signal: loss,
      clip_low, clip_high (shares), entropy, kl (to the reference, 0 without), drift (KL to the
      policy that sampled), ratio_mean, ratio_max (to the policy that sampled), importance_mean,
      importance_truncated (the weights, 1 without, and the share of those that were cut),
      logprob_gap (mean |new - old|: on the first update of a rollout that no other came before, the
      gap between sampler and trainer); and tokens, grad_norm (before clipping), skipped (so far).

    Raises:
      UserError: on the first call, when the batch cannot be split as asked.
    """
    patterns = policy.parts["decoder"] if trained is None else tuple(trained)
    frozen_head = not selects(patterns, policy.head_path)
    parts = Parts.of(mesh, micro_batches)
    plain = Scorer(policy, temperature, banned_tokens, chunk, frozen_head, rows=parts.rows)
    objective = partial(
        policy_loss,
        clip_low=clip_low,
        clip_high=clip_high,
        normaliser=loss_normaliser,
        kl_coefficient=kl_coef,
        importance_cap=importance_cap,
    )

    def update(state: TrainState, batch: Batch, room: Room | None = None):
        scorer = dataclasses.replace(plain, room=room)
        check_split(batch.tokens.shape[0], micro_batches, mesh)
        if room is not None:
            batch, _ = _balanced(batch, parts)
        if trains_vision(policy, state.params, patterns):
            batch = batch._replace(features=None)
        gradients, totals = summed_gradients(
            partial(_micro_loss, scorer=scorer, objective=objective),
            state.params,
            batch,
            mesh,
            trained=patterns,
            micro_batches=micro_batches,
            key=dropout_key(policy, state.step, seed=seed),
            whole=policy.dtype if gather_once else None,
        )
        totals = _summed(totals)
        share = mean_of(jnp.ones(()), totals.loss.count)  # 0 where no caption had a signal
        gradients = jax.tree.map(lambda g: g * share, gradients)
        state, grad_norm = apply_gradients(
            state, optimizer, gradients, has_signal=totals.loss.tokens > 0
        )
        metrics = {**_means(totals), "grad_norm": grad_norm, "skipped": state.skipped}
        # Out as it came in, or the next call would compile again.
        return like_parameters(mesh, state), metrics

    return on_mesh(mesh, update, donate_argnums=0, static_argnums=2)


def dropout_key(
    policy: VisionLanguagePolicy, step: Int[Array, ""], *, seed: int
) -> Key[Array, ""] | None:
    """The key that adapters drop inputs by in a step; None where nothing is dropped."""
    if policy.lora is None or not policy.lora.dropout:
        return None
    return jax.random.fold_in(jax.random.key(seed), step)


def _micro_loss(
    params: dict, batch: Batch, *, scorer: Scorer, objective: Callable
) -> tuple[Float[Array, ""], _Totals]:
    """The loss of a micro-batch, summed and not divided, and what its metrics are made of."""
    logprobs, entropy = scorer(params, batch)
    loss = objective(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        batch.mask,
        max_length=batch.tokens.shape[-1],
        valid=batch.valid,
        reference_logprobs=batch.reference_logprobs,
        start_logprobs=batch.start_logprobs,
    )
    live = batch.mask & batch.valid[..., None]
    log_ratio = jnp.where(live, jax.lax.stop_gradient(logprobs) - batch.old_logprobs, 0.0)
    ratio = jnp.where(live, jnp.exp(log_ratio), 0.0)
    return loss.total, _Totals(
        loss=loss,
        entropy=jnp.sum(jnp.where(live, entropy, 0.0)),
        ratio=jnp.sum(ratio),
        logprob_gap=jnp.sum(jnp.abs(log_ratio)),
        ratio_max=jnp.max(ratio),
    )


def summed_gradients(
    loss_of: Callable[[dict, T], tuple[Float[Array, ""], U]],
    params: dict,
    batch: T,
    mesh: Mesh,
    *,
    trained: Sequence[str],
    micro_batches: int,
    key: Key[Array, ""] | None,
    whole: DTypeLike | None = None,
) -> tuple[dict, U]:
    """Gradients of what trains, float32, one micro-batch after the other: summed, not divided.

    Args:
      loss_of: (summed loss, totals) of a micro-batch.
      trained: patterns of the paths that train, see `selects`.
      key: see `dropout_key`; each micro-batch drops by one of its own.
      whole: bring the decoder's matrices together over `fsdp` once, in this dtype of matmuls, and
        not in each layer, forwards and backwards, of each micro-batch: see `gather_for_update`.

    Returns:
      Gradients, and the totals of each micro-batch along a leading axis.
    """
    if whole is not None:
        params = gather_for_update(params, dtype=whole)
    trainable, frozen = split_trainable(params, trained=trained)

    def micro_loss(trainable: dict, micro: T, key: Key[Array, ""] | None):
        params = overlaid(frozen, trainable)
        return loss_of(params if key is None else with_dropout_keys(params, key), micro)

    def accumulate(gradients, micro: tuple[T, Key[Array, ""] | None]):
        new, totals = jax.grad(micro_loss, has_aux=True)(trainable, *micro)
        # float32 also where the parameters are not: bfloat16 would swallow the later addends
        gradients = jax.tree.map(lambda g, n: g + n.astype(g.dtype), gradients, new)
        return gradients, totals

    gradients = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trainable)
    keys = None if key is None else jax.random.split(key, micro_batches)
    return jax.lax.scan(
        accumulate,
        like_parameters(mesh, gradients),
        (split_micro_batches(batch, micro_batches), keys),
    )


def _summed(totals: _Totals) -> _Totals:
    """Of all micro-batches together."""
    summed = jax.tree.map(lambda x: jnp.sum(x, axis=0), totals)
    return summed._replace(ratio_max=jnp.max(totals.ratio_max))


def _means(totals: _Totals) -> dict[str, Array]:
    """The metrics that totals are enough for."""
    loss = totals.loss
    return {
        "loss": mean_of(loss.total, loss.count),
        "clip_low": mean_of(loss.clipped_low, loss.tokens),
        "clip_high": mean_of(loss.clipped_high, loss.tokens),
        "entropy": mean_of(totals.entropy, loss.tokens),
        "kl": mean_of(loss.kl, loss.tokens),
        "drift": mean_of(loss.drift, loss.tokens),
        "ratio_mean": mean_of(totals.ratio, loss.tokens),
        "ratio_max": totals.ratio_max,
        "importance_mean": mean_of(loss.importance, loss.tokens),
        "importance_truncated": mean_of(loss.truncated, loss.tokens),
        "logprob_gap": mean_of(totals.logprob_gap, loss.tokens),
        "tokens": loss.tokens,
    }


def make_reference_logprobs(
    policy: VisionLanguagePolicy,
    mesh: Mesh,
    *,
    temperature: float = 1.0,
    banned_tokens: tuple[int, ...] = (),
    micro_batches: int = 1,
    chunk: int = 32,
) -> Callable[..., Float[Array, "b g c"]]:
    """`reference(params, batch, room=None)`: the logprobs for `Batch.reference_logprobs` or, of the
    policy itself, `Batch.start_logprobs`, compiled.

    Images are encoded with the tower in `params` where `Batch.features` is None. `room`: as of the
    update.
    """
    parts = Parts.of(mesh, micro_batches)
    plain = Scorer(policy, temperature, banned_tokens, chunk, rows=parts.rows)

    def reference(params: dict, batch: Batch, room: Room | None = None):
        scorer = dataclasses.replace(plain, room=room)
        check_split(batch.tokens.shape[0], micro_batches, mesh)
        order = None
        if room is not None:
            batch, order = _balanced(batch, parts)
        split = split_micro_batches(batch, micro_batches)
        found = join_micro_batches(jax.lax.map(lambda micro: scorer(params, micro)[0], split))
        return found if order is None else parts.reordered(found, parts.inverse(order))

    return on_mesh(mesh, reference, static_argnums=2)


def _balanced(batch: Batch, parts: Parts) -> tuple[Batch, Int[Array, "r m"] | None]:
    """The batch in the order of `parts`, which `least_room` counts with; and that order."""
    if parts.alone:
        return batch, None
    counts = jnp.sum(batch.mask & batch.valid[..., None], axis=(1, 2), dtype=jnp.int32)
    order = parts.order(counts)
    return parts.reordered(batch, order), order


def like_parameters(mesh: Mesh, tree: Any) -> Any:
    """Arrays by the paths of parameters, spread over the mesh as these are."""
    return jax.lax.with_sharding_constraint(tree, param_shardings(mesh, tree))


def check_split(prompts: int, micro_batches: int, mesh: Mesh) -> None:
    """Raises a UserError where the prompts of a step cannot be split as asked."""
    shards = batch_shards(mesh)
    if prompts % (micro_batches * shards):
        raise UserError(
            f"{prompts} prompts cannot be split into {micro_batches} micro-batches over {shards} "
            f"data shards; make their number a multiple of {micro_batches * shards}."
        )
