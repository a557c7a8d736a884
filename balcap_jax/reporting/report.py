"""What a finished or stopped run has to show: curves, lengths, a gallery of captions, a table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from balcap_jax.config.sections import REWARDS
from balcap_jax.errors import UserError
from balcap_jax.reporting.gallery import gallery_html, gallery_markdown, pair_captions
from balcap_jax.reporting.plots import draw_curves, draw_lengths
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.runs.folder import existing_run, read_jsonl, write_jsonl_atomic, write_text_atomic

if TYPE_CHECKING:
    from rich.table import Table

# Row of the table, digits after the point, whether more is better (None: neither).
_TABLE = (
    ("precision", 1, True),
    ("recall", 1, True),
    ("linguistic", 1, True),
    ("b_capscore", 1, True),
    ("words", 1, None),
    ("rho", 2, None),
)


def report(run: str | Path, *, band: tuple[float, float] = (0.5, 2.0)) -> list[Path]:
    """Makes the pictures and galleries of `run` again from what it logged.

    curves.png from metrics.jsonl; where the held-out captions were judged before and after also
    lengths.png, captions.html, captions.md and captions.jsonl.

    Args:
      run: the run's folder, such as runs/<name>.
      band: the range of rho that its length mask kept.

    Returns:
      The files made, in that order.

    Raises:
      UserError: `run` is no run, or has no metrics yet.
    """
    run = existing_run(run, needs="metrics.jsonl")
    rows = read_jsonl(run / "metrics.jsonl")
    if not rows:
        raise UserError(
            f"{run} has no metrics yet, a report needs one finished step; wait for it or give "
            "another run."
        )
    curves = run / "curves.png"
    draw_curves(rows, curves, band=band)
    judged = [run / "evaluation" / f"{when}.jsonl" for when in ("before", "after")]
    if not all(path.exists() for path in judged):
        return [curves]
    return [curves, *_report_captions(run, *map(read_jsonl, judged), band=band)]


def evaluation_summary(
    rewards: Float[np.ndarray, "n k"],
    words: Num[np.ndarray, " n"],
    rhos: Num[np.ndarray, " n"],
    *,
    names: Sequence[str] = REWARDS,
) -> dict[str, float | int]:
    """The scores of one evaluation, for summary.json.

    b-CapScore is the harmonic mean of the corpus means of the rewards, times 100 (arXiv
    2605.07394). A caption without a signal in a reward is left out of that reward's mean.

    Args:
      rewards: in [0, 1], the linguistic one unmasked; NaN = no signal.
      words: per caption.
      rhos: per caption, length / reference length.
      names: of the rewards, in their order.

    Returns:
      Each reward and `b_capscore` in 0..100, mean `words` and `rho` over all captions, `captions`
      their number, and `no_signal`, how many lack a signal in any reward. NaN where there is
      nothing to average.
    """
    signal = ~np.isnan(rewards)
    counts = signal.sum(axis=0)
    totals = np.where(signal, rewards, 0.0).sum(axis=0, dtype=np.float64)
    means = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    return {
        **{name: 100.0 * float(mean) for name, mean in zip(names, means, strict=True)},
        "b_capscore": 100.0 * float(harmonic_mean(means)),
        "words": float(words.mean()) if words.size else np.nan,
        "rho": float(rhos.mean()) if rhos.size else np.nan,
        "captions": len(rewards),
        "no_signal": int((~signal).any(axis=1).sum()),
    }


def summary_table(summary: Mapping[str, Any]) -> "Table":
    """`summary.json` as a table for the terminal: before, after, and the change.

    Args:
      summary: with `before` and `after`; null and NaN are shown as a dash.
    """
    from rich.table import Table  # noqa: PLC0415  only the command line prints

    table = Table(title="Held-out images", title_justify="left")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for key, digits, more_is_better in _TABLE:
        before, after = (_number(summary[when].get(key)) for when in ("before", "after"))
        change = round(after - before, digits)
        color = "" if more_is_better is None or not change else "green" if change > 0 else "red"
        shown = "-" if np.isnan(change) else f"{change:+.{digits}f}"
        table.add_row(
            "b-CapScore" if key == "b_capscore" else key,
            *("-" if np.isnan(value) else f"{value:.{digits}f}" for value in (before, after)),
            f"[{color}]{shown}[/]" if color and shown != "-" else shown,
            style="bold" if key == "b_capscore" else "",
        )
    return table


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _report_captions(
    run: Path, before: list[dict], after: list[dict], *, band: tuple[float, float]
) -> list[Path]:
    lengths, html, markdown, jsonl = (
        run / name for name in ("lengths.png", "captions.html", "captions.md", "captions.jsonl")
    )
    draw_lengths(
        *(np.array([_number(row["rho"]) for row in rows]) for rows in (before, after)),
        lengths,
        band=band,
    )
    pairs = pair_captions(before, after)
    summary_file = run / "summary.json"
    summary = json.loads(summary_file.read_text("utf-8")) if summary_file.exists() else None
    write_text_atomic(html, gallery_html(run, pairs, summary))
    write_text_atomic(markdown, gallery_markdown(run, pairs))
    write_jsonl_atomic(jsonl, pairs)
    return [lengths, html, markdown, jsonl]
