"""Scenes are a function of their seed, splits share nothing, and what is true is what is drawn."""

import dataclasses
import json
import random

import numpy as np
import pytest

from balcap_jax.data.scene_source import SceneSource, export
from balcap_jax.errors import UserError
from balcap_jax.scenes import world as scenes
from balcap_jax.scenes.world import Scene, Sign, Thing, make_scene, render, split_of

SCENE = Scene(
    "grey",
    (
        Thing("circle", "red", "large", row=0, col=0),
        Thing("star", "blue", "small", row=0, col=0, inside=0),
        Thing("square", "green", row=2, col=2, dx=-4.0, dy=4.0),
        Thing("heart", "pink", row=2, col=2, dx=8.0, dy=-8.0, behind=2),
    ),
    Sign("OPEN", 0, 2),
)


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene), np.int32)


def test_a_scene_is_a_function_of_seed_split_and_index():
    scene = make_scene(3, "train", 5)
    random.seed(1)  # the global generator plays no part
    assert make_scene(3, "train", 5) == scene
    neighbours = [(4, "train", 5), (3, "heldout", 5), (3, "train", 6)]
    assert all(make_scene(*other) != scene for other in neighbours)
    np.testing.assert_array_equal(pixels(scene), pixels(make_scene(3, "train", 5)))


def test_splits_never_share_a_scene():
    def contents(split):
        return {
            json.dumps(scenes._content(make_scene(seed, split, i)), sort_keys=True)
            for seed in (0, 1)
            for i in range(600)
        }

    train, heldout = contents("train"), contents("heldout")
    assert len(train) > 1190  # of 1200: scenes hardly ever come twice
    assert not train & heldout
    for split in ("train", "heldout"):
        assert {split_of(make_scene(2, split, i)) for i in range(300)} == {split}


def test_pixels_of_jitter_do_not_make_another_scene():
    """Otherwise a train scene moved by a pixel could be held out."""
    for index in range(50):
        scene = make_scene(0, "train", index)
        moved = [dataclasses.replace(t, dx=t.dx + 1, dy=t.dy - 1) for t in scene.things]
        assert split_of(dataclasses.replace(scene, things=tuple(moved))) == "train"


def test_one_scene_in_ten_is_held_out():
    rng = random.Random(0)
    share = np.mean([split_of(scenes.random_scene(rng)) == "heldout" for _ in range(3000)])
    # 26 of 256 hash values; 4 standard errors of sqrt(0.1 * 0.9 / 3000) = 0.0055
    assert abs(share - 26 / 256) < 0.022


def test_scenes_are_rich():
    made = [make_scene(0, "train", i) for i in range(1000)]
    things = [thing for scene in made for thing in scene.things]
    assert {t.shape for t in things} == set(scenes.SHAPES)
    assert {t.colour for t in things} == set(scenes.COLOURS)
    assert {t.size for t in things} == set(scenes.SIZES)
    assert {t.texture for t in things} == set(scenes.TEXTURES)
    assert {t.count for t in things} == {1, 2, 3, 4}
    assert {s.background for s in made} == set(scenes.BACKGROUNDS)
    assert {s.sign.text for s in made if s.sign} == set(scenes.WORDS)
    assert {len(s.things) for s in made} >= {2, 3, 4, 5}
    for scene in made:
        looks = [(t.shape, t.colour) for t in scene.things]
        assert len(set(looks)) == len(looks), "shape and colour name one thing"
        lead_cells = [(t.row, t.col) for t in scene.things if t.inside is t.behind is None]
        assert len(set(lead_cells)) == len(lead_cells), "clusters do not share a cell"


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", "triangle"), ("colour", "purple"), ("size", "medium"), ("texture", "striped")]
    + [("texture", "dotted"), ("texture", "checkered"), ("count", 2), ("row", 1), ("col", 1)],
)
def test_every_attribute_is_drawn(field, value):
    other = dataclasses.replace(SCENE.things[0], **{field: value})
    changed = dataclasses.replace(SCENE, things=(other, *SCENE.things[1:]))
    assert np.any(np.abs(pixels(SCENE) - pixels(changed)) > 40)


def test_every_value_looks_different():
    def single(**options):
        return pixels(Scene("grey", (Thing(**{"shape": "circle", "colour": "red"} | options),)))

    for field, values in (
        ("shape", scenes.SHAPES),
        ("colour", tuple(scenes.COLOURS)),
        ("size", scenes.SIZES),
        ("texture", scenes.TEXTURES),
    ):
        drawn = [single(**{field: value}) for value in values]
        for i, image in enumerate(drawn):
            assert all(np.abs(image - other).max() > 40 for other in drawn[:i]), (field, values[i])


@pytest.mark.parametrize("background", scenes.BACKGROUNDS)
def test_background_and_sign_are_drawn(background):
    scene = dataclasses.replace(SCENE, background=background)
    assert background == "grey" or np.any(pixels(SCENE) != pixels(scene))
    for sign in (None, Sign("EXIT", 0, 2), Sign("OPEN", 1, 1)):
        assert np.any(pixels(scene) != pixels(dataclasses.replace(scene, sign=sign)))


def test_what_hides_is_drawn_over_what_is_hidden_and_a_content_over_its_holder():
    image = pixels(SCENE)
    front = image[112 - 17, 112 - 21]  # the middle of the green square
    np.testing.assert_allclose(front, scenes.COLOURS["green"], atol=8)
    np.testing.assert_allclose(image[18, 18], scenes.COLOURS["blue"], atol=8)  # in the circle
    alone = dataclasses.replace(SCENE, things=SCENE.things[:3])
    # Inside the cell of the two: the heart can still be seen.
    assert np.sum(np.any(image != pixels(alone), axis=-1)) > 60


def test_image_is_rgb_of_the_stated_size():
    image = render(SCENE)
    assert (image.mode, image.size) == ("RGB", (scenes.SIZE, scenes.SIZE))


def test_json_round_trip():
    for scene in (SCENE, *(make_scene(0, "train", i) for i in range(100))):
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def broken(**changes):
    return SCENE.to_json() | changes


def with_thing(**changes):
    return broken(things=[SCENE.to_json()["things"][0] | changes])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "things"),
        ([], "scene"),
        ("text", "scene"),
        (broken(things=None), "scene"),
        (broken(things=[{"shape": "circle"}]), "colour"),
        (broken(background="lava"), "lava"),
        (with_thing(shape="glorp"), "glorp"),
        (with_thing(colour="mauve"), "mauve"),
        (with_thing(count=9), "9"),
        (with_thing(row=3), "3"),
        (with_thing(inside=7), "7"),
        (with_thing(inside=0), "inside"),  # in itself
        (with_thing(dx=float("nan")), "dx"),
        (with_thing(dy=4000.0), "4000"),
        (with_thing(weight=1), "weight"),
        (broken(sign={"text": "GLORP", "row": 0, "col": 0}), "GLORP"),
        (broken(sign={"text": "OPEN", "row": 5, "col": 0}), "5"),
        (broken(sign={"text": "OPEN"}), "row"),
        (broken(sign="OPEN"), "scene"),
    ],
)
def test_bad_json_is_the_users_mistake(data, said):
    with pytest.raises(UserError) as caught:
        Scene.from_json(data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_source_yields_examples_by_index():
    source = SceneSource("heldout", 4, seed=2)
    example = source[3]
    assert len(source) == 4
    assert example.scene == make_scene(2, "heldout", 3)
    assert example.id == "heldout-2-000003"
    assert example.reference == source[3].reference
    assert example.image.tobytes() == source[3].image.tobytes()
    for index in (-1, 4):
        with pytest.raises(IndexError):
            source[index]


def test_export_writes_what_the_source_yields_and_overwrites_nothing(tmp_path):
    from balcap_jax.data.caption_files import CaptionFile

    path = export(tmp_path / "made", split="train", count=3, seed=1)
    read, source = CaptionFile(path, max_bad_images=0), SceneSource("train", 3, seed=1)
    assert len(read) == 3
    for i in range(3):
        columns = source[i].columns  # of a file also those that are not read
        assert read[i]._replace(image=None, columns=columns) == source[i]._replace(image=None)
        assert read[i].image.tobytes() == source[i].image.tobytes()
    before = path.read_bytes()
    with pytest.raises(UserError, match="not overwritten"):
        export(tmp_path / "made", split="train", count=1)
    assert path.read_bytes() == before
