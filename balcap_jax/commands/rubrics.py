"""`balcap data rubrics`: criteria of each image, written once against a starting policy's captions
from those of several teachers (RubiCap, arXiv:2603.09160).

One row per image as the answers come; what is in the file is not asked for again. Captions of
teachers that are models are kept in the judge's cache.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from balcap_jax.commands.appended import appended
from balcap_jax.commands.asked_rows import ask_all, complain, good_rows, opened, whole_rows
from balcap_jax.config.claim_rivals import RubricsConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.evaluation.caption_files import matched, read_captions
from balcap_jax.rewards.llm.accounting import listing
from balcap_jax.rewards.llm.stored_units import reference_digest
from balcap_jax.rewards.rivals.asker import Asker
from balcap_jax.rewards.rivals.rubric_files import rubrics_file
from balcap_jax.rewards.rivals.rubric_questions import VERSION
from balcap_jax.rewards.rivals.rubric_writer import RubricWriter, Teacher, Written
from balcap_jax.runs.folder import disk_errors, to_json
from balcap_jax.storage.local import edited_locally
from balcap_jax.storage.paths import as_path

_TOLD = ("start", "committee", "writer")  # of a written row: what it was made from


def make_rubrics(config: RubricsConfig) -> Path:
    """Writes the rubrics of all images that have none yet.

    Returns:
      The file.

    Raises:
      UserError: data or captions cannot be read or do not belong together, the judge lacks a
        setting, the file was written from something else, another process is at it, or some rubrics
        could not be written (the others are kept).
    """
    named = config.out or rubrics_file(config.data)
    source = opened(config.data, max_bad_images=config.max_bad_images)
    places = {row.id: index for index, row in good_rows(source)}
    start = _captions(config.start, list(places), data=config.data)
    with (
        edited_locally(named) as path,
        closing(Asker(config.judge)) as asker,
        appended(path, what="OUT") as file,
    ):
        done = whole_rows(path, file, what="rubrics", needs="criteria", keep=_TOLD)
        _check_same(config, path, done, start)
        teachers = [_teacher(name, asker, config, list(places)) for name in config.teachers]
        writer = RubricWriter(asker, teachers, start)

        def add(example: Example, written: Written) -> None:
            row = _row(example, written, config)
            with disk_errors(path):
                file.write((to_json(row) + "\n").encode())
                file.flush()

        missing = [index for id_, index in places.items() if id_ not in done]
        at_once = config.judge.concurrency
        lost = ask_all(source, missing, writer.rubrics_of, add, at_once=at_once)
        complain(lost, len(source), what="rubric", reasons=listing(asker.failures))
    return named


def _captions(path: Path, ids: Sequence[str], *, data: Path) -> dict[str, str]:
    return matched(read_captions(path), ids, path=path, data=data, allow_missing=False)


def _teacher(name: str, asker: Asker, config: RubricsConfig, ids: Sequence[str]) -> Teacher:
    """One of the committee by its name in the settings."""
    if (path := as_path(name)).suffix in (".json", ".jsonl"):
        return Teacher(name, captions=_captions(path, ids, data=config.data))
    model, at, url = name.partition("@http")
    judge = config.judge
    if at:
        judge = replace(judge, base_url=f"http{url}", key_env=config.teacher_key_env)
    return Teacher(name, asker.client("rubric", version=VERSION, model=model, judge=judge))


def _row(example: Example, written: Written, config: RubricsConfig) -> dict[str, Any]:
    return {
        "id": example.id,
        "criteria": [
            {"text": criterion.text, "severity": int(criterion.weight)}
            for criterion in written.criteria
        ],
        "start": written.start,
        "committee": list(config.teachers),
        "captions": list(written.teachers),
        "writer": _writer(config),
        "reference": reference_digest(example.reference),
    }


def _writer(config: RubricsConfig) -> str:
    return f"{config.judge.model}, prompts {VERSION}"


def _check_same(
    config: RubricsConfig,
    path: Path,
    done: Mapping[str, Mapping[str, Any]],
    start: Mapping[str, str],
) -> None:
    """Refuses to go on with rubrics that were written from something else."""
    if foreign := [id_ for id_ in done if id_ not in start]:
        raise UserError(
            f"{path} has {len(foreign)} rubrics of images that {config.data} has not, the first of "
            f"{foreign[0]!r}; give another --out, or remove these rows."
        )
    now = {"writer": _writer(config), "committee": list(config.teachers)}
    for id_, row in done.items():
        for name, value in {**now, "start": start[id_]}.items():
            if row.get(name) != value:
                raise UserError(
                    f"{path} has a rubric of {id_!r} whose {_WHAT[name]} is "
                    f"{_shown(row.get(name))}, and now it is {_shown(value)}: one file holds "
                    "rubrics of one kind; give another --out, or the settings it had."
                )


_WHAT = {"writer": "writer", "committee": "committee of teachers", "start": "starting caption"}


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(
        value, str
    ) else str(value)  # fmt: skip
    return f"{text[:60]!r}"
