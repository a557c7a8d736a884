"""The gallery says what the run's files say, and nothing of them is ever markup in it."""

from html.parser import HTMLParser

import pytest
from PIL import Image
from reported_run import VERDICT, caption, judge_again

from balcap_jax.reporting.gallery import gallery_html
from balcap_jax.reporting.markdown import gallery_markdown, plain
from balcap_jax.reporting.pairs import assertion_kind, pair_captions
from balcap_jax.reporting.pictures import picture_file, picture_uri
from balcap_jax.reporting.report import report
from balcap_jax.rewards.verdicts import Assertion
from balcap_jax.runs.folder import write_jsonl_atomic

NAN = float("nan")


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
    judge_again(run, rows)
    report(run)
    markdown = (run / "captions.md").read_text("utf-8")
    assert r"\<script\>alert(1)\</script\> \# title \!\[x\](http\://a) \*\*bold\*\*" in markdown


def test_a_failed_judge_and_an_empty_caption_are_shown(run):
    rewards = dict.fromkeys(("precision", "recall", "linguistic"), NAN)
    rows = [caption("x", 0, caption="", verdict=None, rewards=rewards, image=None)]
    judge_again(run, rows)
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
    judge_again(run, rows)
    report(run)
    page = Page((run / "captions.html").read_text("utf-8"))
    assert page.kinds[5:] == 2 * ["true", "covered", "missed"]
    for text in ("References A red circle and a star.A red circle.", "a red circle 62 %"):
        assert text in page.words
    assert page.words.count("red circle ×2") == 2
    markdown = (run / "captions.md").read_text("utf-8")
    assert "References: A red circle and a star. / A red circle." in markdown


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
