"""A new vision tower learns to see before it learns to talk, as the towers of real policies have.

Every image token is asked what it shows: colour, shape, texture and size of the thing under it, the
background, and its own row and column. The heads that answer are thrown away.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from balcap_jax.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    Scene,
    drawn_items,
)
from balcap_jax.models.inputs import ImagePatches
from balcap_jax.models.qwen2_5_vl import Qwen2_5_VL

TOKENS = 7  # image tokens along a side
# Number of answers per question; 0 is "no thing here" for the first four.
ANSWERS = (
    len(COLOURS) + 1,
    len(SHAPES) + 1,
    len(TEXTURES) + 1,
    len(SIZES) + 1,
    len(BACKGROUNDS),
    TOKENS,
    TOKENS,
)
EMPTY_WEIGHT = 0.1  # of tokens without a thing, which are most of them


def token_labels(scene: Scene) -> Int[np.ndarray, "m q"]:
    """The right answers of each of the 49 tokens of a scene's image, row by row."""
    labels = np.zeros((TOKENS, TOKENS, len(ANSWERS)), np.int32)
    labels[..., 4] = BACKGROUNDS.index(scene.background)
    labels[..., 5], labels[..., 6] = np.mgrid[:TOKENS, :TOKENS]
    centres = (np.arange(TOKENS) + 0.5) * SIZE / TOKENS
    for thing, x, y, radius in drawn_items(scene):
        under = (np.abs(centres[:, None] - y) < radius) & (np.abs(centres[None] - x) < radius)
        labels[under, :4] = (
            tuple(COLOURS).index(thing.colour) + 1,
            SHAPES.index(thing.shape) + 1,
            TEXTURES.index(thing.texture) + 1,
            SIZES.index(thing.size) + 1,
        )
    return labels.reshape(-1, len(ANSWERS))


def question_loss(
    features: Float[Array, "b m d"], heads: Float[Array, "d a"], labels: Int[Array, "b m q"]
) -> Float[Array, " q"]:
    """Mean cross-entropy of each question over the tokens, those under a thing counting most."""
    logits = jnp.split(features @ heads, np.cumsum(ANSWERS)[:-1], axis=-1)
    weight = jnp.where(labels[..., 0] > 0, 1.0, EMPTY_WEIGHT)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(part, labels[..., i])
        for i, part in enumerate(logits)
    ]
    return jnp.stack([jnp.sum(weight * loss) / jnp.sum(weight) for loss in losses])


def pretrain_tower(
    policy: Qwen2_5_VL,
    params: dict,
    batches: Iterator[tuple[ImagePatches, Int[np.ndarray, "b m q"]]],
    *,
    learning_rate: float,
    steps: int,
    on_step: Callable[[int, np.ndarray], None],
) -> dict:
    """`params` with a tower that answers, trained on the first `steps` batches.

    Args:
      on_step: called with the number of the step and the loss of each question.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98))
    width = policy.config.text.hidden_size
    heads = 0.02 * jax.random.normal(jax.random.key(1), (width, sum(ANSWERS)))
    trained: Any = (params["visual"], heads)
    opt_state = optimizer.init(trained)

    def loss_of(trained: Any, images: ImagePatches, labels: Array):
        visual, heads = trained
        features = policy.encode_images({**params, "visual": visual}, images)
        losses = question_loss(features[:, : labels.shape[1]], heads, labels)
        return jnp.sum(losses), losses

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(trained: Any, opt_state: Any, images: ImagePatches, labels: Array):
        gradients, losses = jax.grad(loss_of, has_aux=True)(trained, images, labels)
        updates, opt_state = optimizer.update(gradients, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, losses

    for number in range(1, steps + 1):
        images, labels = next(batches)
        trained, opt_state, losses = step(trained, opt_state, images, labels)
        on_step(number, losses)
    return {**params, "visual": trained[0]}
