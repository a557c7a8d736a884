"""What a finished or stopped run has to show: curves, lengths, a gallery of captions, a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from balcap_jax.config.sections import BESIDE_REWARDS, REWARDS
from balcap_jax.errors import UserError
from balcap_jax.reporting.gallery import gallery_html
from balcap_jax.reporting.markdown import gallery_markdown
from balcap_jax.reporting.pairs import pair_captions
from balcap_jax.reporting.plots import draw_curves, draw_lengths
from balcap_jax.reporting.row_files import read_captions, read_metrics, read_summary
from balcap_jax.reporting.scores import label_of, summary_rows
from balcap_jax.reporting.sheet import draw_captions
from balcap_jax.rewards.capscore import b_capscore
from balcap_jax.runs.folder import SUMMARY, existing_run, write_jsonl_atomic, write_text_atomic
from balcap_jax.storage.paths import AnyPath

if TYPE_CHECKING:
    from rich.table import Table

_CAPTIONS = ("captions.png", "captions.html", "captions.md", "captions.jsonl")


def report(run: str | AnyPath, *, band: tuple[float, float] = (0.5, 2.0)) -> list[AnyPath]:
    """Makes the pictures and galleries of `run` again from what it logged.

    curves.png from metrics.jsonl; where the held-out captions were judged before and after also
    lengths.png, captions.png, captions.html, captions.md and captions.jsonl.

    Args:
      run: the run's folder, such as runs/<name>.
      band: the range of rho that its length mask kept.

    Returns:
      The files made, in that order.

    Raises:
      UserError: `run` is no run, has no metrics yet, or a row of its files is not as it was
        written.
    """
    run = existing_run(run, needs="metrics.jsonl")
    rows = read_metrics(run / "metrics.jsonl")
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
    return [curves, *_report_captions(run, *map(read_captions, judged), band=band)]


def evaluation_summary(
    rewards: Float[np.ndarray, "n k"],
    words: Num[np.ndarray, " n"],
    rhos: Num[np.ndarray, " n"],
    *,
    names: Sequence[str],
) -> dict[str, float | int]:
    """The scores of one evaluation, for summary.json.

    A caption without a signal in a reward is left out of that reward's mean. b-CapScore is the
    harmonic mean of the corpus means of precision, recall and linguistic, times 100 (arXiv
    2605.07394); it is there where these three are, whatever other rewards there may be.

    Args:
      rewards: precision, recall and linguistic in [0, 1], the last one unmasked; others of any
        size; NaN = no signal.
      words: per caption.
      rhos: per caption, length / reference length.
      names: of the rewards, in their order.

    Returns:
      Each reward, the three and `b_capscore` in 0..100, others as they are; mean `words` and `rho`
      over all captions, `captions` their number, and `no_signal`, how many lack a signal in any
      reward. NaN where there is nothing to average.

    Raises:
      UserError: a reward has the name of another of these numbers.
    """
    taken = [name for name in names if name in BESIDE_REWARDS]
    if taken:
        raise UserError(
            f"The reward name {taken[0]!r} is that of another number in {SUMMARY}; give the reward "
            f"a name other than {', '.join(BESIDE_REWARDS)}."
        )
    signal = ~np.isnan(rewards)
    counts = signal.sum(axis=0)
    totals = np.where(signal, rewards, 0.0).sum(axis=0, dtype=np.float64)
    averages = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    means = {name: float(mean) for name, mean in zip(names, averages, strict=True)}
    total = b_capscore(means)
    return {
        **{name: 100.0 * mean if name in REWARDS else mean for name, mean in means.items()},
        **({} if total is None else {"b_capscore": total}),
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
    from rich.markup import escape  # noqa: PLC0415  only the command line prints
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Held-out images", title_justify="left")
    table.add_column("", overflow="fold")  # a reward may have a long name
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in summary_rows(summary):
        color = {None: "", True: "[green]", False: "[red]"}[row.better]
        bold = "bold" if row.label == label_of("b_capscore") else ""
        table.add_row(escape(row.label), row.before, row.after, color + row.change, style=bold)
    return table


def _report_captions(
    run: AnyPath, before: list[dict], after: list[dict], *, band: tuple[float, float]
) -> list[AnyPath]:
    lengths, *files = (run / name for name in ("lengths.png", *_CAPTIONS))
    sheet, html, markdown, jsonl = files
    draw_lengths(
        *(np.array([row["rho"] for row in rows], np.float64) for rows in (before, after)),
        lengths,
        band=band,
    )
    pairs = pair_captions(before, after)
    draw_captions(run, pairs, sheet)
    write_text_atomic(html, gallery_html(run, pairs, read_summary(run / SUMMARY)))
    write_text_atomic(markdown, gallery_markdown(run, pairs))
    write_jsonl_atomic(jsonl, pairs)
    return [lengths, *files]
