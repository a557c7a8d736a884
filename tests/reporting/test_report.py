"""The report says what the run's files say, and a model's words are never markup in it."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from balcap_jax.errors import UserError
from balcap_jax.reporting.gallery import gallery_html
from balcap_jax.reporting.pairs import assertion_kind, pair_captions
from balcap_jax.reporting.plots import smooth
from balcap_jax.reporting.report import evaluation_summary, report, summary_table
from balcap_jax.reporting.rows import caption_row
from balcap_jax.rewards.verdicts import Assertion, Verdict
from balcap_jax.runs.folder import write_json_atomic, write_jsonl_atomic

NAN = float("nan")
NAMES = ("precision", "recall", "linguistic")
VERDICT = Verdict(
    assertions=(
        Assertion("a red circle", True, True),
        Assertion("a green star", False, True),
        Assertion("a sense of balance", True, False),
    ),
    covered=(True, False),
    clarity=1.0,
    fluency=1.0,
    coherency=0.5,
)


def caption(when: str, index: int, **changes) -> dict:
    settings = {
        "id": f"scene-{index}",
        "caption": f"A red circle, {when}.",
        "reference": "A red circle and a star.",
        "rewards": {"precision": 1 / 3, "recall": 0.5, "linguistic": 5 / 6},
        "verdict": VERDICT,
        "units": ("red circle", "star"),
        "rho": 4 / 6,
        "image": f"evaluation/images/{index}.png",
    }
    return caption_row(**(settings | changes))


@pytest.fixture
def run(tmp_path):
    """A run of three steps and two judged images."""
    folder = tmp_path / "tiny"
    (folder / "evaluation" / "images").mkdir(parents=True)
    step = {
        "reward/precision/mean": 0.5,
        "reward/recall/mean": 0.25,
        "words": 40.0,
        "rho/mean": 0.9,
        "rho/hist": [0, 2, 1],
        "kl": None,
        "entropy": 1.5,
        "seconds/step": 2.0,
    }
    write_jsonl_atomic(folder / "metrics.jsonl", [{"step": s, **step} for s in (1, 2, 3)])
    for index in range(2):
        Image.new("RGB", (8, 8), (200, 30 * index, 0)).save(
            folder / "evaluation" / "images" / f"{index}.png"
        )
    for when in ("before", "after"):
        rows = [caption(when, index) for index in range(2)]
        write_jsonl_atomic(folder / "evaluation" / f"{when}.jsonl", rows)
    scores = {"precision": 33.3, "recall": 50.0, "linguistic": 83.3, "b_capscore": 48.4}
    side = {**scores, "words": 4.0, "rho": 0.67}
    write_json_atomic(folder / "summary.json", {"before": side, "after": {**side, "recall": None}})
    return folder


class Page(HTMLParser):
    """The tags, the kind of each chip, and everything said."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.kinds, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if attributes.get("class", "").startswith("chip "):
            self.kinds.append(attributes["class"].split()[1])

    def handle_data(self, data):
        self.words += data


def test_makes_every_file_again(run):
    made = report(run)
    names = ["curves.png", "lengths.png", "captions.html", "captions.md", "captions.jsonl"]
    assert [path.name for path in made] == names
    for path in made[:2]:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert image.format == "PNG"
        assert min(pixels.shape) > 300
        assert pixels.std() > 5  # something is drawn
    rows = [json.loads(line) for line in made[4].read_text().splitlines()]
    assert [row["id"] for row in rows] == ["scene-0", "scene-1"]
    assert rows[0]["before"]["caption"] == "A red circle, before."
    assert rows[0]["after"]["caption"] == "A red circle, after."
    before = [path.read_bytes() for path in made[2:]]
    assert [path.read_bytes() for path in report(run)[2:]] == before
    assert not [path for path in run.iterdir() if path.name.endswith(".new")]


def test_one_step_is_enough(run):
    """Also without an evaluation, and with numbers that are null from the start."""
    (run / "evaluation" / "after.jsonl").unlink()
    row = {"step": 1, "words": 3.0, "kl": None, "reward/precision/mean": None}
    write_jsonl_atomic(run / "metrics.jsonl", [row | {"reward/recall/mean": 0.5}])
    assert [path.name for path in report(run)] == ["curves.png"]


def test_what_cannot_be_reported(run, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        report(tmp_path / "missing")
    with pytest.raises(UserError, match=r"it has no metrics\.jsonl"):
        report(run / "evaluation")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has no metrics yet"):
        report(run)


def test_the_gallery_marks_what_the_judge_found(run):
    report(run)
    page = Page((run / "captions.html").read_text("utf-8"))
    # the legend, then two images x before and after with the same verdict
    assert page.kinds[:5] == ["true", "false", "vague", "covered", "missed"]
    assert page.kinds[5:] == 4 * ["true", "false", "vague", "covered", "missed"]
    for text in ("a sense of balance", "star", "A red circle, after.", "b-CapScore", "48.4"):
        assert text in page.words
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    links = [value for _, attributes in page.tags for key, value in attributes.items()
             if key in ("href", "src") and not value.startswith("data:")]  # fmt: skip
    assert links == []  # self-contained


def test_a_models_words_are_never_markup(run):
    evil = '<script>alert(1)</script> # title\n\n![x](http://a) **bold** "quoted"'
    rows = [caption("after", 0, caption=evil, id="<i>0</i>", image="../../etc/none")]
    page = Page(gallery_html(run, pair_captions(rows, rows), None))
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.words.count(evil) == 2
    assert "<i>0</i>" in page.words
    for when in ("before", "after"):
        write_jsonl_atomic(run / "evaluation" / f"{when}.jsonl", rows)
    report(run)
    markdown = (run / "captions.md").read_text("utf-8")
    assert r"\<script\>alert(1)\</script\> \# title \!\[x\](http://a) \*\*bold\*\*" in markdown


def test_a_failed_judge_and_an_empty_caption_are_shown(run):
    rewards = dict.fromkeys(("precision", "recall", "linguistic"), NAN)
    rows = [caption("x", 0, caption="", verdict=None, rewards=rewards, image=None)]
    for when in ("before", "after"):
        write_jsonl_atomic(run / "evaluation" / f"{when}.jsonl", rows)
    report(run)
    for name in ("captions.html", "captions.md"):
        text = (run / name).read_text("utf-8")
        assert "The judge gave no verdict." in text
        assert "no signal" in text
    assert "img" not in [tag for tag, _ in Page((run / "captions.html").read_text()).tags]


def test_the_page_stays_light(run):
    rows = [caption("x", index, image=None) for index in range(5)]
    page = gallery_html(run, pair_captions(rows, rows), None, limit=3)
    assert page.count("<article>") == 3
    assert "3 of 5 held-out images" in page


def test_pairs_are_by_id():
    before = [caption("before", index) for index in (2, 0, 1)]
    after = [caption("after", index) for index in (0, 2, 3)]
    pairs = pair_captions(before, after)
    assert [pair["id"] for pair in pairs] == ["scene-2", "scene-0"]
    assert all(pair["after"]["caption"] == "A red circle, after." for pair in pairs)


@pytest.mark.parametrize(
    ("verified", "pointable", "kind"),
    [(True, True, "true"), (False, True, "false"), (True, False, "vague"), (False, False, "vague")],
)
def test_assertion_kinds(verified, pointable, kind):
    assert assertion_kind({"verified": verified, "pointable": pointable}) == kind


def test_evaluation_summary_by_hand():
    rewards = np.float32([[0.5, 0.2, 1.0], [1.0, 0.4, NAN], [NAN, NAN, NAN], [0.75, 0.6, 0.5]])
    summary = evaluation_summary(
        rewards, np.array([10, 20, 30, 40]), np.array([0.5, 1, 1.5, 2]), names=NAMES
    )
    # means 0.75, 0.4, 0.75 -> 3 / (4/3 + 5/2 + 4/3) = 18/31
    expected = {
        "precision": 75.0,
        "recall": 40.0,
        "linguistic": 75.0,
        "b_capscore": 100 * 18 / 31,
        "words": 25.0,
        "rho": 1.25,
        "captions": 4,
        "no_signal": 2,
    }
    assert summary.keys() == expected.keys()
    np.testing.assert_allclose(list(summary.values()), list(expected.values()), rtol=1e-6)


def test_b_capscore_at_its_edges():
    words, rho = np.array([1, 1]), np.array([1.0, 1.0])
    zero = evaluation_summary(np.float32([[0, 1, 1], [0, 1, 1]]), words, rho, names=NAMES)
    assert zero["b_capscore"] == 0.0
    nothing = evaluation_summary(np.float32([[NAN, 1, 1], [NAN, 1, 1]]), words, rho, names=NAMES)
    assert np.isnan(nothing["precision"])
    assert np.isnan(nothing["b_capscore"])
    assert nothing["recall"] == 100.0
    equal = evaluation_summary(np.full((2, 3), 0.7, np.float32), words, rho, names=NAMES)
    np.testing.assert_allclose(equal["b_capscore"], 70.0, rtol=1e-6)


def test_summary_table_shows_the_change():
    side = {"precision": 60.0, "recall": 40.0, "linguistic": 70.0, "b_capscore": 53.5}
    summary = {
        "before": {**side, "words": 40.25, "rho": 0.95},
        "after": {**side, "precision": 72.26, "recall": 39.0, "linguistic": None, "words": 45.0,
                  "rho": 1.05},
    }  # fmt: skip
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(summary))
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines()
            if "│" in line}  # fmt: skip
    assert list(rows) == ["precision", "recall", "linguistic", "b-CapScore", "words", "rho"]
    cells = {name: line.split("│")[2:-1] for name, line in rows.items()}
    shown = {name: [cell.strip() for cell in row] for name, row in cells.items()}
    assert shown["precision"] == ["60.0", "72.3", "+12.3"]
    assert shown["recall"] == ["40.0", "39.0", "-1.0"]
    assert shown["linguistic"] == ["70.0", "-", "-"]
    assert shown["b-CapScore"] == ["53.5", "53.5", "+0.0"]
    assert shown["rho"] == ["0.95", "1.05", "+0.10"]


def test_smoothing_keeps_constants_and_does_not_lag():
    np.testing.assert_allclose(smooth(np.full(9, 0.3), width=2.0), 0.3)
    line = np.arange(41.0)
    np.testing.assert_allclose(smooth(line, width=2.0)[6:-6], line[6:-6])
    noisy = line + np.tile([1.0, -1.0], 21)[:41]
    assert np.abs(smooth(noisy, width=2.0) - line)[6:-6].max() < 0.05
    np.testing.assert_array_equal(smooth(np.array([4.0]), width=0.0), [4.0])
    assert smooth(np.array([1.0, 2.0]), width=3.0).shape == (2,)


def test_a_photo_shows_all_references_and_how_sure_the_judge_is(run):
    verdict = VERDICT._replace(
        assertions=(Assertion("a red circle", True, True, chance=0.625, weight=2.0),),
        covered=(True, False, True),
        unit_weights=(1.0, 0.5, 1.0),
    )
    rows = [
        caption(
            "x", 0, verdict=verdict, units=("red circle", "star", "red circle"),
            references=("A red circle and a star.", "A red circle."),
        )
    ]  # fmt: skip
    assert rows[0]["verdict"]["assertions"][0]["chance"] == 0.625
    assert rows[0]["verdict"]["unit_weights"] == [1.0, 0.5, 1.0]
    for when in ("before", "after"):
        write_jsonl_atomic(run / "evaluation" / f"{when}.jsonl", rows)
    report(run)
    page = Page((run / "captions.html").read_text("utf-8"))
    assert page.kinds[5:] == 2 * ["true", "covered", "missed"]
    for text in ("References A red circle and a star.A red circle.", "a red circle 62 %"):
        assert text in page.words
    assert page.words.count("red circle ×2") == 2
    markdown = (run / "captions.md").read_text("utf-8")
    assert "References: A red circle and a star. / A red circle." in markdown
