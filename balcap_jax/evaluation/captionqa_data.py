"""The questions of CaptionQA, in the forms that they come in."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from balcap_jax.data.json_text import json_lines, read_json
from balcap_jax.errors import UserError
from balcap_jax.evaluation.captionqa import DOMAINS, LETTERS, Entry, question_of

REPOSITORY = "Borise/CaptionQA"
LICENCE = "captionqa (other; see its page)"
_KINDS = (".parquet", ".jsonl", ".json")
_PREFIXES = {"nat": DOMAINS[0], "doc": DOMAINS[1], "eco": DOMAINS[2], "emb": DOMAINS[3]}


def read_entries(path: Path) -> list[Entry]:
    """The complete data, in the order of the split "all".

    Args:
      path: a folder with files of all four domains (parquet as on the hub, JSONL or JSON), or a
        file: an array or lines of entries, or {id: questions} as qa.py takes it.

    Raises:
      UserError: they cannot be read so, a domain is missing, or an id comes twice.
    """
    if path.is_dir():
        rows = list(_of_folder(path))
    elif path.is_file():
        rows = list(_of_file(path, domain=""))
    else:
        raise UserError(
            f"data={path} does not exist; give the folder of {REPOSITORY}, or fetch it with "
            "--download."
        )
    seen: set[str] = set()
    for entry in rows:
        if entry.id in seen:
            raise UserError(f"data={path} has the id {entry.id!r} twice; keep one.")
        seen.add(entry.id)
    if not any(question_of(asked) for entry in rows for asked in entry.questions):
        raise UserError(
            f"data={path} has no question with at least two choices and an answer among them; "
            "give the data set with its questions."
        )
    return rows


def skipped(entries: Iterable[Entry]) -> tuple[int, str]:
    """How many questions the official code skips, and the first of them with its reason."""
    found = [
        f"{entry.id}, question {place}: the answer {asked.get('answer')!r} is none of its choices"
        if len(asked.get("choices") or []) > 1
        else f"{entry.id}, question {place}: it has fewer than two choices"
        for entry in entries
        for place, asked in enumerate(entry.questions)
        if question_of(asked) is None
    ]
    return len(found), found[0] if found else ""


def _of_folder(folder: Path) -> Iterator[Entry]:
    files = sorted(path for kind in _KINDS for path in folder.rglob(f"*{kind}"))
    by_domain = {domain: [p for p in files if p.name.startswith(domain)] for domain in DOMAINS}
    if not any(by_domain.values()) and (whole := [p for p in files if p.stem.startswith("all")]):
        for path in whole:
            yield from _of_file(path, domain="")
        return
    if missing := [domain for domain, paths in by_domain.items() if not paths]:
        raise UserError(
            f"data={folder} lacks the domains {', '.join(missing)}, and the order of all options "
            f"follows from the complete data; give the whole data set, and choose with --domains."
        )
    for domain, paths in by_domain.items():
        kind = paths[0].suffix
        for path in paths:
            if path.suffix == kind:  # the same in another form is no second part
                yield from _of_file(path, domain=domain)


def _of_file(path: Path, *, domain: str) -> Iterator[Entry]:
    rows = _of_parquet(path) if path.suffix == ".parquet" else _of_text(path)
    for number, row in enumerate(rows, start=1):
        yield _entry(path, number, row, domain=domain)


def _of_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow  # noqa: PLC0415  tensorflow-datasets brings it
    from pyarrow import parquet  # noqa: PLC0415

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):  # it holds the images
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"data={path} cannot be read ({str(error).splitlines()[0]}); fetch it anew."
        ) from None


def _of_text(path: Path) -> Sequence[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"data={path} cannot be read ({reason}); name another file.") from None
    try:
        whole = read_json(text)
    except ValueError:
        whole = None
    if isinstance(whole, list):
        return whole
    if isinstance(whole, dict):
        if "questions" in whole or "question" in whole:
            return [whole]
        return [{"id": name, "questions": asked} for name, asked in whole.items()]
    return json_lines(text, name=f"data={path}", remedy="give JSON or JSONL")


def _entry(path: Path, number: int, row: Any, *, domain: str) -> Entry:
    try:
        questions = row.get("questions") or ([row] if "question" in row else [])
        name = row["id"]
        good = isinstance(name, str) and all(isinstance(asked, dict) for asked in questions)
        if not good or not isinstance(questions, list):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"data={path}, entry {number} has no id with a list of questions; give entries such as "
            '{"id": ..., "questions": [{"question": ..., "choices": [...], "answer": ...}]}.'
        ) from None
    for place, asked in enumerate(questions):
        _check_question(path, name, place, asked)
    images = row.get("images") or row.get("image_paths") or ()
    found = row.get("domain") or domain or _PREFIXES.get(name.partition("_")[0], "")
    return Entry(name, str(found), tuple(questions), tuple(_image(image) for image in images))


def _check_question(path: Path, name: str, place: int, asked: Mapping[str, Any]) -> None:
    """Refuses what could be asked about in another way than was meant."""
    choices, words = asked.get("choices"), asked.get("question")
    texts = isinstance(choices, list) and all(isinstance(c, str | int | float) for c in choices)
    if not (isinstance(words, str) and words.strip() and (texts or choices is None)):
        raise UserError(
            f"data={path}, {name}, question {place} is no text with a list of choices, each a text "
            'or a number; give {"question": ..., "choices": [...], "answer": ...}.'
        )
    made = question_of(asked)
    if made is not None and len(made.options) > len(LETTERS):
        raise UserError(
            f"data={path}, {name}, question {place} has {len(made.options)} options, and the judge "
            f"answers with one of {len(LETTERS)} letters; leave choices out."
        )


def _image(image: Any) -> Any:
    """A file's name, or the bytes of one."""
    if isinstance(image, Mapping):
        return image.get("bytes") or image.get("path")
    return image


def download() -> Path:
    """The folder of the data set in the hub's cache, fetched where it is missing.

    Raises:
      UserError: it cannot be fetched.
    """
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415

    try:
        return Path(
            snapshot_download(
                REPOSITORY,
                repo_type="dataset",
                allow_patterns=["*.parquet", "*.json", "*.jsonl", "README.md"],
                endpoint=os.environ.get("HF_ENDPOINT") or None,
            )
        )
    except (errors.HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"The data set {REPOSITORY} cannot be fetched ({reason}); check the network and "
            "HF_TOKEN, or fetch it elsewhere and give its folder as --data."
        ) from None
