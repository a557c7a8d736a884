"""Captions before and after training side by side, as HTML in one file.

What the page looks like is `gallery.html.jinja`, which escapes all that it is given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from balcap_jax.config.sections import REWARDS
from balcap_jax.reporting.pairs import (
    KINDS,
    LEGEND,
    UNITS,
    Finding,
    findings,
    references,
    was_judged,
)
from balcap_jax.reporting.pictures import picture_file, picture_uri
from balcap_jax.reporting.scores import caption_score, summary_rows
from balcap_jax.reporting.templates import template
from balcap_jax.storage.paths import AnyPath


def gallery_html(
    run: AnyPath,
    pairs: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any] | None,
    *,
    limit: int = 100,
) -> str:
    """A page that needs no other file: pictures are inside it.

    Args:
      run: the run's folder, which the paths of the pictures are relative to; no other is read.
      pairs: made by `pair_captions`.
      summary: of summary.json, for the table at the top.
      limit: how many images are shown, so that the page stays light.
    """
    shown = pairs[:limit]
    judged = was_judged(shown)
    return template("balcap_jax.reporting", "gallery.html.jinja").render(
        name=run.name,
        shown=len(shown),
        total=len(pairs),
        judged=judged,
        chances=_has_chances(shown),
        legend=[Finding(kind, meaning) for kind, (_, meaning) in LEGEND.items()],
        summary=[] if summary is None else summary_rows(summary),
        cards=[_card(run, pair, judged=judged) for pair in shown],
    )


def _has_chances(pairs: Sequence[Mapping[str, Any]]) -> bool:
    verdicts = [pair[when]["verdict"] for pair in pairs for when in ("before", "after")]
    return any("chance" in a for verdict in verdicts if verdict for a in verdict["assertions"])


def _card(run: AnyPath, pair: Mapping[str, Any], *, judged: bool) -> dict[str, Any]:
    file = picture_file(run, pair["image"])
    return {
        "id": pair["id"],
        "picture": None if file is None else picture_uri(file),
        "not_shown": bool(pair["image"]) and file is None,
        "references": references(pair),
        "sides": [
            _side(title, pair[title.lower()], judged=judged) for title in ("Before", "After")
        ],
    }


def _side(title: str, side: Mapping[str, Any], *, judged: bool) -> dict[str, Any]:
    found = list(findings(side))
    groups = [[f for f in found if f.kind in kinds] for kinds in (KINDS, UNITS)]
    return {
        "title": title,
        "caption": side["caption"],
        "words": side["words"],
        "rho": caption_score("rho", side["rho"]),
        "rewards": [
            {"name": name, "shown": caption_score(name, value), "percent": _percent(name, value)}
            for name, value in side["rewards"].items()
        ],
        "groups": [group for group in groups if group],
        "no_verdict": judged and side["verdict"] is None,
    }


def _percent(name: str, value: Any) -> int | None:
    """The length of a reward's bar; None where it is not bounded, so that no bar can show it."""
    if name not in REWARDS:
        return None
    number = value if isinstance(value, (int, float)) and value == value else 0.0
    return round(100 * min(max(number, 0.0), 1.0))
