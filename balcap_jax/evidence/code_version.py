"""Which code made a cell: a digest of all that can change its numbers."""

import ast
import functools
import hashlib
from pathlib import Path
from typing import Any

import balcap_jax

# Rooms that a run on rewards is computed by; the others write or read what it left.
_ROOMS = (
    "config", "data", "models", "parallel", "rewards", "rl", "rollout", "scenes", "training",
)  # fmt: skip
_OWN = ("evidence/cell_loop.py", "evidence/cell_run.py", "evidence/measures.py")
_OF_TRL = ("evidence/trl_cell.py", "bench/trainer_sides.py")
_ASSETS = "assets"
_SHOWN = 12


@functools.cache
def code_version() -> str:
    """A digest of the code that computes cells and of the files it reads, comments and docstrings
    left out, so that words about it may change.

    Of one version of Python: another one may parse the same text into another tree.
    """
    package = Path(balcap_jax.__file__).parent
    digest = hashlib.sha256()
    sources = [path for room in _ROOMS for path in sorted((package / room).rglob("*.py"))]
    _add(digest, package, [*sources, *(package / own for own in _OWN)])
    for path in sorted((package / _ASSETS).rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:_SHOWN]


@functools.cache
def trl_version() -> str:
    """The same of what only cells by TRL are computed by; TRL's own version is in their results."""
    package, digest = Path(balcap_jax.__file__).parent, hashlib.sha256()
    _add(digest, package, [package / path for path in _OF_TRL])
    return digest.hexdigest()[:_SHOWN]


def _add(digest: Any, package: Path, sources: list[Path]) -> None:
    for path in sources:
        digest.update(str(path.relative_to(package)).encode())
        digest.update(meaning_of(path.read_text(encoding="utf-8")).encode())


def meaning_of(source: str) -> str:
    """A module without its comments, docstrings and spaces."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)
