"""From what a model answers to chances and weights of statements; arrays in, arrays out."""

import numpy as np
from jaxtyping import Float

_LEAST_WEIGHT = 1e-6  # of what is true of any image: it says nothing, but a caption may say no more


def chances(
    image: Float[np.ndarray, " n"],
    blank: Float[np.ndarray, " n"],
    *,
    alpha: float,
    beta: float,
) -> Float[np.ndarray, " n"]:
    """p = sigmoid(l_image - alpha * l_blank + beta) that a statement is true of its image.

    Args:
      image: log P(yes) - log P(no) with the image, in nats.
      blank: the same with an empty image: what the words alone make the model expect.
    """
    return sigmoid(image - alpha * blank + beta)


def weights(blank: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """w = 1 - P(yes | empty image), above 0: what is true of any image weighs nothing."""
    return np.maximum(sigmoid(-blank), _LEAST_WEIGHT)


def sigmoid(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, np.float64)))
