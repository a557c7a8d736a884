"""A new vision tower learns to see before it learns to talk, as the towers of real policies have.

Every image token is asked what it shows: colour, shape, texture, size and number of the things
under it, the word of the sign, the background, and its own row and column. The heads that answer
are thrown away. Steps count for more than images per step here, so batches are small and most
scenes crowded.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from balcap_jax.models.inputs import ImagePatches
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    WORDS,
    Scene,
    drawn_items,
    sign_box,
)

TOKENS = 7  # image tokens along a side
# Name of each question: how many answers it has and how much it counts in the loss. Answer 0 is
# "nothing here" but for the last three. Shapes are the hardest to tell apart by far.
QUESTIONS = {
    "colour": (len(COLOURS) + 1, 1.0),
    "shape": (len(SHAPES) + 1, 3.0),
    "texture": (len(TEXTURES) + 1, 1.0),
    "size": (len(SIZES) + 1, 1.0),
    "count": (4 + 1, 1.0),
    "word": (len(WORDS) + 1, 1.0),
    "background": (len(BACKGROUNDS), 0.5),
    "row": (TOKENS, 0.5),
    "column": (TOKENS, 0.5),
}
ANSWERS = tuple(answers for answers, _ in QUESTIONS.values())
WEIGHTS = tuple(weight for _, weight in QUESTIONS.values())
_COLOUR, _WORD = (tuple(QUESTIONS).index(name) for name in ("colour", "word"))
EMPTY_WEIGHT = 0.1  # of tokens with nothing on them, which are most of an image


def token_labels(scene: Scene) -> Int[np.ndarray, "m q"]:
    """The right answers of each of the 49 tokens of a scene's image, row by row."""
    labels = {name: np.zeros((TOKENS, TOKENS), np.int32) for name in QUESTIONS}
    labels["background"][:] = BACKGROUNDS.index(scene.background)
    labels["row"][:], labels["column"][:] = np.mgrid[:TOKENS, :TOKENS]
    centres = (np.arange(TOKENS) + 0.5) * SIZE / TOKENS
    ys, xs = centres[:, None], centres[None]
    for thing, x, y, radius in drawn_items(scene):
        under = (np.abs(ys - y) < radius) & (np.abs(xs - x) < radius)
        labels["colour"][under] = tuple(COLOURS).index(thing.colour) + 1
        labels["shape"][under] = SHAPES.index(thing.shape) + 1
        labels["texture"][under] = TEXTURES.index(thing.texture) + 1
        labels["size"][under] = SIZES.index(thing.size) + 1
        labels["count"][under] = thing.count
    if scene.sign is not None:
        left, top, right, bottom = sign_box(scene.sign)
        under = (top < ys) & (ys < bottom) & (left < xs) & (xs < right)
        labels["word"][under] = WORDS.index(scene.sign.text) + 1
    return np.stack(list(labels.values()), axis=-1).reshape(-1, len(QUESTIONS))


def question_loss(
    features: Float[Array, "b m d"], heads: Float[Array, "d a"], labels: Int[Array, "b m q"]
) -> Float[Array, " q"]:
    """Mean cross-entropy of each question over the tokens, those that show a thing or a sign
    counting most.
    """
    logits = jnp.split(features @ heads, np.cumsum(ANSWERS)[:-1], axis=-1)
    shown = (labels[..., _COLOUR] > 0) | (labels[..., _WORD] > 0)
    weight = jnp.where(shown, 1.0, EMPTY_WEIGHT)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(part, labels[..., i])
        for i, part in enumerate(logits)
    ]
    return jnp.stack([jnp.sum(weight * loss) / jnp.sum(weight) for loss in losses])


def pretrain_tower(
    policy: VisionLanguagePolicy,
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
        return jnp.dot(losses, jnp.array(WEIGHTS)), losses

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
