"""The tiny policy's batch of one update, for tests of updates."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rl.train_state import make_optimizer
from balcap_jax.rl.update import Batch

BANNED = (tiny.VISION_START, tiny.VISION_END, tiny.IMAGE, tiny.VIDEO)
B, G, C = 8, 3, 5
ONE = make_mesh(devices=jax.devices()[:1])
POLICY, PARAMS = tiny.policy()
encode = jax.jit(POLICY.encode_images)


@partial(jax.jit, static_argnames="temperature")
def exact_logprobs(params, prompts, features, tokens, temperature=1.0):
    """All logits at once: no chunks."""
    hidden = POLICY.completion_hidden(params, prompts, features, tokens)
    logits = POLICY.project(params, hidden) / temperature
    logprobs = jax.nn.log_softmax(logits.at[..., jnp.array(BANNED)].set(-jnp.inf))
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def make_batch(prompts: int = B, seed: int = 0) -> Batch:
    """Random completions of all lengths, one caption without signal; off-policy by up to 0.5."""
    rng = np.random.default_rng(seed)
    inputs = tiny.prompts(prompts)
    tokens = tiny.completions(prompts, G, C, seed=seed)
    lengths = rng.integers(1, C + 1, (prompts, G))
    mask = jnp.asarray(np.arange(C) < lengths[..., None])
    features = encode(PARAMS, inputs.images)
    logprobs = exact_logprobs(PARAMS, inputs, features, tokens)
    valid = np.ones((prompts, G), bool)
    valid[0, 1] = False
    return Batch(
        prompts=inputs,
        tokens=tokens,
        mask=mask,
        old_logprobs=jnp.where(mask, logprobs + rng.uniform(-0.5, 0.5, mask.shape), 0.0),
        advantages=jnp.asarray(rng.normal(size=(prompts, G)), jnp.float32),
        valid=jnp.asarray(valid),
        features=features,
    )


@cache
def optimizer(**options) -> optax.GradientTransformation:
    # eps is large for Adam: at 1e-8 a gradient of rounding errors makes a step of full size
    return make_optimizer(**{"learning_rate": 1e-2, "eps": 1e-3, **options})


def assert_trees_close(a, b, **tolerance):
    """The same structure, and every array within the tolerance."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)
