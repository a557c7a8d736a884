"""Where our seconds go: the parts of rollout and update, each compiled and timed alone."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from balcap_jax.bench.step_ours import Ours
from balcap_jax.models.logprobs import completion_logprobs, token_logprobs
from balcap_jax.rl.train_state import split_trainable


def rollout_parts(side: Ours, seconds: float, *, rounds: int = 3) -> dict[str, float]:
    """Seconds of encoding, of the prefill, and of one step of the decode loop, which cannot run
    alone: (seconds - encode - prefill) / C.

    Args:
      seconds: measured, of the whole rollout.
      rounds: of which the median is taken.
    """
    policy, params, batch = side.policy, side.state.params, side.batch
    encode = _median(jax.jit(policy.encode_images), params, batch.prompts.images, rounds=rounds)
    prefill = _median(jax.jit(policy.prefill), params, batch.prompts, batch.features, rounds=rounds)
    step = (seconds - encode - prefill) / side.preset.completion
    return {"encode": encode, "prefill": prefill, "decode_step": step}


def update_parts(side: Ours, seconds: float, *, rounds: int = 3) -> dict[str, float]:
    """Seconds of forward, backward (loss and gradients less the forward) and optimizer (the rest);
    of these the logits, forward and backward.

    Args:
      seconds: measured, of the whole update.
      rounds: of which the median is taken.
    """
    policy, batch = side.policy, side.batch
    banned = policy.config.banned_tokens
    trainable, frozen = split_trainable(side.state.params, trained=side.policy.parts["decoder"])

    def objective(logprobs):
        return -jnp.mean(batch.advantages[..., None] * logprobs)

    def loss(trainable):
        logprobs, entropy = completion_logprobs(
            policy,
            {**trainable, **frozen},
            batch.prompts,
            batch.features,
            batch.tokens,
            banned_tokens=banned,
        )
        return objective(logprobs), entropy

    def loss_of_hidden(trainable, hidden):
        logprobs, entropy = token_logprobs(
            policy, {**trainable, **frozen}, hidden, batch.tokens, banned_tokens=banned
        )
        return objective(logprobs), entropy

    hidden = jax.jit(policy.completion_hidden)(
        side.state.params, batch.prompts, batch.features, batch.tokens
    )
    forward = _median(jax.jit(loss), trainable, rounds=rounds)
    both = _median(jax.jit(jax.grad(loss, has_aux=True)), trainable, rounds=rounds)
    logits = jax.jit(jax.grad(loss_of_hidden, argnums=(0, 1), has_aux=True))
    return {
        "forward": forward,
        "backward": both - forward,
        "optimizer": seconds - both,
        "logits": _median(logits, trainable, hidden, rounds=rounds),
    }


def _median(function: Callable, *arguments, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first compiles
