"""Our side of `balcap bench step`: rollout and update as `train.py` runs them, on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from balcap_jax.models.adapters import adapted_paths, adapter_shapes, init_adapters
from balcap_jax.models.decoder.lora import TRAINED, Lora
from balcap_jax.models.families import make_policy
from balcap_jax.models.logprobs import completion_logprobs, policy_logprobs
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.selection import overlaid
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.plan.workloads.presets import LEARNING_RATE, Preset
from balcap_jax.plan.workloads.workload import RandomProcessor, random_objective, random_params
from balcap_jax.rl.losses import mean_of, policy_loss
from balcap_jax.rl.train_state import init_state, make_optimizer
from balcap_jax.rl.update import Batch, make_update
from balcap_jax.rollout.rollout import Captioner


class Ours:
    """A policy with random weights, its tower frozen, and the two programs of a training step.

    `rollout` and `update` run one each and wait for it; the first call of each compiles.
    """

    name = "balcap"

    def __init__(self, preset: Preset, *, lora: int = 0) -> None:
        """
        Args:
          lora: rank of adapters on the decoder; 0: whole weights are trained.
        """
        self.preset = preset
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.processor = RandomProcessor(preset)
        self.policy = make_policy(preset.config, dtype=jnp.dtype(preset.dtype), remat=preset.remat)
        params = random_params(self.policy, self.mesh)
        self.trained = self.policy.parts["decoder"]
        if lora:
            self.policy = dataclasses.replace(self.policy, lora=Lora(alpha=2.0 * lora))
            self.trained = TRAINED
            shapes = adapter_shapes(self.policy, adapted_paths(self.policy, ()), rank=lora)
            params = jax.tree.map(lambda x: x.astype(preset.dtype), params)
            params = overlaid(params, init_adapters(shapes, jax.random.key(1), mesh=self.mesh))
        self.captioner = Captioner(
            self.policy,
            self.processor,
            self.mesh,
            group_size=preset.group,
            max_new_tokens=preset.completion,
        )
        self.optimizer = make_optimizer(learning_rate=LEARNING_RATE)
        self.apply = new_update(self)
        self.state = init_state(
            self.mesh,
            params,
            self.optimizer,
            trained=self.trained,
            keep=False,
        )
        self.objective = random_objective(preset)
        self.rounds = 0
        self._batch: Batch | None = None

    def rollout(self) -> None:
        """B G captions of C tokens; the next round's are others."""
        key = jax.random.key(self.rounds)
        self.rounds += 1
        generation = self.captioner.generate(self.state.params, self.processor.examples, key)
        rollout = jax.block_until_ready(generation.rollout)
        if self._batch is None:  # every update is on the captions of the first rollout
            self._batch = Batch(
                prompts=generation.prompts,
                tokens=rollout.tokens,
                mask=rollout.mask,
                old_logprobs=rollout.logprobs + shard_batch(self.mesh, self.objective.shift),
                advantages=shard_batch(self.mesh, self.objective.advantages),
                valid=shard_batch(self.mesh, np.ones(self.objective.advantages.shape, bool)),
                features=generation.features,
            )

    def update(self) -> float:
        """One optimizer step on the captions of the first rollout.

        Returns:
          The loss before the step.
        """
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.apply(self.state, self.batch)
        jax.block_until_ready(self.state)
        return float(metrics["loss"])

    def logprob_checksum(self) -> dict[str, float]:
        """Mean logprob of the batch's tokens, by the sampler and by the update's forward."""
        batch = self.batch
        forward = jax.jit(completion_logprobs, static_argnames=("policy", "banned_tokens"))
        logprobs, _ = forward(
            self.policy,
            self.state.params,
            batch.prompts,
            batch.features,
            batch.tokens,
            banned_tokens=self.policy.config.banned_tokens,
        )
        sampled = np.asarray(batch.old_logprobs) - self.objective.shift
        return {
            "rollout_logprob": float(np.mean(sampled)),
            "update_logprob": float(jnp.mean(logprobs)),
        }

    @property
    def batch(self) -> Batch:
        """The batch of all updates."""
        if self._batch is None:
            self.rollout()
        return self._batch


def new_update(side: Ours):
    """The update of a training step at the default settings."""
    return make_update(
        side.policy,
        side.optimizer,
        side.mesh,
        banned_tokens=side.policy.config.banned_tokens,
        trained=side.trained,
    )


def plain_checksum(side: Ours) -> dict[str, float]:
    """Loss and mean logprob of the batch without any fast path: every caption joined with its own
    prompt and image, one sequence at a time, logits at all positions, plain log softmax.
    """
    batch = side.batch
    logprobs = jax.jit(plain_logprobs, static_argnames="policy")(
        side.policy, side.state.params, batch
    )
    loss = policy_loss(logprobs, batch.old_logprobs, batch.advantages, batch.mask)
    return {
        "plain_loss": float(mean_of(loss.total, loss.count)),
        "plain_logprob": float(jnp.mean(logprobs)),
    }


def plain_logprobs(
    policy: VisionLanguagePolicy, params: dict, batch: Batch
) -> Float[Array, "b g c"]:
    """Logprob of each token; see `plain_checksum`."""
    prompts, C = batch.prompts, batch.tokens.shape[-1]
    P = prompts.tokens.shape[1]

    def caption(prompt, tokens):
        length = jnp.sum(prompt.mask)

        # Padding of the prefix would stand between prompt and caption: rolled to the front.
        def joined(prefix, last, rest):
            return jnp.concatenate([jnp.roll(prefix, P - length, axis=-1), last, rest], axis=-1)

        axes = prompt.positions.shape[0]
        first = jnp.broadcast_to(prompt.last_position, (axes, 1))
        later = jnp.broadcast_to(prompt.last_position + 1 + jnp.arange(C)[None], (axes, C))
        logits = policy.token_logits(
            params,
            joined(prompt.tokens, prompt.last_token[None], tokens)[None],
            joined(prompt.positions, first, later)[None],
            joined(prompt.mask, jnp.ones(1, bool), jnp.ones(C, bool))[None],
            policy.encode_images(params, jax.tree.map(lambda x: x[None], prompt.images)),
        )[0, P:-1]
        logprobs = policy_logprobs(
            logits, temperature=1.0, banned_tokens=policy.config.banned_tokens
        )
        return jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]

    def group(inputs):
        prompt, captions = inputs
        return jax.lax.map(lambda tokens: caption(prompt, tokens), captions)

    return jax.lax.map(group, (prompts, batch.tokens))
