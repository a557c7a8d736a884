"""Synthetic scenes: images whose truth is known exactly.

A scene is a 3 x 3 arrangement of clusters (a single object, a group of equal objects, an object
inside another, an object partly hidden behind another, a sign with a word) on a background.
Everything is a function of (seed, split, index), and a scene's content alone decides its split,
so that the splits never share a scene.
"""

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from balcap_jax.errors import UserError

Split = Literal["train", "heldout"]

SIZE = 112  # pixels; 14 x 14 patches of 8, 7 x 7 merged tokens
GRID = 3

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 25),
    "yellow": (250, 215, 40),
    "green": (40, 150, 65),
    "blue": (35, 90, 215),
    "purple": (130, 60, 170),
    "pink": (250, 150, 190),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
}
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = (
    "white", "grey", "beige", "teal", "grass", "beach", "snow", "brick", "wood", "grid",
)  # fmt: skip
WORDS = (
    "OPEN",
    "STOP",
    "EXIT",
    "SALE",
    "HELLO",
    "MILK",
    "TAXI",
    "CAFE",
    "BOOK",
    "PARK",
    "ZOO",
    "TEA",
)

_CONTAINERS = ("circle", "square", "diamond", "heart")  # wide enough in the middle to hold another
_RADIUS = {"small": 8.0, "medium": 12.0, "large": 17.0}  # pixels
_SCALE = 3  # drawn larger and reduced, for smooth edges


@dataclass(frozen=True)
class Thing:
    """One object, or a group of `count` equal small objects, in a cell of the 3 x 3 grid.

    Attributes:
      row, col: cell, 0 is top / left.
      dx, dy: offset from the cell's centre, pixels.
      inside: index of the thing that contains this one.
      behind: index of the thing that partly hides this one.
    """

    shape: str
    colour: str
    size: str = "medium"
    texture: str = "plain"
    count: int = 1
    row: int = 1
    col: int = 1
    dx: float = 0.0
    dy: float = 0.0
    inside: int | None = None
    behind: int | None = None


@dataclass(frozen=True)
class Sign:
    """A white sign with a written word, in a cell of its own."""

    text: str
    row: int
    col: int


@dataclass(frozen=True)
class Scene:
    """Ground truth of one image."""

    background: str
    things: tuple[Thing, ...]
    sign: Sign | None = None

    def to_json(self) -> dict:
        """The scene as JSON-able data; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict) -> "Scene":
        """A scene from `to_json`'s data, checked; raises UserError for anything else."""
        try:
            things = tuple(Thing(**thing) for thing in data["things"])
            sign = Sign(**data["sign"]) if data.get("sign") else None
            scene = Scene(background=data["background"], things=things, sign=sign)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"scene {str(data)[:80]!r} does not have the fields of a scene ({error}); write "
                "scenes with `balcap scenes`."
            ) from None
        _check(scene)
        return scene


def _check(scene: Scene) -> None:
    for i, thing in enumerate(scene.things):
        others = (None, *(j for j in range(len(scene.things)) if j != i))
        for value, allowed, field in (
            (thing.shape, SHAPES, "shape"),
            (thing.colour, tuple(COLOURS), "colour"),
            (thing.size, SIZES, "size"),
            (thing.texture, TEXTURES, "texture"),
            (thing.count, (1, 2, 3, 4), "count"),
            (thing.row, range(GRID), "row"),
            (thing.col, range(GRID), "col"),
            (thing.inside, others, "inside"),
            (thing.behind, others, "behind"),
        ):
            _check_choice(field, value, allowed)
        for value, field in ((thing.dx, "dx"), (thing.dy, "dy")):
            if not isinstance(value, int | float) or not abs(value) <= SIZE:
                raise UserError(
                    f"scene has {field}={value!r}; give a number of pixels from -{SIZE} to {SIZE}."
                )
    if scene.sign is not None:
        _check_choice("sign.text", scene.sign.text, WORDS)
        _check_choice("sign.row", scene.sign.row, range(GRID))
        _check_choice("sign.col", scene.sign.col, range(GRID))
    _check_choice("background", scene.background, BACKGROUNDS)


def _check_choice(field: str, value: object, allowed: Iterable) -> None:
    if value not in tuple(allowed):
        raise UserError(f"scene has {field}={value!r}; choose one of {list(allowed)}.")


# Making -----------------------------------------------------------------------------------------


def make_scene(seed: int, split: Split, index: int, *, clusters: int | None = None) -> Scene:
    """The scene number `index` of a split: a pure function of its arguments."""
    rng = random.Random(f"scene/{seed}/{split}/{index}")
    while True:
        scene = random_scene(rng, clusters=clusters)
        if split_of(scene) == split:
            return scene


def split_of(scene: Scene) -> Split:
    """The split that a scene's content belongs to: one tenth of all scenes is held out."""
    content = json.dumps(_content(scene), sort_keys=True).encode()
    return "heldout" if hashlib.sha256(content).digest()[0] % 10 == 0 else "train"


def _content(scene: Scene) -> dict:
    """What a caption could tell; jitter of a few pixels does not make another scene."""
    data = scene.to_json()
    for thing in data["things"]:
        del thing["dx"], thing["dy"]
    return data


def random_scene(rng: random.Random, *, clusters: int | None = None) -> Scene:
    """A scene of `clusters` (one to nine; default two to four), no two things with equal shape and
    colour.
    """
    cells = [(row, col) for row in range(GRID) for col in range(GRID)]
    rng.shuffle(cells)
    looks: set[tuple[str, str]] = set()
    things: list[Thing] = []

    def look(shapes: tuple[str, ...] = SHAPES) -> dict[str, str]:
        while True:
            shape, colour = rng.choice(shapes), rng.choice(tuple(COLOURS))
            if (shape, colour) not in looks:
                looks.add((shape, colour))
                return {"shape": shape, "colour": colour}

    if clusters is None:
        clusters = rng.choice((2, 2, 3, 3, 3, 4))
    for row, col in cells[:clusters]:
        place = {"row": row, "col": col, "dx": rng.uniform(-2, 2), "dy": rng.uniform(-2, 2)}
        kind = rng.choices(("single", "group", "inside", "behind"), (5, 2, 2, 2))[0]
        if len(things) >= 4 and kind in ("inside", "behind"):
            kind = "single"
        texture = rng.choice(("plain", "plain", *TEXTURES[1:]))
        if kind == "single":
            things.append(Thing(**look(), size=rng.choice(SIZES), texture=texture, **place))
        elif kind == "group":
            count = rng.choice((2, 3, 4))
            things.append(Thing(**look(), size="small", count=count, **place))
        elif kind == "inside":
            holder = len(things)
            things.append(Thing(**look(_CONTAINERS), size="large", **place))
            inner = look()
            while inner["colour"] == things[holder].colour:
                inner = look()
            things.append(Thing(**inner, size="small", **place, inside=holder))
        else:
            front = len(things)
            things.append(Thing(**look(), texture=texture, **place))
            back = look()
            while back["colour"] == things[front].colour:
                back = look()
            # Up and to the right by most of a radius: hidden in part, never as a whole.
            shifted = {**place, "dx": place["dx"] + 8, "dy": place["dy"] - 8}
            things[front] = dataclasses.replace(
                things[front], dx=place["dx"] - 4, dy=place["dy"] + 4
            )
            things.append(Thing(**back, **shifted, behind=front))
    sign = None
    if rng.random() < 0.25 and clusters < len(cells):
        row, col = cells[clusters]
        sign = Sign(rng.choice(WORDS), row, col)
    return Scene(rng.choice(BACKGROUNDS), tuple(things), sign)


# Drawing ----------------------------------------------------------------------------------------


def render(scene: Scene) -> Image.Image:
    """Draws the scene: RGB, 112 x 112 pixels."""
    image = _background(scene.background)
    for thing, x, y, radius in drawn_items(scene):
        _draw_one(image, thing, x, y, radius)
    if scene.sign is not None:
        _draw_sign(image, scene.sign)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def _centre(row: int, col: int) -> tuple[float, float]:
    cell = SIZE / GRID
    return (col + 0.5) * cell, (row + 0.5) * cell


def _background(kind: str) -> Image.Image:
    side = SIZE * _SCALE
    plain = {
        "white": (240, 240, 240),
        "grey": (165, 165, 165),
        "beige": (225, 200, 160),
        "teal": (110, 180, 175),
        "grass": (150, 200, 240),
        "beach": (170, 220, 250),
        "snow": (45, 50, 95),
        "brick": (170, 90, 70),
        "wood": (170, 125, 75),
        "grid": (245, 245, 230),
    }
    image = Image.new("RGB", (side, side), plain[kind])
    draw = ImageDraw.Draw(image)
    ground = {"grass": (95, 165, 70), "beach": (230, 205, 140), "snow": (225, 230, 240)}
    if kind in ground:
        draw.rectangle((0, int(side * 0.55), side, side), fill=ground[kind])
    elif kind == "brick":
        height, width = side // 12, side // 6
        for j in range(13):
            y = j * height
            draw.line((0, y, side, y), fill=(215, 200, 190), width=_SCALE)
            for i in range(8):
                x = i * width + (j % 2) * width // 2
                draw.line((x, y, x, y + height), fill=(215, 200, 190), width=_SCALE)
    elif kind == "wood":
        for j in range(8):
            y = j * side // 7
            draw.line((0, y, side, y), fill=(110, 75, 40), width=2 * _SCALE)
    elif kind == "grid":
        for j in range(17):
            at = j * side // 16
            draw.line((0, at, side, at), fill=(150, 185, 215), width=_SCALE)
            draw.line((at, 0, at, side), fill=(150, 185, 215), width=_SCALE)
    return image


def _group_offsets(count: int) -> list[tuple[float, float]]:
    return {
        1: [(0.0, 0.0)],
        2: [(-9.0, 0.0), (9.0, 0.0)],
        3: [(-9.0, 8.0), (9.0, 8.0), (0.0, -9.0)],
        4: [(-9.0, -9.0), (9.0, -9.0), (-9.0, 9.0), (9.0, 9.0)],
    }[count]


def drawn_items(scene: Scene) -> list[tuple[Thing, float, float, float]]:
    """(thing, x, y, radius) in pixels of every single object, in the order of drawing."""
    # Hidden things first, contained things last.
    order = sorted(
        range(len(scene.things)),
        key=lambda i: (scene.things[i].behind is None, scene.things[i].inside is not None),
    )
    items = []
    for thing in (scene.things[i] for i in order):
        x, y = _centre(thing.row, thing.col)
        for ox, oy in _group_offsets(thing.count):
            items.append((thing, x + thing.dx + ox, y + thing.dy + oy, _RADIUS[thing.size]))
    return items


def _draw_one(image: Image.Image, thing: Thing, x: float, y: float, radius: float) -> None:
    side = int(2 * radius * _SCALE) + 1
    mask = Image.new("L", (side, side), 0)
    _draw_shape(ImageDraw.Draw(mask), thing.shape, side)
    fill = Image.new("RGB", (side, side), COLOURS[thing.colour])
    _draw_texture(fill, thing)
    corner = (int(x * _SCALE) - side // 2, int(y * _SCALE) - side // 2)
    # A dark rim one pixel wide keeps a thing visible on a background of its own colour.
    rim = Image.new("RGB", (side + 2 * _SCALE,) * 2, (60, 60, 60))
    grown = Image.new("L", rim.size, 0)
    for ox in (0, _SCALE, 2 * _SCALE):
        for oy in (0, _SCALE, 2 * _SCALE):
            grown.paste(255, (ox, oy), mask)
    image.paste(rim, (corner[0] - _SCALE, corner[1] - _SCALE), grown)
    image.paste(fill, corner, mask)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, side: int) -> None:
    last, half = side - 1, (side - 1) / 2
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, last, last), fill=255)
        if shape == "ring":
            edge = side * 0.27
            draw.ellipse((edge, edge, last - edge, last - edge), fill=0)
    elif shape == "square":
        edge = side * 0.07
        draw.rectangle((edge, edge, last - edge, last - edge), fill=255)
    elif shape == "triangle":
        draw.polygon([(half, 0), (last, last), (0, last)], fill=255)
    elif shape == "diamond":
        draw.polygon([(half, 0), (last, half), (half, last), (0, half)], fill=255)
    elif shape == "cross":
        a, b = side * 0.33, side * 0.67
        draw.rectangle((a, 0, b, last), fill=255)
        draw.rectangle((0, a, last, b), fill=255)
    elif shape == "star":
        points = []
        for k in range(10):
            r = half if k % 2 == 0 else half * 0.42
            angle = math.pi * (k / 5 - 0.5)
            points.append((half + r * math.cos(angle), half + r * math.sin(angle)))
        draw.polygon(points, fill=255)
    elif shape == "heart":
        draw.ellipse((0, 0, half * 1.1, half * 1.1), fill=255)
        draw.ellipse((half * 0.9, 0, last, half * 1.1), fill=255)
        draw.polygon(
            [(side * 0.03, half * 0.8), (last - side * 0.03, half * 0.8), (half, last)], fill=255
        )
    else:
        raise AssertionError(shape)


def _draw_texture(fill: Image.Image, thing: Thing) -> None:
    if thing.texture == "plain":
        return
    base = COLOURS[thing.colour]
    ink = (250, 250, 250) if sum(base) < 420 else (70, 70, 70)
    draw = ImageDraw.Draw(fill)
    side, step = fill.size[0], 5 * _SCALE
    for i in range(0, side, step):
        if thing.texture == "striped":
            draw.rectangle((i, 0, i + step // 2 - 1, side), fill=ink)
            continue
        for j in range(0, side, step):
            if thing.texture == "dotted":
                draw.ellipse((i + 2, j + 2, i + step * 0.6, j + step * 0.6), fill=ink)
            elif (i // step + j // step) % 2:
                draw.rectangle((i, j, i + step - 1, j + step - 1), fill=ink)


def sign_box(sign: Sign) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a sign in pixels."""
    x, y = _centre(sign.row, sign.col)
    return x - 17.5, y - 8, x + 17.5, y + 8


def _draw_sign(image: Image.Image, sign: Sign) -> None:
    x, y = (value * _SCALE for value in _centre(sign.row, sign.col))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=11 * _SCALE)
    box = tuple(value * _SCALE for value in sign_box(sign))
    draw.rectangle(box, fill=(255, 255, 255), outline=(30, 30, 30), width=_SCALE)
    draw.text((x, y), sign.text, fill=(10, 10, 10), font=font, anchor="mm")
