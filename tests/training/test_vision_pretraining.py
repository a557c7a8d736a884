"""The tower's questions: right labels, a loss by hand, and learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.scenes.world import BACKGROUNDS, COLOURS, SHAPES, WORDS, Scene, Sign, Thing
from balcap_jax.training.vision_pretraining import (
    ANSWERS,
    EMPTY_WEIGHT,
    QUESTIONS,
    pretrain_tower,
    question_loss,
    token_labels,
)


def grids(scene):
    """The labels of a scene as one 7 x 7 picture per question."""
    return dict(
        zip(QUESTIONS, np.moveaxis(token_labels(scene).reshape(7, 7, -1), -1, 0), strict=True)
    )


def test_labels_stand_where_the_thing_is():
    things = (Thing("circle", "red", row=0, col=0), Thing("star", "blue", "small"))
    labels = grids(Scene("brick", things))
    assert (labels["background"] == BACKGROUNDS.index("brick")).all()
    np.testing.assert_array_equal(labels["row"], np.arange(7)[:, None].repeat(7, 1))
    np.testing.assert_array_equal(labels["column"], np.arange(7)[None].repeat(7, 0))
    # The first cell's centre is at 18.7 px: of the tokens, at 8, 24, 40 ..., the first two are
    # within a medium radius of 12; the middle of the image, 56, is a token's centre itself.
    red = labels["colour"] == tuple(COLOURS).index("red") + 1
    assert np.argwhere(red).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    star = labels["shape"] == SHAPES.index("star") + 1
    assert np.argwhere(star).tolist() == [[3, 3]]
    for name in ("colour", "shape", "texture", "size", "count"):
        assert ((labels[name] > 0) == (red | star)).all()
    assert not labels["word"].any()


def test_labels_of_a_group_and_a_sign():
    scene = Scene(
        "white",
        (Thing("star", "blue", "small", count=4, row=2, col=2),),
        Sign("TAXI", row=0, col=1),
    )
    labels = grids(scene)
    assert set(labels["count"][labels["colour"] > 0]) == {4}
    # 35 x 16 px around (56, 18.7): the tokens at 40, 56 and 72 of the row at 24.
    assert np.argwhere(labels["word"] == WORDS.index("TAXI") + 1).tolist() == [
        [1, 2],
        [1, 3],
        [1, 4],
    ]


def test_what_is_drawn_over_counts():
    scene = Scene(
        "white",
        (Thing("circle", "red", "large"), Thing("star", "blue", "small", inside=0)),
    )
    labels = grids(scene)
    assert labels["colour"][3, 3] == tuple(COLOURS).index("blue") + 1
    assert labels["colour"][2, 2] == tuple(COLOURS).index("red") + 1


def test_loss_by_hand():
    # No knowledge: ln(number of answers) for each question, whatever the weights of the tokens.
    labels = jnp.asarray(token_labels(SceneSource("train", 1)[0].scene))[None]
    losses = question_loss(jnp.ones((1, 49, 8)), jnp.zeros((8, sum(ANSWERS))), labels)
    np.testing.assert_allclose(losses, np.log(ANSWERS), rtol=1e-5)
    # Two tokens, one under a thing: weights 1 and EMPTY_WEIGHT; the heads know the first only.
    labels = jnp.zeros((1, 2, len(ANSWERS)), jnp.int32).at[0, 0, 0].set(3)
    features = jnp.asarray([[[1.0], [0.0]]])
    heads = jnp.zeros((1, sum(ANSWERS))).at[0, 3].set(50.0)
    losses = question_loss(features, heads, labels)
    expected = EMPTY_WEIGHT * np.log(ANSWERS[0]) / (1 + EMPTY_WEIGHT)
    assert float(losses[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_tower_learns_and_nothing_else_changes():
    folder = policy_folder("base")
    policy, _ = load_pretrained(folder)
    params = policy.init(jax.random.key(0))
    processor = Processor.load(folder)
    examples = [SceneSource("train", 2)[i] for i in range(2)]
    images = processor.prompts(examples).images
    labels = np.stack([token_labels(example.scene) for example in examples])
    losses = []
    trained = pretrain_tower(
        policy,
        params,
        iter([(images, labels)] * 12),
        learning_rate=3e-3,
        steps=12,
        on_step=lambda _, loss: losses.append(np.asarray(loss)),
    )
    assert len(losses) == 12
    # The background of two images, seen twelve times.
    background = tuple(QUESTIONS).index("background")
    assert losses[-1][background] < 0.5 * losses[0][background]
    assert losses[-1].sum() < losses[0].sum() - 2
    jax.tree.map(np.testing.assert_array_equal, trained["language_model"], params["language_model"])
