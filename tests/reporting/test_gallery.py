"""The gallery says what the run's files say, and nothing of them is ever markup in it."""

import re
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


EVIL = '"><script>alert(1)</script>&amp;'


def test_nothing_of_a_row_is_markup(run):
    """Also where a number should be, and in the name of a reward or of the run."""
    row = caption("x", 0, id=EVIL, reference=EVIL, references=(EVIL, EVIL + "2"), image=EVIL)
    row |= {"words": EVIL, "rho": EVIL, "rewards": {EVIL: EVIL, "precision": EVIL}}
    row["verdict"]["units"][0] = row["verdict"]["assertions"][0]["text"] = EVIL
    summary = {when: {EVIL: 1.0} for when in ("before", "after")}
    page = Page(
        gallery_html(run.with_name(EVIL.replace("/", "")), pair_captions([row], [row]), summary)
    )
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "p", "table", "tr", "td",
        "th", "ul", "li", "b", "main", "article", "div", "h2", "br", "section", "h3", "small",
        "dl", "dt", "dd", "i", "span",
    }  # fmt: skip
    # id, references, per side: words, rho, two rewards and a name, assertion, unit; summary
    assert page.words.count(EVIL) == 1 + 2 + 2 * 7 + 1
    assert [
        attributes for _, attributes in page.tags if any(key.startswith("on") for key in attributes)
    ] == []
    markdown = gallery_markdown(run, pair_captions([row], [row]))
    assert "<script" not in markdown.replace("\\<", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**x** _y_ `z` ~w~ $v$", r"\*\*x\*\* \_y\_ \`z\` \~w\~ \$v\$"),
        ("a\n\n# b", r"a \# b"),
        ("<b>&lt;i&gt;", r"\<b\>\&lt;i\&gt;"),
        ("[a](b) ![c](d) | e", r"\[a\](b) \!\[c\](d) \| e"),
        ("- a", r"\- a"),
        ("12. a", r"12\. a"),
        ("---", r"\---"),
        ("-0.5 and 1.25", "-0.5 and 1.25"),
        ("see http://a.b and www.c.d", r"see http\://a.b and www\.c.d"),
        ("\x1b[31mred\x07\x00", r"\[31mred"),
        ("back\\slash", r"back\\slash"),
    ],
)
def test_plain_text_in_markdown(text, shown):
    assert plain(text) == shown


def picture(run, name: str, **settings) -> str:
    Image.new("RGB", (4, 4), (9, 9, 9)).save(run / name, **settings)
    return name


def test_pictures_of_the_run_are_inside_the_page(run):
    assert picture_uri(picture_file(run, picture(run, "a.png"))).startswith(
        "data:image/png;base64,"
    )
    jpeg = picture_file(run, picture(run, "b.png", format="JPEG"))  # what it is, not its name
    assert picture_uri(jpeg).startswith("data:image/jpeg;base64,")
    assert picture_file(run, "./evaluation/../a.png") == (run / "a.png").resolve()


def test_a_run_may_be_a_link(run):
    (run.parent / "link").symlink_to(run)
    assert picture_file(run.parent / "link", "evaluation/images/0.png") is not None


def test_only_pictures_of_the_runs_own_folder_are_read(run, tmp_path):
    outside = tmp_path / picture(tmp_path, "outside.png")
    (run / "link.png").symlink_to(outside)
    (run / "folder").symlink_to(tmp_path)
    (run / "circle.png").symlink_to(run / "circle.png")
    (run / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (run / "svg.png").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    beside = run.with_name(run.name + "2")
    beside.mkdir()
    picture(beside, "a.png")
    paths = [
        "../outside.png", "../../etc/passwd", str(outside), str(run / picture(run, "own.png")),
        "link.png", "folder/outside.png", "circle.png", "drawing.svg", "svg.png", "missing.png",
        "evaluation", "metrics.jsonl", "a\0.png", "x" * 5000, f"../{beside.name}/a.png",
    ]  # fmt: skip
    assert [path for path in paths if picture_file(run, path) is not None] == []
    rows = [caption("x", i, image=path) for i, path in enumerate(paths)]
    pairs = pair_captions(rows, rows)
    page = Page(gallery_html(run, pairs, None))
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.words.count("Not shown: no picture of the run's own folder.") == len(paths)
    markdown = gallery_markdown(run, pairs)
    assert "](" not in markdown
    assert markdown.count("(Its picture is not an image in this folder.)") == len(paths)


def test_markdown_links_the_pictures(run):
    rows = [caption("x", 0, image=picture(run, "a (b)>.png"))]
    assert "![scene-0](<a%20%28b%29%3E.png>)" in gallery_markdown(run, pair_captions(rows, rows))


def test_a_row_without_a_picture_has_no_placeholder(run):
    rows = [caption("x", 0, image=None)]
    assert "Not shown" not in gallery_html(run, pair_captions(rows, rows), None)


def test_rewards_of_any_name_and_size(run):
    rewards = {"recall": 0.5, "short": -12.345, "long": NAN, "tiny": 1.5e-7}
    rows = [caption("x", 0, rewards=rewards)]
    judge_again(run, rows)
    report(run)
    page = Page((run / "captions.html").read_text("utf-8"))
    names = page.words[page.words.index("Before") :]
    assert [word for word in names.split() if word in rewards] == 2 * list(rewards)
    for text in ("0.50", "-12.3", "no signal", "1.50e-07"):
        assert text in page.words
    # A bar only where a reward lies in [0, 1].
    bars = [attributes["style"] for tag, attributes in page.tags if tag == "i"]
    assert bars == 2 * ["width:50%"]
    text = "(recall 0.50, short -12.3, long no signal, tiny 1.50e-07, 4 words, rho 0.67)"
    assert text in (run / "captions.md").read_text("utf-8")


def test_without_a_judge_there_are_no_verdicts_to_miss(run):
    rows = [caption("x", 0, rewards={"short": 3.0}, verdict=None, units=())]
    pairs = pair_captions(rows, rows)
    page, markdown = Page(gallery_html(run, pairs, None)), gallery_markdown(run, pairs)
    assert page.kinds == []  # no legend of marks that are not there
    for text in ("no verdict", "assertions", "Marks"):
        assert text not in page.words
        assert text not in markdown
    assert "short 3.00" in markdown


def test_marks_differ_without_colour(run):
    """Each kind has a mark of its own, and the marks are explained."""
    report(run)
    page = Page((run / "captions.html").read_text("utf-8"))
    marks = {"✓": "true and pointable", "✗": "false", "○": "not pointable",
             "●": "covered reference unit", "–": "missed reference unit"}  # fmt: skip
    for mark, text in marks.items():
        assert f"{mark} {text}" in page.words
        assert page.words.count(mark) >= 1 + 2 * 2


def test_the_page_fits_a_phone(run):
    """The browser is told so, and nothing is set in small letters."""
    report(run)
    text = (run / "captions.html").read_text("utf-8")
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert ("meta", viewport) in Page(text).tags
    sizes = [int(size) for size in re.findall(r"font(?:-size)?: (\d+)px", text)]
    assert len(sizes) > 5
    assert min(sizes) >= 15
    assert "@media (max-width: 860px)" in text
