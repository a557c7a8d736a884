"""Captions before and after training side by side, for a terminal or a code host."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from balcap_jax.reporting.pairs import LEGEND, findings, references, was_judged
from balcap_jax.reporting.pictures import picture_file
from balcap_jax.reporting.scores import caption_score
from balcap_jax.storage.paths import AnyPath


def gallery_markdown(run: AnyPath, pairs: Sequence[Mapping[str, Any]], *, limit: int = 100) -> str:
    """The same as `gallery_html`; pictures are links relative to `run`."""
    judged = was_judged(pairs)
    lines = [f"# {plain(run.name)}: captions before and after", ""]
    if judged:
        marks = ", ".join(f"{mark} {meaning}" for mark, meaning in LEGEND.values())
        lines += [f"Marks: {marks}.", ""]
    for pair in pairs[:limit]:
        lines += [f"## {plain(pair['id'])}", "", *_picture(run, pair)]
        texts = references(pair)
        title = "Reference" if len(texts) == 1 else "References"
        lines += [f"{title}: {' / '.join(map(plain, texts))}", ""]
        for when in ("before", "after"):
            side = pair[when]
            lines += [
                f"**{when.capitalize()}** ({_scores(side)})",
                "",
                f"> {plain(side['caption'])}",
                "",
            ]
            lines += [f"- {found.mark} {plain(found.text)}" for found in findings(side)]
            no_verdict = judged and side["verdict"] is None
            lines += ["", "The judge gave no verdict.", ""] if no_verdict else [""]
    if len(pairs) > limit:
        lines += [f"The other {len(pairs) - limit} are in captions.jsonl.", ""]
    return "\n".join(lines)


def plain(text: str) -> str:
    """`text` from anywhere as plain text in Markdown: on one line, nothing of it is markup."""
    line = " ".join(text.split())
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]", "", line)  # commands to a terminal
    line = re.sub(r"([\\`*_{}\[\]<>#|!~&$])", r"\\\1", line)
    line = re.sub(r"(?=://)|(?<=\bwww)(?=\.)", r"\\", line)  # bare links
    # A list or a ruled line; a number stays one.
    return re.sub(r"^(\d*)([-+=.)])(?=[-+=\s]|$)", r"\1\\\2", line)


def _picture(run: AnyPath, pair: Mapping[str, Any]) -> list[str]:
    if not pair["image"]:
        return []
    if picture_file(run, pair["image"]) is None:
        return ["(Its picture is not an image in this folder.)", ""]
    return [f"![{plain(pair['id'])}](<{quote(pair['image'])}>)", ""]


def _scores(side: Mapping[str, Any]) -> str:
    named = [*side["rewards"].items(), ("rho", side["rho"])]
    *rewards, rho = (f"{plain(name)} {plain(caption_score(name, x))}" for name, x in named)
    return ", ".join((*rewards, f"{plain(str(side['words']))} words", rho))
