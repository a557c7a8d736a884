"""A few captions beside their images in one picture."""

import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from reported_run import caption

from balcap_jax.reporting.pairs import pair_captions
from balcap_jax.reporting.plots import GREEN, GREY, ORANGE
from balcap_jax.reporting.sheet import draw_captions
from balcap_jax.rewards.verdicts import Assertion, Verdict


@pytest.fixture
def said(monkeypatch):
    """(text, colour) of all that is written, in its order."""
    found, write = [], Axes.text

    def text(self, x, y, line, **style):
        found.append((line, style["color"]))
        return write(self, x, y, line, **style)

    monkeypatch.setattr(Axes, "text", text)
    return found


def pairs_of(*changes):
    rows = [caption("x", index, **of_one) for index, of_one in enumerate(changes)]
    return pair_captions(rows, rows)


def test_faults_come_first_each_kind_in_its_colour(run, said):
    draw_captions(run, pairs_of({}), run / "captions.png")
    of_side = [
        ("before: precision 0.33, recall 0.50, linguistic 0.83", GREY),
        ("A red circle, x.", "black"),
        ("✗ a green star", ORANGE),
        ("○ a sense of balance", GREY),
        ("✓ a red circle", GREEN),
    ]
    assert said == [*of_side, ("after" + of_side[0][0].removeprefix("before"), GREY), *of_side[1:]]


def test_an_image_stands_beside_its_captions(run):
    draw_captions(run, pairs_of({}, {}), run / "captions.png")
    with Image.open(run / "captions.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in ((200, 0, 0), (200, 30, 0)):  # of `make_run`
        assert (pixels == color).all(axis=1).sum() > 10_000


def test_only_the_first_ones_are_shown(run, said):
    draw_captions(run, pairs_of(*[{"caption": f"Caption {i}."} for i in range(6)]), run / "c.png")
    captions = [line for line, color in said if color == "black"]
    assert captions == [f"Caption {i}." for i in range(4) for _ in range(2)]


def test_what_there_is_no_room_for_is_counted(run, said):
    many = Verdict(tuple(Assertion(f"thing {i}", True, True) for i in range(25)), (), 1.0, 1.0, 1.0)
    draw_captions(run, pairs_of({"verdict": many, "units": ()}), run / "c.png")
    lines = [line for line, color in said if line.startswith(("✓", "and"))]
    assert len(lines) == 2 * 18
    assert lines[17] == "and 8 more"
    assert lines[16] == "✓ thing 16"


def test_any_words_are_drawn_as_they_are(run, said):
    """Dollars are no formulas, long ones are cut, nothing is said of what a font lacks."""
    evil = r"Costs $\frac{1}$ and" + " more words" * 100 + "\x00 \n end"
    changes = {"caption": evil, "image": None}, {"caption": "", "verdict": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_captions(run, pairs_of(*changes), run / "c.png")
        draw_captions(run, pairs_of({"caption": "红色的圆圈。"}), run / "d.png")
    captions = [line for line, color in said if color == "black"]
    assert captions[0].startswith(r"Costs $\frac{1}$ and more words")
    assert captions[0].count("\n") == 5
    assert captions[2] == "(nothing)"


def test_without_captions_there_is_an_empty_picture(run):
    draw_captions(run, [], run / "captions.png")
    assert (run / "captions.png").read_bytes()[:4] == b"\x89PNG"
