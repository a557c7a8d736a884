"""The page of a report: what is found is shown, nothing of a file is markup, it fits a phone."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import pytest
from benchmark_world import answer, make_world
from judge_server import JudgeServer

from balcap_jax.cli.main import main
from balcap_jax.evaluation.report import write_report

EVIL = '"><script>alert(1)</script>&amp;'
LONG = "word" * 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models: one tells all, one tells less, and markup."""
    folder = tmp_path_factory.mktemp("page")
    world = make_world(folder / "w", 6)
    other = json.loads(world.captions("b.json", drop=1).read_text())
    other["test_00000.jpg"] += f" It is perhaps {EVIL}. {LONG}."
    (world.folder / "b.json").write_text(json.dumps(other))
    with JudgeServer(answer=answer) as server:
        for captions in (world.captions("a.json"), world.folder / "b.json"):
            for benchmark, data in (
                ("dcscore", ["--facts", world.folder / "facts.jsonl"]),
                ("captionqa", ["--data", world.folder / "questions.jsonl"]),
                ("caparena", ["--data", world.folder / "battles.json", "--both-orders"]),
            ):
                arguments = [
                    "eval", benchmark, "--captions", captions, *data, "--images", world.images,
                    "--judge.base-url", server.url, "--judge.cache", folder / "c.sqlite",
                    "--judge.model", "ruler", "--out", folder / captions.stem,
                ]  # fmt: skip
                assert main(list(map(str, arguments))) == 0
    return [folder / "a", folder / "b"]


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.chips, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        kind = dict(attributes).get("class") or ""
        if kind.startswith("chip "):
            self.chips.append(kind.split()[1])

    def handle_data(self, data):
        self.words += data


def test_the_page_shows_what_was_found(folders, tmp_path):
    page = Page(write_report(folders, html=tmp_path / "r.html").read_text())
    for text in (
        "DCScore (balcap prompts, judge ruler)", "The sky is grey.", "85.71", "What is shown?",
        "against GPT-4o-0806: There is a", "it tells more of the reference.", "strict macro",
        "flipped", "0.0 % of verdicts change with the order", "categories", "as 'There is a kite.'",
    ):  # fmt: skip
        assert text in page.words, text
    # Of 6 images: a tells 3 facts that people told, b 2; both miss what nobody tells.
    assert page.chips.count("true") == 6 * (3 + 2)
    assert page.chips.count("missed") == 6 * (1 + 2)
    assert page.chips.count("false") == 2  # the words of b that are in no reference
    pictures = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 3 + 3 * 6  # a plot and six photos each
    assert all(source.startswith("data:image/") for source in pictures)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "a", "link", "iframe"})
    assert EVIL in page.words


def test_the_difference_to_the_first_model_has_an_interval(folders, tmp_path, capsys):
    assert main(["eval", "report", *map(str, folders), "--html", str(tmp_path / "r.html")]) == 0
    shown = capsys.readouterr().out
    found = re.findall(r"([+-]\d+\.\d\d) \[([+-]\d+\.\d\d), ([+-]\d+\.\d\d)\]", shown)
    assert found
    for value, low, high in found:
        assert float(low) <= float(value) <= float(high)
    official = next(line for line in shown.splitlines() if "official" in line)
    assert "85.71" in official
    few = write_report(folders, html=tmp_path / "few.html", shown=2).read_text()
    assert few.count("<article>") == 3 * 2


class Places(HTMLParser):
    """The tags, each with the classes of all that it stands in."""

    def __init__(self, text: str):
        super().__init__()
        self._open, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        kind = dict(attributes).get("class") or ""
        around = {word for _, words in self._open for word in words.split()}
        self.found.append((tag, kind, around | {name for name, _ in self._open}))
        if tag not in ("img", "meta", "br"):
            self._open.append((tag, kind))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass


def test_what_is_wide_can_be_scrolled_and_the_rest_breaks(folders, tmp_path):
    """What the browser of the next test would find; for machines that have none."""
    text = write_report(folders, html=tmp_path / "r.html").read_text()
    found = Places(text).found
    tables = [around for tag, _, around in found if tag == "table"]
    assert len(tables) > 3
    assert all("wide" in around for around in tables)
    pictures = [(kind, around) for tag, kind, around in found if tag == "img"]
    assert all(kind == "plot" or "article" in around for kind, around in pictures)
    style = text.partition("<style>")[2].partition("</style>")[0]
    for rule in (
        ".wide { overflow-x: auto; max-width: 100%; }", ".plot { max-width: 100%;",
        "article img { display: block; width: 100%;", "overflow-wrap: anywhere; }",
        "minmax(min(320px, 100%), 1fr)", "section { min-width: 0; }", ".chip { max-width: 100%;",
    ):  # fmt: skip
        assert rule in style, rule
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
    # The only lines that do not break are in tables.
    assert re.findall(r"([^\n}]*)\{[^}]*nowrap", style) == ["td small "]


@pytest.fixture(scope="module")
def every(folders, tmp_path_factory):
    """With b-CapScore."""
    copies = []
    for folder in folders:
        copy = tmp_path_factory.mktemp("every") / folder.name
        shutil.copytree(folder, copy)
        captions, data = (folder.parent / "w" / n for n in (f"{folder.name}.json", "photos.jsonl"))
        arguments = ["eval", "bcapscore", "--data", data, "--captions", captions, "--out", copy]
        assert main(list(map(str, arguments))) == 0
        copies.append(copy)
    return copies


@pytest.mark.slow  # a browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_in_a_browser(every, width, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for found in map(shutil.which, names) if found), None)
    if browser is None:
        pytest.skip(
            f"NO BROWSER ({', '.join(names)}): the page of a report was opened at no width, "
            "only its rules were looked at"
        )
    write_report(every, html=tmp_path / "report.html")
    (tmp_path / "outer.html").write_text(
        f'<iframe id="f" src="report.html" style="width:{width}px;height:900px;border:0"></iframe>'
        '<p id="p"></p><script>document.getElementById("f").onload = () => {'
        'const page = document.getElementById("f").contentDocument;'
        "const wide = [...page.body.querySelectorAll('*')].filter(e => !e.closest('.wide') && "
        "e.getBoundingClientRect().right > page.documentElement.clientWidth + 1);"
        'document.getElementById("p").textContent = `found ${page.documentElement.scrollWidth} '
        "${page.images.length} ${wide.length}`; }</script>"
    )

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shown = subprocess.run(
            [
                browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
                "--window-size=1400,1000", "--virtual-time-budget=8000",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"http://127.0.0.1:{server.server_port}/outer.html",
            ],
            capture_output=True, text=True, check=True, timeout=120,
        ).stdout  # fmt: skip
        server.shutdown()
    scroll, images, wide = map(int, re.search(r"found (\d+) (\d+) (\d+)", shown).groups())
    assert images == 4 + 4 * 6
    assert scroll <= width
    assert wide == 0
