"""The gradient of one policy-gradient loss, -mean(advantage * logprob), beside torch's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.families import family_of
from balcap_jax.models.hf.weights import _export
from balcap_jax.models.inputs import Prompts
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.policy import VisionLanguagePolicy


def random_completions(
    policy: VisionLanguagePolicy, batch: int, *, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two completions [b 2 4] of words (ids from `first`) for each prompt, and advantages [b 2]."""
    rng = np.random.default_rng(0)
    completions = rng.integers(first, policy.config.vocab_size, (batch, 2, 4)).astype(np.int32)
    return completions, rng.normal(size=(batch, 2)).astype(np.float32)


def our_gradient(
    policy: VisionLanguagePolicy,
    params: Params,
    prompts: Prompts,
    completions: np.ndarray,
    advantages: np.ndarray,
    *,
    temperature: float = 1.0,
) -> tuple[jax.Array, Params]:
    """Loss and gradient of all parameters, the prompt shared by its completions."""

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        features = policy.encode_images(params, prompts.images)
        logprobs, _ = completion_logprobs(
            policy,
            params,
            prompts,
            features,
            completions,
            temperature=temperature,
            banned_tokens=policy.config.banned_tokens,
        )
        return -jnp.mean(jnp.asarray(advantages)[..., None] * logprobs)

    return loss(params)


def torch_loss(
    logits_of: Callable,
    completions: np.ndarray,
    advantages: np.ndarray,
    banned: tuple[int, ...],
    *,
    temperature: float = 1.0,
):
    """The loss in torch, each completion with its own prompt.

    Args:
      logits_of: `(b, completion)` -> logits [t v] of the completion's tokens behind prompt b.
    """
    import torch

    total = 0.0
    for b, group in enumerate(completions):
        for g, own in enumerate(group):
            logits = (logits_of(b, own) / temperature).index_fill(
                1, torch.tensor(banned), -torch.inf
            )
            logprobs = torch.log_softmax(logits, dim=-1)
            chosen = logprobs[torch.arange(len(own)), torch.tensor(own).long()]
            total = total - advantages[b, g].item() * chosen.sum()
    return total / completions.size


def assert_equal_gradients(
    hf, policy: VisionLanguagePolicy, gradient: Params, *, tower: str, unread: bool = False
) -> None:
    """Every parameter's relative error is below 1e-3, more than 15 of the tower's among them.

    Args:
      tower: what the tower's keys have in their names.
      unread: torch may have no gradient of a parameter, where ours is then 0.
    """
    ours, table = _export(policy, gradient, None), family_of(policy.config).keys(policy.config)
    compared = 0
    for key, parameter in hf.named_parameters():
        mine = ours.pop(table.normalise(key))
        if unread and parameter.grad is None:
            assert not mine.any(), key
            continue
        theirs = parameter.grad.numpy()
        error = np.linalg.norm(mine - theirs) / max(np.linalg.norm(theirs), 1e-5)
        assert error < 1e-3, f"{key}: relative error {error:.1e}"
        compared += tower in key and bool(theirs.any())
    assert not ours
    assert compared > 15
