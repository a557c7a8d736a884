"""Captions before and after training side by side, as HTML in one file and as Markdown."""

import base64
import mimetypes
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

# Kind of an assertion -> its mark and what the legend says; the mark carries the meaning where
# colour does not reach (Markdown, print, colour-blind readers).
KINDS = {
    "true": ("✓", "true and pointable"),
    "false": ("✗", "false"),
    "vague": ("○", "not pointable"),
}
UNITS = {"covered": ("●", "covered reference unit"), "missed": ("–", "missed reference unit")}
_SHOWN = ("precision", "recall", "linguistic", "b_capscore", "words", "rho")


def pair_captions(before: Sequence[dict], after: Sequence[dict]) -> list[dict[str, Any]]:
    """Rows of the two evaluations joined by id, in the order of `before`.

    What belongs to the image (id, reference, image) stands once; `before` and `after` hold the
    rest. An image that only one evaluation has is left out.
    """
    later = {row["id"]: row for row in after}
    shared = ("id", "reference", "references", "image")
    return [
        {key: row.get(key) for key in shared}
        | {
            when: {key: value for key, value in side.items() if key not in shared}
            for when, side in (("before", row), ("after", later[row["id"]]))
        }
        for row in before
        if row["id"] in later
    ]


def assertion_kind(assertion: Mapping[str, Any]) -> str:
    """A key of `KINDS`: what cannot be pointed at is vague, whether or not it may be true."""
    if not assertion["pointable"]:
        return "vague"
    return "true" if assertion["verified"] else "false"


def gallery_html(
    run: Path,
    pairs: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any] | None,
    *,
    limit: int = 100,
) -> str:
    """A page that needs no other file: pictures are inside it.

    Args:
      run: the run's folder, which the paths of the pictures are relative to.
      pairs: made by `pair_captions`.
      summary: of summary.json, for the table at the top.
      limit: how many images are shown, so that the page stays light.
    """
    shown = pairs[:limit]
    count = f"{len(shown)} of {len(pairs)}" if len(shown) < len(pairs) else f"{len(pairs)}"
    marks = [(kind, *mark) for kind, mark in (KINDS | UNITS).items()]
    legend = "".join(f"<li>{_chip(kind, mark, text)}</li>" for kind, mark, text in marks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(run.name)}: captions before and after</title>
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>{escape(run.name)}: captions before and after</h1>
<p>{count} held-out images. Each caption is split into its assertions, and the reference into its
units.{_chance_note(shown)}</p>
{_summary_html(summary)}
<ul class="chips legend">{legend}</ul>
</header>
<main>
{"".join(_card(run, pair) for pair in shown)}
</main>
</body>
</html>
"""


def gallery_markdown(run: Path, pairs: Sequence[Mapping[str, Any]], *, limit: int = 100) -> str:
    """The same for a terminal or a code host; pictures are links relative to `run`."""
    marks = ", ".join(f"{mark} {text}" for mark, text in (KINDS | UNITS).values())
    lines = [f"# {_md(run.name)}: captions before and after", "", f"Marks: {marks}.", ""]
    for pair in pairs[:limit]:
        lines += [f"## {_md(pair['id'])}", ""]
        if pair["image"]:
            lines += [f"![{_md(pair['id'])}](<{pair['image']}>)", ""]
        title, *texts = _references(pair)
        lines += [f"{title}: {' / '.join(map(_md, texts))}", ""]
        for when in ("before", "after"):
            side = pair[when]
            lines += [
                f"**{when.capitalize()}** ({_scores(side)})",
                "",
                f"> {_md(side['caption'])}",
                "",
            ]
            lines += [f"- {mark} {_md(text)}" for _, mark, text in _findings(side)]
            lines += ["", "The judge gave no verdict.", ""] if side["verdict"] is None else [""]
    if len(pairs) > limit:
        lines += [f"The other {len(pairs) - limit} are in captions.jsonl.", ""]
    return "\n".join(lines)


def _chance_note(pairs: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [pair[when]["verdict"] for pair in pairs for when in ("before", "after")]
    if any("chance" in a for verdict in verdicts if verdict for a in verdict["assertions"]):
        return (
            " Per cent are the judge's chances that an assertion is true and pointable; precision "
            "is their weighted mean."
        )
    return ""


def _references(pair: Mapping[str, Any]) -> list[str]:
    """A title, then the reference that rho counts by, then the others that the judge knows."""
    first = pair["reference"]
    others = [text for text in pair.get("references") or () if text != first]
    return ["References" if others else "Reference", first, *others]


def _findings(side: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(kind, mark, text) of each assertion, then of each reference unit.

    Of a judge that cannot know, an assertion shows the chance that precision is made of. A unit
    that several references have stands once, with how many.
    """
    verdict = side["verdict"]
    if verdict is None:
        return
    for assertion in verdict["assertions"]:
        kind, chance = assertion_kind(assertion), assertion.get("chance")
        shown = "" if chance is None else f" {100 * chance:.0f} %"
        yield kind, KINDS[kind][0], assertion["text"] + shown
    units = Counter(zip(verdict["units"], verdict["covered"], strict=True))
    for (unit, covered), count in units.items():
        kind = "covered" if covered else "missed"
        yield kind, UNITS[kind][0], unit if count == 1 else f"{unit} ×{count}"  # noqa: RUF001


def _scores(side: Mapping[str, Any]) -> str:
    rewards = (f"{name} {_score(value)}" for name, value in side["rewards"].items())
    return ", ".join((*rewards, f"{side['words']} words", f"rho {_score(side['rho'])}"))


def _score(value: float | None) -> str:
    return "no signal" if value is None else f"{value:.2f}"


def _card(run: Path, pair: Mapping[str, Any]) -> str:
    picture = _picture(run, pair["image"])
    image = f'<img src="{picture}" alt="{escape(pair["id"])}">' if picture else ""
    title, *texts = _references(pair)
    references = "<br>".join(map(escape, texts))
    return f"""<article>
<div class="image">{image}<h2>{escape(pair["id"])}</h2>
<p class="reference"><b>{title}</b> {references}</p></div>
{_side("Before", pair["before"])}
{_side("After", pair["after"])}
</article>
"""


def _side(title: str, side: Mapping[str, Any]) -> str:
    bars = "".join(
        f'<dt>{escape(name)}</dt><dd><i style="width:{100 * min(max(value or 0, 0), 1):.0f}%"></i>'
        f"<span>{_score(value)}</span></dd>"
        for name, value in side["rewards"].items()
    )
    findings = list(_findings(side))
    groups = [
        "".join(f"<li>{_chip(*finding)}</li>" for finding in findings if finding[0] in kinds)
        for kinds in (KINDS, UNITS)
    ]
    chips = "".join(f'<ul class="chips">{group}</ul>' for group in groups if group)
    if side["verdict"] is None:
        chips = '<p class="none">The judge gave no verdict.</p>'
    return f"""<section>
<h3>{title} <small>{side["words"]} words, rho {_score(side["rho"])}</small></h3>
<p class="caption">{escape(side["caption"]) or "<em>(empty)</em>"}</p>
<dl>{bars}</dl>
{chips}
</section>"""


def _chip(kind: str, mark: str, text: str) -> str:
    return f'<span class="chip {kind}"><b>{mark}</b> {escape(text)}</span>'


def _picture(run: Path, image: str | None) -> str | None:
    """The picture as a data URI, None where there is no such file."""
    if not image or not (run / image).is_file():
        return None
    kind = mimetypes.guess_type(image)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode((run / image).read_bytes()).decode('ascii')}"


def _summary_html(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""

    def cells(when: str) -> str:
        values = (summary[when].get(key) for key in _SHOWN)
        return "".join(f"<td>{_rounded(value)}</td>" for value in values)

    head = "".join(f"<th>{key.replace('b_capscore', 'b-CapScore')}</th>" for key in _SHOWN)
    body = "".join(f"<tr><th>{when}</th>{cells(when)}</tr>" for when in ("before", "after"))
    return f"<table><tr><th></th>{head}</tr>{body}</table>"


def _rounded(value: float | None) -> str:
    """Three digits or more, which suits 0..100 as well as rho."""
    return "-" if value is None else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def _md(text: str) -> str:
    """A model's words as plain text in Markdown: on one line, nothing of it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", " ".join(text.split()))


_CSS = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --page: #f8fafc; --card: #fff;
  --true: #d1f0e0; --false: #fbd5d0; --vague: #fdebc2; --covered: #d5e6f7; --missed: #eceef1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #374151;
  --page: #111827; --card: #1f2937; --true: #14532d; --false: #7f1d1d; --vague: #713f12;
  --covered: #1e3a5f; --missed: #374151; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 24px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 13px; color: var(--soft); margin: 8px 0 0; }
h3 { font-size: 15px; margin: 0 0 8px; } small { color: var(--soft); font-weight: normal; }
table { border-collapse: collapse; margin: 16px 0; }
th, td { padding: 4px 14px; border-bottom: 1px solid var(--line); text-align: right; }
article { display: grid; grid-template-columns: 220px minmax(0, 1fr) minmax(0, 1fr);
  gap: 24px; margin: 20px 0;
  padding: 20px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
@media (max-width: 800px) { article { grid-template-columns: 1fr; } }
img { width: 100%; border-radius: 8px; border: 1px solid var(--line); }
.reference { font-size: 13px; color: var(--soft); margin: 4px 0; }
.caption { margin: 0 0 12px; overflow-wrap: anywhere; max-height: 18em; overflow-y: auto; }
.none { color: var(--soft); font-style: italic; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 10px; margin: 0 0 12px;
  font-size: 13px; align-items: center; }
dt { color: var(--soft); }
dd { margin: 0; position: relative; height: 18px; background: var(--missed); border-radius: 4px; }
dd i { position: absolute; inset: 0 auto 0 0; background: var(--covered); border-radius: 4px; }
dd span { position: relative; padding-left: 6px; line-height: 18px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; padding: 0; margin: 0 0 10px; list-style: none; }
.chip { display: inline-block; padding: 1px 9px; border-radius: 9px; font-size: 13px; }
.true { background: var(--true); } .false { background: var(--false); }
.vague { background: var(--vague); } .covered { background: var(--covered); }
.missed { background: var(--missed); color: var(--soft); }
.legend { margin-top: 16px; }
"""
