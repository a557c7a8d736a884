"""Supervised steps: the likelihood of given answers, summed over micro-batches, and one optimizer
step, jitted.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.models.inputs import AnyArray, Prompts
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.selection import selects
from balcap_jax.models.yes_no import yes_no_logits
from balcap_jax.parallel.compiled import on_mesh
from balcap_jax.rl.train_state import TrainState, apply_gradients
from balcap_jax.rl.update import (
    check_split,
    dropout_key,
    like_parameters,
    summed_gradients,
)


class Lesson(NamedTuple):
    """What a supervised step learns: answers to prompts with images.

    Attributes:
      prompts: each with its images, encoded once for its G texts.
      tokens: the G texts that go on from each prompt.
      mask: True where a token is to be learned; what stands between the answers of a conversation
        is read only.
    """

    prompts: Prompts
    tokens: Int[AnyArray, "b g c"]
    mask: Bool[AnyArray, "b g c"]


class Sums(NamedTuple):
    """Over the tokens to be learned.

    Attributes:
      loss: negative log-likelihood, in nats.
      entropy: of the distributions that they are predicted by.
      tokens: their number.
    """

    loss: Float[Array, "*n"]
    entropy: Float[Array, "*n"]
    tokens: Float[Array, "*n"]


def make_supervised_update(
    policy: VisionLanguagePolicy,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    micro_batches: int = 1,
    trained: Sequence[str],
    chunk: int = 128,
    seed: int = 0,
    gather_once: bool = False,
) -> Callable[[TrainState, Lesson], tuple[TrainState, dict[str, Array]]]:
    """The step `update(state, lesson) -> (state, metrics)`, compiled, its state donated.

    The loss is the mean over all learned tokens of the batch: gradients and counts are summed over
    micro-batches and devices and divided once, so the split does not change the result. A step
    whose gradients are not finite, or that has nothing to learn, changes nothing and is counted.

    Args:
      micro_batches: parts of the B prompts that are run one after the other.
      trained: patterns of the paths that train, see `selects`.
      chunk: see `token_logprobs`.
      seed, gather_once: as in `make_update`.

    Returns:
      `update`. Its metrics are scalars on the device: loss and entropy (nats per learned token),
      tokens (learned), grad_norm (before clipping), skipped (so far).

    Raises:
      UserError: on the first call, when the batch cannot be split as asked.
    """

    frozen_head = not selects(trained, policy.head_path)
    loss_of = partial(_micro_loss, policy=policy, chunk=chunk, frozen_head=frozen_head)

    def update(state: TrainState, lesson: Lesson):
        check_split(lesson.tokens.shape[0], micro_batches, mesh)
        gradients, sums = summed_gradients(
            loss_of,
            state.params,
            lesson,
            mesh,
            trained=trained,
            micro_batches=micro_batches,
            key=dropout_key(policy, state.step, seed=seed),
            whole=policy.dtype if gather_once else None,
        )
        sums = jax.tree.map(jnp.sum, sums)
        share = 1.0 / jnp.maximum(sums.tokens, 1.0)
        gradients = jax.tree.map(lambda g: g * share, gradients)
        state, norm = apply_gradients(state, optimizer, gradients, has_signal=sums.tokens > 0)
        metrics = {
            "loss": sums.loss * share,
            "entropy": sums.entropy * share,
            "tokens": sums.tokens,
            "grad_norm": norm,
            "skipped": state.skipped,
        }
        # Out as it came in, or the next call would compile again.
        return like_parameters(mesh, state), metrics

    return on_mesh(mesh, update, donate_argnums=0)


def make_supervised_sums(
    policy: VisionLanguagePolicy, mesh: Mesh, *, chunk: int = 128
) -> Callable[[dict, Lesson], Sums]:
    """`sums(params, lesson)` of the same loss, without a step, compiled."""

    def sums(params: dict, lesson: Lesson) -> Sums:
        return _micro_loss(params, lesson, policy=policy, chunk=chunk)[1]

    return on_mesh(mesh, sums)


class AnswerPairs(NamedTuple):
    """Over pairs of a question with the answer yes and one with no about the same image.

    Attributes:
      wins: pairs of which the first gets the higher P(yes); a tie is half of one.
      pairs: their number.
    """

    wins: Float[Array, ""]
    pairs: Float[Array, ""]


def make_answer_pairs(
    policy: VisionLanguagePolicy, mesh: Mesh, yes: Sequence[int], no: Sequence[int]
) -> Callable[[dict, Lesson], AnswerPairs]:
    """`answer_pairs(params, lesson)` of questions that are answered by yes and no, compiled; wins
    over pairs is the AUC within images.

    Args:
      yes, no: ids that these answers begin with.
    """

    def answer_pairs(params: dict, lesson: Lesson) -> AnswerPairs:
        mask, tokens = jnp.asarray(lesson.mask), jnp.asarray(lesson.tokens)
        lengths = jnp.argmax(mask, axis=-1)  # the answer is the first that is learned
        first = jnp.take_along_axis(tokens, lengths[..., None], axis=-1)[..., 0]
        features = policy.encode_images(params, lesson.prompts.images)
        logits = yes_no_logits(
            policy, params, lesson.prompts, features, tokens, lengths, yes=yes, no=no
        )
        real = mask.any(axis=-1)
        says_yes = real & jnp.isin(first, jnp.asarray(list(yes)))
        says_no = real & jnp.isin(first, jnp.asarray(list(no)))
        pairs = says_yes[:, :, None] & says_no[:, None, :]
        gaps = jnp.sign(logits[:, :, None] - logits[:, None, :])
        wins = jnp.sum(jnp.where(pairs, (gaps + 1) / 2, 0.0))
        return AnswerPairs(wins, jnp.sum(pairs, dtype=jnp.float32))

    return on_mesh(mesh, answer_pairs)


def _micro_loss(
    params: dict,
    lesson: Lesson,
    *,
    policy: VisionLanguagePolicy,
    chunk: int,
    frozen_head: bool = False,
) -> tuple[Float[Array, ""], Sums]:
    """The loss of a micro-batch, summed and not divided."""
    features = policy.encode_images(params, lesson.prompts.images)
    logprobs, entropy = completion_logprobs(
        policy,
        params,
        lesson.prompts,
        features,
        lesson.tokens,
        chunk=chunk,
        frozen_head=frozen_head,
    )
    mask = jnp.asarray(lesson.mask)
    loss = -jnp.sum(jnp.where(mask, logprobs, 0.0))
    return loss, Sums(
        loss=loss,
        entropy=jnp.sum(jnp.where(mask, entropy, 0.0)),
        tokens=jnp.sum(mask, dtype=jnp.float32),
    )
