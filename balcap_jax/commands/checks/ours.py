"""Our side of a check: the numbers that are compared, of one prompt with an image."""

import dataclasses
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from balcap_jax.inference import generate
from balcap_jax.models.attention.backends import choose, xla
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.hf.inputs import split_prompts
from balcap_jax.models.logprobs import policy_logprobs
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.rl.train_state import init_state
from balcap_jax.rl.update import Batch, make_reference_logprobs, make_update

# Two captions of one image: one better, one worse, one update.
ADVANTAGES = (1.0, -0.5)
SHIFT = 0.05  # old logprobs are lower by this: ratios of 1.05, within the clip


class Ours:
    """A policy on the first device and one prompt.

    Args:
      inputs: as Hugging Face's processor returns them, one row, no padding.
    """

    def __init__(
        self, policy: VisionLanguagePolicy, params: Params, inputs: Mapping[str, np.ndarray]
    ) -> None:
        self.policy, self.params, self.inputs = policy, params, dict(inputs)

    def logits(self, dtype: str) -> Float[np.ndarray, "t v"]:
        """At all positions of the prompt."""
        with precise(dtype):
            return np.asarray(self._in(dtype).logits(self.params, **self.inputs))[0]

    def greedy(self, dtype: str, count: int) -> Int[np.ndarray, " n"]:
        """The likeliest `count` tokens behind the prompt, whether the caption ends or not."""
        with precise(dtype):
            return generate(self._in(dtype), self.params, self.inputs, count, stop_tokens=())[0]

    def update(
        self,
        dtype: str,
        captions: Int[np.ndarray, "g c"],
        old_logprobs: Float[np.ndarray, "g c"],
    ) -> tuple[float, float]:
        """Loss and norm of the gradient of one step of training as it runs, vision frozen.

        The optimizer changes nothing and keeps nothing, so that the step takes the memory of
        weights and gradient alone.
        """
        mesh = make_mesh(devices=jax.devices()[:1])
        policy, optimizer = self._in(dtype), optax.set_to_zero()
        with precise(dtype):
            state = init_state(
                mesh, self.params, optimizer, trained=policy.parts["decoder"], keep=False
            )
            step = make_update(policy, optimizer, mesh, banned_tokens=policy.config.banned_tokens)
            batch = self._batch(captions, old_logprobs)
            state, metrics = step(state, shard_batch(mesh, batch))
        self.params = state.params  # the step took the old ones; these are equal
        return float(metrics["loss"]), float(metrics["grad_norm"])

    def backend(self, name: str, dtype: str) -> VisionLanguagePolicy:
        """The policy with this attention.

        Raises:
          UserError: it cannot run here.
        """
        config = self.policy.config
        sizes = (config.text.head_dim, config.vision.head_dim)
        choose(name, dtype=jnp.dtype(dtype), head_dims=sizes)
        return dataclasses.replace(self._in(dtype), attention=name)

    def logprobs(
        self, policy: VisionLanguagePolicy, captions: Int[np.ndarray, "g c"]
    ) -> Float[np.ndarray, "g c"]:
        """Of the tokens of captions, as the update computes them: the prompt shared, its attention
        that of the policy.
        """
        mesh = make_mesh(devices=jax.devices()[:1])
        logprobs_of = make_reference_logprobs(
            policy, mesh, banned_tokens=policy.config.banned_tokens
        )
        batch = self._batch(captions, np.zeros(captions.shape))
        with precise(jnp.dtype(policy.dtype).name):
            return np.asarray(logprobs_of(self.params, shard_batch(mesh, batch)))[0]

    def plain_logprobs(
        self, dtype: str, captions: Int[np.ndarray, "g c"]
    ) -> Float[np.ndarray, "g c"]:
        """The same of each caption joined with its own prompt, by `logits`."""
        policy, found = self._in(dtype), []
        start = self.inputs["input_ids"].shape[1]
        with precise(dtype):
            for caption in captions:
                joined = joined_inputs(self.inputs, caption)
                logits = policy.logits(self.params, **joined)[0, start - 1 : -1]
                logprobs = policy_logprobs(
                    logits, temperature=1.0, banned_tokens=policy.config.banned_tokens
                )
                found.append(np.asarray(logprobs)[np.arange(len(caption)), caption])
        return np.stack(found)

    def _in(self, dtype: str) -> VisionLanguagePolicy:
        """The policy that computes in `dtype`, with the plain attention."""
        return dataclasses.replace(self.policy, dtype=jnp.dtype(dtype), attention=xla())

    def _batch(
        self, captions: Int[np.ndarray, "g c"], old_logprobs: Float[np.ndarray, "g c"]
    ) -> Batch:
        """Captions of the prompt, as the update takes them."""
        return Batch(
            prompts=jax.tree.map(np.asarray, split_prompts(self.policy.layout, self.inputs)),
            tokens=np.asarray(captions, np.int32)[None],
            mask=np.ones((1, *captions.shape), bool),
            old_logprobs=np.asarray(old_logprobs, np.float32)[None],
            advantages=np.asarray(ADVANTAGES, np.float32)[None],
            valid=np.ones((1, len(captions)), bool),
        )


@contextmanager
def precise(dtype: str) -> Iterator[None]:
    """Matmuls of float32 in float32: GPUs and TPUs take fewer bits by themselves."""
    if dtype != "float32":
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


def joined_inputs(
    inputs: Mapping[str, np.ndarray], caption: Int[np.ndarray, " c"]
) -> dict[str, np.ndarray]:
    """The inputs of a prompt with a caption behind it."""
    ids = np.concatenate([inputs["input_ids"], np.asarray(caption, np.int64)[None]], axis=1)
    return {**inputs, "input_ids": ids, "attention_mask": np.ones_like(ids)}


def peak_memory() -> tuple[int | None, int]:
    """Largest use so far in bytes: of the first device, where it says, and of this process."""
    device = jax.devices()[0]
    used = (device.memory_stats() or {}).get("peak_bytes_in_use") if _has_own(device) else None
    unit = 1 if sys.platform == "darwin" else 1024
    return used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_limit() -> int | None:
    """Bytes that a device with memory of its own lets JAX use."""
    device = jax.devices()[0]
    return (device.memory_stats() or {}).get("bytes_limit") if _has_own(device) else None


def _has_own(device: Any) -> bool:
    return device.platform != "cpu"
