"""The decode loop: G captions from one prefill, token by token; pure functions of arrays."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from balcap_jax.models.decoder.decode_step import Cache, DecodeWeights
from balcap_jax.models.inputs import AnyArray, Prompts
from balcap_jax.models.logprobs import policy_logits
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import constrain_batch
from balcap_jax.rollout.drawing import draw


class Rollout(NamedTuple):
    """Sampled captions of one batch.

    Attributes:
      tokens: sampled tokens, the stop token included, the pad token after the end.
      mask: True where a token was sampled. Not `tokens != pad`: pad may be a stop token.
      logprobs: logprob of each sampled token under `policy_logprobs`, 0 outside the mask.
      ended: the caption reached a stop token; False means truncated at the last slot.
    """

    tokens: Int[Array, "b g c"]
    mask: Bool[Array, "b g c"]
    logprobs: Float[Array, "b g c"]
    ended: Bool[Array, "b g"]


def rollout_shapes(
    *, batch: int, group: int, length: int, sharding: jax.sharding.Sharding
) -> Rollout:
    """Shape, dtype and place of each array of a rollout, as `jax.ShapeDtypeStruct`s.

    Args:
      sharding: of the batch axis.
    """

    def array(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    captions = (batch, group, length)
    return Rollout._make(
        (
            array(captions, jnp.int32),
            array(captions, jnp.bool_),
            array(captions, jnp.float32),
            array(captions[:2], jnp.bool_),
        )
    )


class Captions(NamedTuple):
    """What the decode loop reads of its captions and does not change."""

    prompt_cache: Cache
    prompt_mask: Bool[Array, "b p"]
    last_position: Int[Array, " b"]
    uniforms: Float[Array, "c n"]
    likeliest: Bool[Array, " n"] | None

    def take(self, index: Int[Array, " n"], group: int) -> "Captions":
        """Some of the captions, each with a prompt of its own."""
        prompt = index // group
        return Captions(
            tuple(slots.take(prompt, len(self.prompt_mask)) for slots in self.prompt_cache),
            self.prompt_mask[prompt],
            self.last_position[prompt],
            self.uniforms[:, index],
            None if self.likeliest is None else self.likeliest[index],
        )


class Loop(NamedTuple):
    """The carry of the decode loop."""

    step: Int[Array, ""]
    token: Int[Array, "b g"]  # the input of this step
    cache: Cache
    rollout: Rollout

    def take(self, index: Int[Array, " n"]) -> "Loop":
        """Some of the captions, as groups of one."""
        count = self.token.size
        return Loop(
            self.step,
            self.token.reshape(-1)[index][:, None],
            tuple(slots.take(index, count) for slots in self.cache),
            jax.tree.map(lambda x: x[index][:, None], flat(self.rollout)),
        )


class State(NamedTuple):
    """All that the loop needs to go on.

    Attributes:
      weights: of the decoder, laid out for decoding once per rollout: a slice of the stacked ones
        inside the loop would be a copy every step.
    """

    weights: DecodeWeights
    captions: Captions
    loop: Loop


class Decoder(NamedTuple):
    """A policy with the settings of `sampling.sample`, which says what they mean."""

    policy: VisionLanguagePolicy
    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_token_id: int
    temperature: float = 1.0
    top_p: float = 1.0
    banned_tokens: tuple[int, ...] = ()
    greedy: int = 0

    def start(
        self,
        params: dict,
        prompts: Prompts,
        features: Float[AnyArray, "b m d"],
        keys: Key[Array, "b g"],
    ) -> State:
        """The prefill, and no token yet."""
        (B, G), policy = keys.shape, self.policy
        captions = Captions(
            policy.prefill(params, prompts, features),
            jnp.asarray(prompts.mask),
            jnp.asarray(prompts.last_position),
            _uniforms(keys.reshape(-1), self.max_new_tokens),
            jnp.tile(jnp.arange(G) >= G - self.greedy, B) if self.greedy else None,
        )
        first = jnp.broadcast_to(prompts.last_token[:, None], (B, G)).astype(jnp.int32)
        loop = Loop(
            jnp.zeros((), jnp.int32),
            first,
            policy.init_cache(B, G, self.max_new_tokens),
            _empty_rollout((B, G, self.max_new_tokens), self.pad_token_id),
        )
        return State(policy.decode_weights(params), captions, loop)

    def decoded(
        self, state: State, *, down_to: int = 0, until: Int[Array, ""] | None = None
    ) -> State:
        """Goes on until no more than `down_to` captions are running, or before step `until`."""
        last = self.max_new_tokens if until is None else jnp.minimum(until, self.max_new_tokens)

        def going_on(loop: Loop) -> Bool[Array, ""]:
            return (loop.step < last) & (jnp.sum(~loop.rollout.ended) > down_to)

        token = partial(self._token, state.weights, state.captions)
        return state._replace(loop=jax.lax.while_loop(going_on, token, state.loop))

    def _token(self, weights: DecodeWeights, captions: Captions, loop: Loop) -> Loop:
        """One more of each caption."""
        step, token, cache, rollout = loop
        logits, cache = self.policy.decode_step(
            weights,
            captions.prompt_cache,
            captions.prompt_mask,
            cache,
            token,
            jnp.broadcast_to(captions.last_position[:, None] + step, token.shape),
            step,
        )
        logits = policy_logits(
            logits, temperature=self.temperature, banned_tokens=self.banned_tokens, axis=0
        )
        drawn = draw(
            logits,
            captions.uniforms[step],
            temperature=self.temperature,
            top_p=self.top_p,
            likeliest=captions.likeliest,
        )
        token, logprob = (x.reshape(token.shape) for x in drawn)
        token = jnp.where(rollout.ended, self.pad_token_id, token).astype(jnp.int32)
        rollout = _append(rollout, step, token, logprob, stop_tokens=self.stop_tokens)
        return Loop(step + 1, token, cache, rollout)


def flat(rollout: Rollout) -> Rollout:
    """[b g *] -> [n *]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)


def _uniforms(keys: Key[Array, " n"], steps: int) -> Float[Array, "{steps} n"]:
    """The number that caption n draws with in each step.

    All of them at once: made in the loop, they would be many small operations every step.
    """

    def numbers_of(step):  # [n], each from the key of its caption
        return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step)))(keys)

    return jax.vmap(numbers_of)(jnp.arange(steps))


def _empty_rollout(shape: tuple[int, int, int], pad_token_id: int) -> Rollout:
    """What the loop starts with, [b g c]: no token yet."""
    # Arrays made of constants have no sharding of their own to start the loop with.
    return constrain_batch(
        Rollout(
            tokens=jnp.full(shape, pad_token_id, jnp.int32),
            mask=jnp.zeros(shape, bool),
            logprobs=jnp.zeros(shape, jnp.float32),
            ended=jnp.zeros(shape[:2], bool),
        )
    )


def _append(
    rollout: Rollout,
    step: Int[Array, ""],
    token: Int[Array, "b g"],
    logprob: Float[Array, "b g"],
    *,
    stop_tokens: tuple[int, ...],
) -> Rollout:
    """With the tokens of one more step; captions that have ended get padding."""
    running = ~rollout.ended

    def write(buffer, value):
        return jax.lax.dynamic_update_index_in_dim(buffer, value, step, axis=2)

    stopped = jnp.any(token[..., None] == jnp.asarray(stop_tokens)[None, None], axis=-1)
    return Rollout(
        tokens=write(rollout.tokens, token),
        mask=write(rollout.mask, running),
        logprobs=write(rollout.logprobs, jnp.where(running, logprob, 0.0)),
        ended=rollout.ended | stopped,
    )
