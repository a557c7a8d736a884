"""`balcap data units` and `balcap data recaption`: a model reads or rewrites the references.

Both write one row per image as the answers come and go on where they were stopped: what is in the
file is not asked for again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO, TypeVar

from balcap_jax.config.judge import RecaptionConfig, UnitsConfig
from balcap_jax.data.caption_files import CaptionFile
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.judge import LLMJudge
from balcap_jax.rewards.llm.prompts import VERSION
from balcap_jax.rewards.llm.stored_units import StoredUnits, units_path
from balcap_jax.runs.folder import disk_errors, read_jsonl, to_json, write_jsonl_atomic
from balcap_jax.runs.progress import training_progress

T = TypeVar("T")

_CHUNKS = 4  # calls in a chunk, times the calls under way at once: few wait at its end


def make_units(config: UnitsConfig) -> Path:
    """Makes the reference units of all examples that have none stored.

    Returns:
      The file beside the data.

    Raises:
      UserError: the data cannot be read, the judge lacks a setting, or some units could not be
        made (the others are kept).
    """
    source = CaptionFile(Path(config.data), max_bad_images=config.max_bad_images)
    stored = StoredUnits(units_path(config.data))

    def add(index: int, units: tuple[str, ...]) -> None:
        stored.add(source[index], units, model=config.judge.model, version=VERSION)

    # By row: the images are not needed to see what is there.
    missing = [i for i, row in enumerate(source.rows) if not stored.has(row.id, row.reference)]
    with closing(LLMJudge(config.judge)) as judge:
        lost = _ask_all(
            missing, lambda part: judge.units_of([source[i] for i in part]), add, config=config
        )
        _complain(lost, len(source), what="reference units", reasons=judge.last_failures)
    return stored.path


def recaption(config: RecaptionConfig) -> Path:
    """Writes `config.out`: the rows of `config.data` with a rewritten caption.

    The rows that were done before stay; `original` holds the caption that stood there.

    Raises:
      UserError: as `make_units`; or `config.out` is the data file or not a file of such rows.
    """
    if config.out.resolve() == config.data.resolve():
        raise UserError(f"out={config.out} is the data file itself; give another OUT.")
    source = CaptionFile(config.data, max_bad_images=config.max_bad_images)
    done = {row["id"] for row in _whole_rows(config.out)}

    def add(index: int, caption: str) -> None:
        row = source.rows[index]
        image = row.image.resolve()
        folder = config.out.parent.resolve()
        shown = image.relative_to(folder) if image.is_relative_to(folder) else image
        new = {"image": str(shown), "caption": caption, "id": row.id, "prompt": row.prompt}
        with disk_errors(config.out):
            file.write(to_json(new | {"original": row.reference}) + "\n")
            file.flush()

    missing = [i for i, row in enumerate(source.rows) if row.id not in done]
    with closing(LLMJudge(config.judge)) as judge, _appended(config.out) as file:
        lost = _ask_all(
            missing, lambda part: judge.captions_of([source[i] for i in part]), add, config=config
        )
        _complain(lost, len(source), what="new captions", reasons=judge.last_failures)
    return config.out


@contextmanager
def _appended(path: Path) -> Iterator[TextIO]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    with file:
        yield file


def _ask_all(
    missing: Sequence[int],
    ask: Callable[[Sequence[int]], Sequence[T | None]],
    add: Callable[[int, T], None],
    *,
    config: UnitsConfig | RecaptionConfig,
) -> int:
    """Asks for the missing rows chunk by chunk and adds what comes; how many did not."""
    lost = seen = 0
    with training_progress("images", len(missing)) as advance:
        for part in _chunks(missing, _CHUNKS * config.judge.concurrency):
            for index, answer in zip(part, ask(part), strict=True):
                if answer is None:
                    lost += 1
                else:
                    add(index, answer)
            seen += len(part)
            advance(seen, f"{lost} without an answer" if lost else "")
            if lost == seen:  # nobody is there
                return len(missing)
    return lost


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _complain(lost: int, count: int, *, what: str, reasons: str) -> None:
    if lost:
        raise UserError(
            f"{lost} of {count} images have no {what} ({reasons}); what was made is kept: fix "
            "the judge.* settings or the server, and run the same command again."
        )


def _whole_rows(path: Path) -> list[dict]:
    """The rows of an earlier start; a torn last one is cut off."""
    if not path.exists():
        return []
    rows = read_jsonl(path)
    if not all(isinstance(row, dict) and {"id", "original"} <= row.keys() for row in rows):
        raise UserError(f"{path} is not a file of rewritten captions; give another OUT.")
    if not path.read_bytes().endswith(b"\n"):
        write_jsonl_atomic(path, rows)
    return rows
