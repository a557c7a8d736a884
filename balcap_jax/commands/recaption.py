"""`balcap data units` and `balcap data recaption`: a model reads or rewrites the references.

Both write one row per image as the answers come and go on where they were stopped: what is in the
file is not asked for again.
"""

from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from balcap_jax.commands.appended import appended
from balcap_jax.commands.asked_rows import (
    ask_all,
    complain,
    good_rows,
    opened,
    values_of,
    whole_rows,
)
from balcap_jax.config.judge import RecaptionConfig, UnitsConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.rows import Row
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.judge import LLMJudge
from balcap_jax.rewards.llm.questions import VERSION
from balcap_jax.rewards.llm.stored_units import StoredUnits, units_file
from balcap_jax.runs.folder import disk_errors, to_json
from balcap_jax.storage.local import edited_locally
from balcap_jax.storage.paths import as_path

_TOLD = ("original", "rewritten_by")  # of a written row: where its caption comes from


def make_units(config: UnitsConfig) -> Path:
    """Makes the reference units of all examples that have none stored.

    Returns:
      The file beside the data.

    Raises:
      UserError: the data cannot be read, the judge lacks a setting, another process is at it, or
        some units could not be made (the others are kept).
    """
    source = opened(as_path(config.data), max_bad_images=config.max_bad_images)
    named = units_file(config.data)
    with (
        edited_locally(named) as path,
        closing(LLMJudge(config.judge)) as judge,
        appended(path, what="data file"),
    ):
        stored = StoredUnits(path)
        if others := sorted(stored.models - {config.judge.model}):
            raise UserError(
                f"{path} holds units that were made by {', '.join(others)}, and now it is "
                f"{config.judge.model}: units of two models cannot be compared; give the "
                "--judge.model it had, or remove the file."
            )

        def add(example: Example, units: tuple[str, ...]) -> None:
            stored.add(example, units, model=config.judge.model)

        # By row: the images are not needed to see what is there.
        missing = [i for i, row in good_rows(source) if not stored.has(row.id, row.reference)]
        lost = ask_all(source, missing, judge.units_of, add, at_once=config.judge.concurrency)
        complain(lost, len(source), what="reference units", reasons=judge.last_failures)
    return named


def recaption(config: RecaptionConfig) -> Path:
    """Writes `config.out`: the rows of `config.data` with a rewritten caption.

    All else of a row stays: its other references, boxes, units, prompt and further fields. The rows
    that were done before stay; `original` holds the caption that stood there.

    Raises:
      UserError: as `make_units`; or `config.out` is the data file or not a file of such rows.
    """
    if config.out.resolve() == config.data.resolve():
        raise UserError(f"out={config.out} is the data file itself; give another OUT.")
    source = opened(config.data, max_bad_images=config.max_bad_images)
    places = {row.id: index for index, row in good_rows(source)}
    with (
        edited_locally(config.out) as out,
        closing(LLMJudge(config.judge)) as judge,
        appended(out, what="OUT") as file,
    ):
        done = whole_rows(out, file, what="rewritten captions", needs="original", keep=_TOLD)
        _check_same(config, done, (row for _, row in good_rows(source)))

        def add(example: Example, caption: str) -> None:
            row = _recaptioned(source.row(places[example.id]), caption, folder=config.out.parent)
            row["rewritten_by"] = _writer(config)
            with disk_errors(out):
                file.write((to_json(row) + "\n").encode())
                file.flush()

        missing = [index for id_, index in places.items() if id_ not in done]
        lost = ask_all(source, missing, judge.captions_of, add, at_once=config.judge.concurrency)
        complain(lost, len(source), what="new captions", reasons=judge.last_failures)
    return config.out


def _recaptioned(row: Row, caption: str, *, folder: Path) -> dict[str, Any]:
    """`row` as a row of a file in `folder`, with another caption in place of its reference."""
    values = values_of(row, caption=caption, folder=folder, without=_TOLD)
    return {**values, "original": row.reference}


def _writer(config: RecaptionConfig) -> str:
    return f"{config.judge.model}, prompts {VERSION}"


def _check_same(
    config: RecaptionConfig, done: Mapping[str, Mapping[str, Any]], rows: Iterable[Row]
) -> None:
    """Refuses to go on with a file of another model's captions, or of other data."""
    now = _writer(config)
    for written in done.values():
        then = written.get("rewritten_by", now)  # older files do not tell
        if then != now:
            raise UserError(
                f"{config.out} holds captions that were written by {then}, and now it is {now}: "
                "one file holds those of one model; give another OUT, or the --judge.model it had."
            )
    for row in rows:
        if row.id in done and done[row.id]["original"] != row.reference:
            raise UserError(
                f"{config.out} holds a caption of the id {row.id!r} that was written from another "
                f"one than {config.data} has now; give another OUT, or remove that row."
            )
