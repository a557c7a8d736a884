"""Official prompts, read from a user's own checkout of the benchmark. Nothing there is run."""

import ast
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from balcap_jax.errors import UserError
from balcap_jax.evaluation.prompts import HELPFUL, Prompts

REPOSITORIES = {
    "dcscore": "MAGAer13/DeCapBench",
    "captionqa": "bronyayang/CaptionQA",
    "caparena": "njucckevin/CapArena",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def official_prompts(benchmark: str, folder: Path) -> Prompts:
    """The prompts of "dcscore", "captionqa" or "caparena" as its repository has them.

    Raises:
      UserError: `folder` is no checkout of it, or its files have another form than is known.
    """
    texts = _READERS[benchmark](folder)
    digest = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()[:12]
    return Prompts(texts, f"official {commit_of(folder)[:12]} {digest}", official=True)


def commit_of(folder: Path) -> str:
    """The commit of a checkout, by the files of git; "unknown" where there are none."""
    git = folder / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if _COMMIT.fullmatch(head):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8")
        return next(line.split()[0] for line in packed.splitlines() if line.endswith(f" {name}"))
    except (OSError, ValueError, StopIteration):
        return "unknown"


def _dcscore(folder: Path) -> dict[str, str]:
    source = _Source(folder, "eval/evaluation_decapbench.py", "dcscore")
    return {
        "system": HELPFUL,
        "extract": source.template("extract_prompt", "caption"),
        "match": source.template("match_prompt", "predicted_atomic_facts", "oracle_atomic_facts"),
        "verify": source.template("verify_prompt", "reference_caption", "atomic_facts"),
    }


def _captionqa(folder: Path) -> dict[str, str]:
    source = _Source(folder, "qa.py", "captionqa")
    return {
        "system": source.text("system_prompt"),
        "user": source.filled("prompt", "caption", "question", "options"),
    }


def _caparena(folder: Path) -> dict[str, str]:
    source = _Source(folder, "vlm_as_a_judge.py", "caparena")
    return {
        "system": source.text("system_prompt_with_ref"),
        "user": source.filled("compare_prompt", "caption_1", "caption_2", "caption_ref"),
    }


_READERS: dict[str, Callable[[Path], dict[str, str]]] = {
    "dcscore": _dcscore,
    "captionqa": _captionqa,
    "caparena": _caparena,
}


class _Source:
    """The texts that a Python file gives names to."""

    def __init__(self, folder: Path, name: str, benchmark: str):
        self._folder, self._path, self._benchmark = folder, folder / name, benchmark
        try:
            self._tree = ast.parse(self._path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._unknown("cannot be read") from None

    def text(self, name: str) -> str:
        """A plain text, with its braces doubled: it has no places to fill."""
        for value in self._values(name):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return _doubled(value.value)
        raise self._unknown(f"has no text {name}")

    def template(self, name: str, *places: str) -> str:
        """A text with these places in braces."""
        for value in self._values(name):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                try:
                    value.value.format(**dict.fromkeys(places, ""))
                except (ValueError, KeyError, IndexError):
                    continue
                return value.value
        raise self._unknown(f"has no text {name} with the places {', '.join(places)}")

    def filled(self, name: str, *places: str) -> str:
        """An f-string with these places, in this order, as a template."""
        for value in self._values(name):
            if not isinstance(value, ast.JoinedStr):
                continue
            count = sum(isinstance(part, ast.FormattedValue) for part in value.values)
            if count == len(places):
                names = iter(places)
                return "".join(
                    f"{{{next(names)}}}"
                    if isinstance(part, ast.FormattedValue)
                    else _doubled(str(part.value))  # type: ignore[attr-defined]
                    for part in value.values
                )
        raise self._unknown(f"has no f-string {name} with {len(places)} places")

    def _values(self, name: str) -> Iterator[ast.expr]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == name for target in node.targets
            ):
                yield node.value

    def _unknown(self, what: str) -> UserError:
        name = self._path.relative_to(self._folder)
        return UserError(
            f"official={self._folder}: {name} {what}; give the folder of a "
            f"checkout of github.com/{REPOSITORIES[self._benchmark]} as --official, or leave it "
            "out for our own prompts."
        )


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
