"""Sampling: prefill and decode loop in one jitted program, G captions from one prefill."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from balcap_jax.models.decoder.decode_step import Cache
from balcap_jax.models.inputs import AnyArray, ImagePatches, Prompts
from balcap_jax.models.logprobs import policy_logits
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import constrain_batch, tensor_shards

_FEWEST = 16  # captions that a smaller loop is compiled for
_STATIC = (  # of `sample`
    "policy",
    "max_new_tokens",
    "temperature",
    "top_p",
    "banned_tokens",
    "stop_tokens",
    "pad_token_id",
    "greedy",
    "compact",
)


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


class _Captions(NamedTuple):
    """What the decode loop reads of its captions and does not change."""

    prompt_cache: Cache
    prompt_mask: Bool[Array, "b p"]
    last_position: Int[Array, " b"]
    uniforms: Float[Array, "c n"]
    likeliest: Bool[Array, " n"] | None

    def take(self, index: Int[Array, " n"], group: int) -> "_Captions":
        """Some of the captions, each with a prompt of its own."""
        prompt = index // group
        return _Captions(
            tuple(slots.take(prompt, len(self.prompt_mask)) for slots in self.prompt_cache),
            self.prompt_mask[prompt],
            self.last_position[prompt],
            self.uniforms[:, index],
            None if self.likeliest is None else self.likeliest[index],
        )


class _Loop(NamedTuple):
    """The carry of the decode loop."""

    step: Int[Array, ""]
    token: Int[Array, "b g"]  # the input of this step
    cache: Cache
    rollout: Rollout

    def take(self, index: Int[Array, " n"]) -> "_Loop":
        """Some of the captions, as groups of one."""
        count = self.token.size
        return _Loop(
            self.step,
            self.token.reshape(-1)[index][:, None],
            tuple(slots.take(index, count) for slots in self.cache),
            jax.tree.map(lambda x: x[index][:, None], _flat(self.rollout)),
        )


@partial(jax.jit, static_argnames="policy")
def encode_images(
    policy: VisionLanguagePolicy, params: dict, images: ImagePatches
) -> Float[Array, "b m d"]:
    """`policy.encode_images`, jitted: compiled once for all who sample from this policy."""
    return policy.encode_images(params, images)


@partial(jax.jit, static_argnames="group_size")
def caption_keys(
    key: Key[Array, ""], images: Int[AnyArray, " b"], *, group_size: int
) -> Key[Array, "b g"]:
    """One key per caption: fold_in(fold_in(key, image), place in the group).

    Args:
      key: key of the rollout, e.g. fold_in(run_key, step).
      images: a number for each image. Numbers that name the image (its place in the data set, not
        in the batch) make its captions independent of how the data set is cut to batches.
    """

    def keys_of(image):
        image_key = jax.random.fold_in(key, image)
        return jax.vmap(partial(jax.random.fold_in, image_key))(jnp.arange(group_size))

    return jax.vmap(keys_of)(jnp.asarray(images))


def nucleus(logprobs: Float[Array, " v *batch"], *, top_p: float) -> Float[Array, " v *batch"]:
    """The smallest set of likeliest tokens whose probabilities reach `top_p`; -inf elsewhere.

    The token that crosses `top_p` is kept, so the set is never empty; tokens as likely as the last
    one kept are kept too. Not renormalised: `draw` does not care. Holtzman et al.,
    arXiv:1904.09751.
    """
    ordered = jnp.sort(logprobs, axis=0, descending=True)
    probabilities = jnp.exp(ordered)
    before = jnp.cumsum(probabilities, axis=0) - probabilities
    # before[0] is 0 exactly; the later ones may round to below top_p = 1 only, which keeps all.
    last = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=0, keepdims=True)
    return jnp.where(logprobs >= last, logprobs, -jnp.inf)


def draw(
    logits: Float[Array, "v n"],
    uniform: Float[Array, " n"],
    *,
    temperature: float,
    top_p: float,
    likeliest: Bool[Array, " n"] | None = None,
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """One token per caption, by one uniform number; at temperature 0 the likeliest.

    Args:
      logits: of `policy_logits`, which has divided them by the temperature.
      uniform: from 0 to below 1; not read at temperature 0.
      likeliest: captions that take the likeliest token all the same.

    Returns:
      Tokens, and their logprobs before top-p cuts the tail.
    """
    top = jnp.max(logits, axis=0)
    weights = jnp.exp(logits - top[None])
    log_sum = top + jnp.log(jnp.sum(weights, axis=0))
    if temperature == 0:
        tokens = jnp.argmax(logits, axis=0)
    else:
        if top_p < 1:
            weights = jnp.exp(nucleus(logits - log_sum[None], top_p=top_p))
        # One number, where Gumbel-max takes one per word, which is slow to make on a CPU.
        tokens = invert_cumulative(weights, uniform)
        if likeliest is not None:
            tokens = jnp.where(likeliest, jnp.argmax(logits, axis=0), tokens)
    return tokens, jnp.take_along_axis(logits, tokens[None], axis=0)[0] - log_sum


def invert_cumulative(
    weights: Float[Array, " v *batch"], uniform: Float[Array, "*batch"], *, block: int = 256
) -> Int[Array, "*batch"]:
    """The first word up to which the weights sum to more than `uniform` of their total.

    In two levels, the sums of blocks of words and then the words of one block: a cumulative sum of
    all words takes many passes over them. Sums round, at the borders between words by about 1e-7 of
    the total, but a word of weight 0 is never returned.

    Args:
      weights: at least 0, not all 0; need not sum to 1.
      uniform: from 0 to below 1.
    """

    def first_above(sizes: Array, target: Array) -> Array:
        """Where the sum of `sizes` goes above `target`; the largest if rounding says nowhere."""
        above = (jnp.cumsum(sizes, axis=0) > target[None]) & (sizes > 0)
        return jnp.where(jnp.any(above, axis=0), jnp.argmax(above, axis=0), jnp.argmax(sizes, 0))

    def at(x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index[None], axis=0)[0]

    # Whole blocks on every device: those that share one would gather all their words for it.
    padding = [(0, -len(weights) % (block * tensor_shards()))] + [(0, 0)] * (weights.ndim - 1)
    blocks = jnp.pad(weights, padding).reshape(-1, block, *weights.shape[1:])
    sizes = jnp.sum(blocks, axis=1)
    target = uniform * jnp.sum(sizes, axis=0)
    which = first_above(sizes, target)
    words = jnp.take_along_axis(blocks, which[None, None], axis=0)[0]
    before = at(jnp.cumsum(sizes, axis=0), which) - at(sizes, which)
    return which * block + first_above(words, target - before)


@partial(jax.jit, static_argnames=_STATIC)
def sample(
    policy: VisionLanguagePolicy,
    params: dict,
    prompts: Prompts,
    features: Float[AnyArray, "b m d"],
    keys: Key[Array, "b g"],
    *,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...],
    pad_token_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    banned_tokens: tuple[int, ...] = (),
    greedy: int = 0,
    compact: tuple[int, ...] = (),
) -> Rollout:
    """G captions for each of B images; G is the width of `keys`.

    A caption depends on its key, its prompt and the parameters, on nothing else in the batch: step
    t draws with fold_in(key, t). The loop leaves as soon as every caption has ended.

    The logprobs are log softmax(logits / temperature) with banned tokens at -inf, *before* top-p
    cuts the tail: exactly what the update computes again. At temperature 0 they are those of
    temperature 1.

    Args:
      greedy: so many captions of each image, the last ones, take the likeliest token everywhere.
      compact: numbers of captions, falling. As soon as no more than that are running, the loop goes
        on with so many columns, which costs less where a step's time goes with their number (see
        `sizes_of_compaction`). What is drawn is the same but for the rounding of matmuls of other
        sizes. Of arrays that are on one device.
    """
    B, G = keys.shape
    # Once, before the loop: a slice of the stacked weights inside it would be a copy every step.
    weights = policy.decode_weights(params)
    captions = _Captions(
        policy.prefill(params, prompts, features),
        jnp.asarray(prompts.mask),
        jnp.asarray(prompts.last_position),
        _uniforms(keys.reshape(-1), max_new_tokens),
        jnp.tile(jnp.arange(G) >= G - greedy, B) if greedy else None,
    )

    def decode(captions: _Captions, loop: _Loop) -> _Loop:
        step, token, cache, rollout = loop
        logits, cache = policy.decode_step(
            weights,
            captions.prompt_cache,
            captions.prompt_mask,
            cache,
            token,
            jnp.broadcast_to(captions.last_position[:, None] + step, token.shape),
            step,
        )
        logits = policy_logits(logits, temperature=temperature, banned_tokens=banned_tokens, axis=0)
        drawn = draw(
            logits,
            captions.uniforms[step],
            temperature=temperature,
            top_p=top_p,
            likeliest=captions.likeliest,
        )
        token, logprob = (x.reshape(token.shape) for x in drawn)
        token = jnp.where(rollout.ended, pad_token_id, token).astype(jnp.int32)
        rollout = _append(rollout, step, token, logprob, stop_tokens=stop_tokens)
        return _Loop(step + 1, token, cache, rollout)

    def decoded(captions: _Captions, loop: _Loop, *, down_to: int) -> _Loop:
        """Until so few are running."""

        def going_on(loop: _Loop) -> Bool[Array, ""]:
            return (loop.step < max_new_tokens) & (jnp.sum(~loop.rollout.ended) > down_to)

        return jax.lax.while_loop(going_on, partial(decode, captions), loop)

    cache = policy.init_cache(B, G, max_new_tokens)
    start = jnp.broadcast_to(prompts.last_token[:, None], (B, G))
    nothing = _empty_rollout((B, G, max_new_tokens), pad_token_id)
    loop = _Loop(jnp.zeros((), jnp.int32), start.astype(jnp.int32), cache, nothing)
    if not compact:
        return decoded(captions, loop, down_to=0).rollout
    whole, places, group = _flat(nothing), jnp.arange(B * G), G
    for size, then in zip((B * G, *compact), (*compact, 0), strict=True):
        if size < B * G:
            # Those that are running come first; the others only fill up.
            index = jnp.argsort(loop.rollout.ended.reshape(-1), stable=True)[:size]
            captions, loop = captions.take(index, group), loop.take(index)
            places, group = places[index], 1
        loop = decoded(captions, loop, down_to=then)
        whole = _put(whole, places, _flat(loop.rollout))
    return jax.tree.map(lambda x: x.reshape(B, G, *x.shape[1:]), whole)


# The same for GPUs, by cuBLAS alone. With so few rows XLA's own matmuls cut the sum over the inputs
# in parts, and what adds these up reads them across: a seventh of a step of 3B on an H200.
_sample_on_gpu = jax.jit(
    sample.__wrapped__,
    static_argnames=_STATIC,
    compiler_options={"xla_gpu_enable_triton_gemm": False},
)


def sample_on(platform: str) -> Callable[..., Rollout]:
    """`sample`, compiled as the devices of this platform ("cpu", "gpu", "tpu") run it best."""
    return _sample_on_gpu if platform == "gpu" else sample


def sizes_of_compaction(captions: int, mesh: Mesh) -> tuple[int, ...]:
    """`compact` for so many captions: a half, a quarter and an eighth, of 16 at least.

    On one CPU a step takes time by the number of captions. On other devices, where it is bound by
    reading weights, it would hardly be shorter, and several would have to share out the rest;
    nothing was measured there, so there is none.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return ()
    return tuple(captions // parts for parts in (2, 4, 8) if captions // parts >= _FEWEST)


def _put(whole: Rollout, places: Int[Array, " n"], some: Rollout) -> Rollout:
    return jax.tree.map(lambda x, y: x.at[places].set(y), whole, some)


def _flat(rollout: Rollout) -> Rollout:
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
