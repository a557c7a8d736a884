"""Sampling: prefill and decode loop in one jitted program, or in several that look between them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from balcap_jax.models.decoder.decode_step import DecodeWeights
from balcap_jax.models.inputs import AnyArray, ImagePatches, Prompts
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import on_own_rows
from balcap_jax.rollout.decoding import Captions, Decoder, Loop, Rollout, State, flat

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
        sizes. On several devices each does so with its own captions, and needs all parameters.
    """
    decoder = Decoder(
        policy,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        pad_token_id=pad_token_id,
        temperature=temperature,
        top_p=top_p,
        banned_tokens=banned_tokens,
        greedy=greedy,
    )
    if not compact:
        return decoder.decoded(decoder.start(params, prompts, features, keys)).loop.rollout
    compacted = on_own_rows(partial(_compacted, decoder, compact))
    return compacted(params, prompts, features, keys)


def _compacted(
    decoder: Decoder,
    compact: tuple[int, ...],
    params: dict,
    prompts: Prompts,
    features: Float[AnyArray, "b m d"],
    keys: Key[Array, "b g"],
) -> Rollout:
    (B, G), state = keys.shape, decoder.start(params, prompts, features, keys)
    whole, places, group = flat(state.loop.rollout), jnp.arange(B * G), G
    for size, then in zip((B * G, *compact), (*compact, 0), strict=True):
        if size < B * G:
            # Those that are running come first; the others only fill up.
            index = jnp.argsort(state.loop.rollout.ended.reshape(-1), stable=True)[:size]
            state = state._replace(
                captions=state.captions.take(index, group), loop=state.loop.take(index)
            )
            places, group = places[index], 1
        state = decoder.decoded(state, down_to=then)
        whole = _put(whole, places, flat(state.loop.rollout))
    return jax.tree.map(lambda x: x.reshape(B, G, *x.shape[1:]), whole)


@partial(jax.jit, static_argnames=("decoder", "steps"))
def begin(
    decoder: Decoder,
    params: dict,
    prompts: Prompts,
    features: Float[AnyArray, "b m d"],
    keys: Key[Array, "b g"],
    *,
    steps: int,
) -> tuple[State, Int[Array, ""]]:
    """The first `steps` steps of `sample`, and how many captions are running after them.

    The same tokens as in one program, but for the rounding of another compilation.
    """
    # With steps, not without: the loop tells the compiler how the cache lies over the mesh.
    state = decoder.decoded(decoder.start(params, prompts, features, keys), until=jnp.int32(steps))
    return state, _running(state)


# The loop's arrays alone are used up: what else is in a state may be the policy's own weights.
@partial(jax.jit, static_argnames=("decoder", "steps"), donate_argnames="loop")
def _more(
    decoder: Decoder, weights: DecodeWeights, captions: Captions, loop: Loop, *, steps: int
) -> tuple[Loop, Int[Array, ""]]:
    state = State(weights, captions, loop)
    state = decoder.decoded(state, until=loop.step + steps)
    return state.loop, _running(state)


def go_on(
    decoder: Decoder, state: State, *, steps: int, by: Callable[..., tuple[Loop, Array]] = _more
) -> tuple[State, Int[Array, ""]]:
    """The next `steps` steps behind `begin`; the loop of `state` is used up.

    Args:
      by: the jitted program.
    """
    loop, running = by(decoder, *state, steps=steps)
    return state._replace(loop=loop), running


def _running(state: State) -> Int[Array, ""]:
    """How many captions have neither ended nor reached their last slot."""
    rollout = state.loop.rollout
    open_ = jnp.sum(~rollout.ended)
    return jnp.where(state.loop.step < rollout.tokens.shape[-1], open_, 0)


class Programs(NamedTuple):
    """`sample`, `begin` and `go_on`."""

    sample: Callable[..., Rollout]
    begin: Callable[..., tuple[State, Array]]
    go_on: Callable[..., tuple[State, Array]]


# With so few rows XLA's own matmuls on GPUs cut the sum over the inputs in parts, and what adds
# these up reads them across: a seventh of a step of 3B on an H200. So by cuBLAS alone.
_CUBLAS = {"xla_gpu_enable_triton_gemm": False}
_STEPS = ("decoder", "steps")
_PROGRAMS = Programs(sample, begin, go_on)
_ON_GPU = Programs(
    jax.jit(sample.__wrapped__, static_argnames=_STATIC, compiler_options=_CUBLAS),
    jax.jit(begin.__wrapped__, static_argnames=_STEPS, compiler_options=_CUBLAS),
    partial(
        go_on,
        by=jax.jit(
            _more.__wrapped__,
            static_argnames=_STEPS,
            donate_argnames="loop",
            compiler_options=_CUBLAS,
        ),
    ),
)


def programs_on(platform: str) -> Programs:
    """Compiled as the devices of this platform ("cpu", "gpu", "tpu") run them best."""
    return _ON_GPU if platform == "gpu" else _PROGRAMS


def sizes_of_compaction(captions: int, mesh: Mesh) -> tuple[int, ...]:
    """`compact` for so many captions: a half, a quarter and an eighth of a device's, 16 at least.

    On a CPU a step takes time by the number of captions. On other devices, where it is bound by
    reading weights, it would hardly be shorter; nothing was measured there, so there is none. Nor
    where devices share a copy of the policy.
    """
    alone = mesh.shape["data"] == mesh.size
    if not alone or mesh.devices.flat[0].platform != "cpu":
        return ()
    own = captions // mesh.size
    return tuple(own // parts for parts in (2, 4, 8) if own // parts >= _FEWEST)


def _put(whole: Rollout, places: Int[Array, " n"], some: Rollout) -> Rollout:
    return jax.tree.map(lambda x, y: x.at[places].set(y), whole, some)
