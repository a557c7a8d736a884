"""`balcap data questions`: a model writes questions about images, and those stay that need them."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from balcap_jax.commands.appended import appended
from balcap_jax.commands.asked_rows import (
    ask_all,
    complain,
    cut_torn,
    good_rows,
    opened,
    values_of,
)
from balcap_jax.config.questions import QuestionsConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.rivals.qa_questions import Question, to_row
from balcap_jax.rewards.rivals.qa_writing import VERSION, QuestionWriter, Written
from balcap_jax.runs.folder import disk_errors, read_jsonl, to_json
from balcap_jax.storage.local import edited_locally
from balcap_jax.storage.paths import as_path


def rejected_path(out: Path) -> Path:
    """Where the images without a question that was kept are."""
    return as_path(f"{out}.rejected.jsonl")


def write_questions(config: QuestionsConfig) -> tuple[int, int]:
    """Writes `config.out`: the rows of `config.data` that have questions now.

    Returns:
      How many rows have questions, and how many images have none that was kept.

    Raises:
      UserError: the data cannot be read, OUT holds other rows or is written by another process, or
        a model gave no answer for some images (what was made is kept).
    """
    source = opened(config.data, max_bad_images=config.max_bad_images)
    places = {row.id: index for index, row in good_rows(source)}
    with (
        edited_locally(config.out) as out,
        edited_locally(rejected_path(config.out)) as rejected,
        closing(QuestionWriter(config)) as writer,
        appended(out, what="OUT") as kept_file,
        appended(rejected, what="OUT") as rejected_file,
    ):
        done = _done(config, out, kept_file)
        without = _done(config, rejected, rejected_file)

        def add(example: Example, written: list[Written]) -> None:
            told = {
                "written_by": _writer(config),
                "tried": [_tried(made) for made in written],
            }
            questions = writer.kept(written)
            if questions:
                row = source.row(places[example.id])
                values = values_of(
                    row,
                    caption=row.reference,
                    folder=config.out.parent,
                    without=("reward_model", "data_source", *told),
                )
                _append(kept_file, out, values | to_row(example.id, questions) | told)
                done.add(example.id)
            else:
                _append(rejected_file, rejected, {"id": example.id, **told})
                without.add(example.id)

        missing = [index for id_, index in places.items() if id_ not in done | without]
        lost = ask_all(source, missing, writer.written, add, at_once=config.judge.concurrency)
        complain(lost, len(source), what="questions", reasons=writer.last_failures)
    return len(done), len(without)


def _tried(made: Written) -> dict[str, Any]:
    question: Question = made.question
    return {"question": question.text, "visual": made.visual, "text": made.blind}


def _append(file: BinaryIO, path: Path, row: dict[str, Any]) -> None:
    with disk_errors(path):
        file.write((to_json(row) + "\n").encode())
        file.flush()


def _writer(config: QuestionsConfig) -> str:
    """What questions depend on beside the image."""
    filtered = f"{config.rotations} rotations, above {config.keep_above}, below {config.keep_below}"
    models = f"{config.judge.model}, tried by {config.answering.model}"
    return f"{models}, {config.questions} questions, {filtered}, prompts {VERSION}"


def _done(config: QuestionsConfig, path: Path, file: BinaryIO) -> set[str]:
    """The ids of an earlier start; a torn last row is cut off.

    Raises:
      UserError: the file holds other rows, or those of other models or another filter.
    """
    rows: Sequence[Any] = read_jsonl(path)
    now = _writer(config)
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise UserError(f"{path} is not a file of written questions; give another OUT.")
        if (then := row.get("written_by")) != now:
            raise UserError(
                f"{path} holds questions that were written by {then}, and now it is {now}: one "
                "file holds those of one writer and filter; give another OUT, or the settings it "
                "had."
            )
    cut_torn(file, path)
    return {row["id"] for row in rows}
