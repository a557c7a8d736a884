"""Token logprobs without the [all tokens, vocabulary] array.

With 152K words and thousands of tokens that array is tens of gigabytes in float32. It is made chunk
by chunk, and again chunk by chunk in the backward pass.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from balcap_jax.models.inputs import AnyArray, Prompts
from balcap_jax.models.packing import Packing
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import over_batch

LOG_SUM = "log_sum"  # its name for checkpoints


def policy_logprobs(
    logits: Float[Array, "*batch v"], *, temperature: float, banned_tokens: tuple[int, ...]
) -> Float[Array, "*batch v"]:
    """The distribution that is sampled and trained: log softmax(logits / temperature), float32.

    The one definition for sampler and trainer. Banned tokens are at -inf before the softmax, so
    the others share their probability. Top-p is no part of it: a truncated distribution gives
    ratios that no update can recompute.

    Args:
      temperature: above 0; 0 stands for greedy decoding, whose logprobs are those of temperature 1.
      banned_tokens: ids that have probability 0.
    """
    return jax.nn.log_softmax(
        policy_logits(logits, temperature=temperature, banned_tokens=banned_tokens)
    )


def policy_logits(
    logits: Float[Array, "..."],
    *,
    temperature: float,
    banned_tokens: tuple[int, ...],
    axis: int = -1,
) -> Float[Array, "..."]:
    """`policy_logprobs` before the softmax; `axis` is the vocabulary's."""
    logits = logits.astype(jnp.float32) / (temperature or 1.0)
    if banned_tokens:
        # Added, not selected: XLA on CPUs does not vectorise a select by rows.
        banned = np.zeros(logits.shape[axis], np.float32)
        banned[list(banned_tokens)] = -np.inf
        shape = [1] * logits.ndim
        shape[axis] = -1
        logits = logits + banned.reshape(shape)
    return logits


@jax.custom_vjp
def logprob_of(
    logits: Float[Array, "*batch v"], targets: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """log softmax(logits) at the targets, and the entropy, which carries no gradient.

    One pass over the logits backwards: neither the softmax nor its logarithm is an array of its
    own, and the log-sum-exp is kept by its name where a checkpoint throws the logits away.
    """
    return _logprob_forward(logits, targets)[0]


def _logprob_forward(logits: Array, targets: Array) -> tuple[tuple[Array, Array], Any]:
    log_sum = checkpoint_name(jax.nn.logsumexp(logits, axis=-1), LOG_SUM)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # 0 times a banned token's -inf is nothing.
    weighted = jnp.where(logits == -jnp.inf, 0.0, jnp.exp(logits - log_sum[..., None]) * logits)
    return (chosen - log_sum, log_sum - jnp.sum(weighted, axis=-1)), (logits, targets, log_sum)


def _logprob_backward(saved: Any, gradient: tuple[Array, Array]) -> tuple[Array, None]:
    logits, targets, log_sum = saved
    words = jnp.arange(logits.shape[-1]).reshape((1,) * targets.ndim + (-1,))
    softmax = jnp.exp(logits - log_sum[..., None])
    return gradient[0][..., None] * ((words == targets[..., None]) - softmax), None


logprob_of.defvjp(_logprob_forward, _logprob_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def frozen_head_logprobs(
    hidden: Float[Array, "*batch d"],
    weight: Float[Array, "v d"],
    targets: Int[Array, "*batch"],
    temperature: float,
    banned_tokens: tuple[int, ...],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """`logprob_of` the logits of a head that is not trained; the weight gets no gradient.

    The gradient of a token's logprob by its hidden state is a row of d numbers, which is made while
    the logits are there: W[target] - softmax W. So the backward pass makes no logits again.

    Args:
      hidden, weight: in the dtype of matmuls.
    """
    return _frozen_forward(hidden, weight, targets, temperature, banned_tokens)[0]


def _frozen_forward(
    hidden: Array,
    weight: Array,
    targets: Array,
    temperature: float,
    banned_tokens: tuple[int, ...],
) -> tuple[tuple[Array, Array], Array]:
    # A column per token, as in decoding: `weight @ x` reads the weight as it lies.
    columns, flat = hidden.reshape(-1, hidden.shape[-1]).T, targets.reshape(-1)
    logits = policy_logits(
        jnp.matmul(weight, columns, preferred_element_type=jnp.float32),
        temperature=temperature,
        banned_tokens=banned_tokens,
        axis=0,
    )
    log_sum = jax.nn.logsumexp(logits, axis=0)
    softmax = jnp.exp(logits - log_sum[None])
    weighted = jnp.where(logits == -jnp.inf, 0.0, softmax * logits)
    entropy = log_sum - jnp.sum(weighted, axis=0)
    logprobs = jnp.take_along_axis(logits, flat[None], axis=0)[0] - log_sum
    mean = jax.lax.dot_general(
        softmax.astype(weight.dtype),
        weight,
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    row = (weight[flat].astype(jnp.float32) - mean) / (temperature or 1.0)
    results = (logprobs.reshape(targets.shape), entropy.reshape(targets.shape))
    return results, row.reshape(hidden.shape).astype(hidden.dtype)


def _frozen_backward(
    temperature: float, banned_tokens: tuple[int, ...], row: Array, gradient: tuple[Array, Array]
) -> tuple[Array, None, None]:
    return (gradient[0][..., None] * row).astype(row.dtype), None, None


frozen_head_logprobs.defvjp(_frozen_forward, _frozen_backward)


def token_logprobs(
    policy: VisionLanguagePolicy,
    params: dict,
    hidden: Float[Array, "b g c d"],
    targets: Int[AnyArray, "b g c"],
    *,
    temperature: float = 1.0,
    banned_tokens: tuple[int, ...] = (),
    chunk: int = 32,
    frozen_head: bool = False,
) -> tuple[Float[Array, "b g c"], Float[Array, "b g c"]]:
    """Logprob of each target, and the entropy of the distribution it was drawn from, float32.

    Args:
      hidden: final-norm hidden states; `hidden[..., t, :]` predicts `targets[..., t]`.
      chunk: positions of the completion whose logits live at one time: b * g * chunk * v floats.
        The time axis is the one to cut, since the batch is spread over devices.
      frozen_head: `policy.head` gets no gradient; see `frozen_head_logprobs`.

    Returns:
      logprobs and entropy; the entropy is for metrics and carries no gradient. The logprob of a
      banned target is -inf.
    """

    # The backward pass makes the logits of a chunk again rather than keep them.
    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(LOG_SUM))
    def trained_chunk(weight, hidden, targets):
        logits = policy.project_by(weight, hidden)
        return logprob_of(
            policy_logits(logits, temperature=temperature, banned_tokens=banned_tokens), targets
        )

    def frozen_chunk(weight, hidden, targets):
        hidden, weight = hidden.astype(policy.dtype), weight.astype(policy.dtype)
        return frozen_head_logprobs(hidden, weight, targets, temperature, banned_tokens)

    one_chunk = frozen_chunk if frozen_head else trained_chunk
    length = targets.shape[2]
    chunks = -(-length // chunk)
    chunk = -(-length // chunks)  # even ones, of little padding
    padding = chunks * chunk - length

    def cut(x):  # [b g c ...] -> [chunks, b g chunk ...]
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(*x.shape[:2], chunks, chunk, *x.shape[3:]), 2, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], chunks * chunk)[..., :length]

    def by_chunks(weight, hidden, targets):
        if chunks == 1:
            return one_chunk(weight, hidden, targets)
        pieces = jax.lax.map(lambda piece: one_chunk(weight, *piece), (cut(hidden), cut(targets)))
        return jax.tree.map(join, pieces)

    # Left to itself XLA brings the logits of all prompts together for the weight's gradient.
    by_prompts = over_batch(by_chunks, dtype=policy.dtype)
    return by_prompts(policy.head(params), hidden, jnp.asarray(targets))


def completion_logprobs(
    policy: VisionLanguagePolicy,
    params: dict,
    prompts: Prompts,
    features: Float[Array, "b m d"],
    completions: Int[AnyArray, "b g c"],
    *,
    temperature: float = 1.0,
    banned_tokens: tuple[int, ...] = (),
    chunk: int = 32,
    frozen_head: bool = False,
    packing: Packing | None = None,
) -> tuple[Float[Array, "b g c"], Float[Array, "b g c"]]:
    """Logprob and entropy of every token of the completions, the prompt shared by its group.

    Positions after the end of a completion hold numbers without meaning; mask them.

    Args:
      packing: of the real tokens, which alone are computed; the others' numbers are 0. Tokens that
        do not fit into its room make all numbers NaN: none is left out without a word.
    """
    hidden = policy.completion_hidden(params, prompts, features, completions, packing)
    options = {
        "temperature": temperature,
        "banned_tokens": banned_tokens,
        "frozen_head": frozen_head,
    }
    if packing is None:
        return token_logprobs(policy, params, hidden, completions, chunk=chunk, **options)
    B, G, _ = completions.shape
    targets = packing.pack_own(jnp.asarray(completions))
    # As many logits at a time as without packing.
    chunk = chunk * B * G // len(targets)
    packed = token_logprobs(
        policy, params, hidden[:, None], targets[:, None], chunk=chunk, **options
    )
    # A factor, so that gradients are NaN, too, and the step is skipped.
    fits = jnp.where(packing.fits, 1.0, jnp.nan)
    return jax.tree.map(lambda x: packing.unpack_own(x[:, 0], completions.shape) * fits, packed)
