"""What a decode step and an update must move and multiply, and how fast this device can do that."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from balcap_jax.bench.step_ours import Ours, new_update
from balcap_jax.plan.workloads.workload import abstract, size_of
from balcap_jax.rl.train_state import split_trainable
from balcap_jax.rollout.sampling import sample
from balcap_jax.runs.flops import count, without_remat


class Work(NamedTuple):
    """What cannot be left out: bytes between memory and processor, and flops."""

    bytes: int
    flops: int


class Rates(NamedTuple):
    """Measured on a copy and on a matmul that are large enough."""

    bytes_per_second: float
    flops_per_second: float


class Floors(NamedTuple):
    """Seconds below which a device of these rates cannot do this work."""

    bytes_seconds: float
    flops_seconds: float

    def share(self, seconds: float) -> float:
        """How much of the higher floor is reached by `seconds`; 1 is the limit."""
        return max(self) / seconds


def floors(work: Work, rates: Rates) -> Floors:
    return Floors(work.bytes / rates.bytes_per_second, work.flops / rates.flops_per_second)


def measured_rates(dtype: str, *, copy_bytes: int, matrix: int, rounds: int = 7) -> Rates:
    """The best of some rounds of each.

    Args:
      dtype: of the matmul.
      copy_bytes: of the array that is copied; it is read once and written once.
      matrix: side of the two square matrices.
    """
    # Random: of equal numbers a chip draws less power, and multiplies faster than any model does.
    x = jax.random.normal(jax.random.key(0), copy_bytes // 4, jnp.float32)
    a = jax.random.normal(jax.random.key(1), (matrix, matrix), dtype)
    # Donated, so that the copy has no new memory to ask for.
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, moved = _best(lambda x: (copy(x),), (x,), rounds)
    matmul = jax.jit(lambda a, b: a @ b)
    _, multiplied = _best(lambda a, _: (a, matmul(a, a)), (a, a), rounds)
    return Rates(2 * copy_bytes / moved, 2 * matrix**3 / multiplied)


def decode_work(side: Ours) -> Work:
    """One step of the decode loop, the mean over the C steps.

    Bytes: the decoder's weights, the keys and values of the real tokens of the prompts (once per
    image) and of the captions so far. Flops: counted in the program.
    """
    preset, params = side.preset, side.state.params
    text, itemsize = preset.config.text, jnp.dtype(preset.dtype).itemsize
    model, tied = params["language_model"], preset.config.tie_word_embeddings
    read = (model["layers"], model["embed_tokens"] if tied else params["lm_head"])
    # The rollout's copy of them, in the dtype of the matmuls; those of the state are float32.
    weights = itemsize * sum(x.size for x in jax.tree.leaves(read))
    prefixes = int(side.processor.batch.mask.sum())
    captions = preset.batch * preset.group * (preset.completion + 1) / 2
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * itemsize
    inputs = abstract((params, side.batch.prompts, side.batch.features))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (preset.batch, preset.group)))
    jaxpr = jax.make_jaxpr(
        lambda *args: sample(
            side.policy,
            *args,
            max_new_tokens=preset.completion,
            stop_tokens=(),
            pad_token_id=0,
            banned_tokens=preset.config.banned_tokens,
        )
    )(*inputs, keys).jaxpr
    steps = preset.completion
    flops = (count(jaxpr, trips=steps) - count(jaxpr, trips=0)) // steps
    return Work(weights + int(token * (prefixes + captions)), flops)


def update_work(side: Ours) -> Work:
    """One update.

    Bytes: parameters and moments read and written once, gradients in float32 written and read
    once; no activations. Flops: the model's, without what is made again in the backward pass.
    """
    trainable, _ = split_trainable(side.state.params, trained=side.policy.parts["decoder"])
    gradients = 4 * sum(x.size for x in jax.tree.leaves(trainable))
    moved = 2 * (size_of(trainable) + size_of(side.state.opt_state) + gradients)
    with without_remat(), jax.set_mesh(side.mesh):
        update = new_update(side).__wrapped__
        flops = count(update.trace(abstract(side.state), abstract(side.batch)).jaxpr.jaxpr)
    return Work(moved, flops)


def _best(function, arguments, rounds: int):
    """(last results, least seconds) of calls that take the results of the one before."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        arguments = jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return arguments, min(times[1:])  # the first compiles
