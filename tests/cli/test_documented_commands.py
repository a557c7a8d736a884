"""Every `balcap` command in a block of code of the documents is one: command, flags and values."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from balcap_jax import cli
from balcap_jax.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += sorted((ROOT / "examples").rglob("*.md"))

# Of which a new one must not run what it has read.
MODULES = [import_module(f"{cli.__name__}.{found.name}") for found in iter_modules(cli.__path__)]

# What a reader writes a value of their own for.
STAND_FOR = {"$I": "0", "base-url URL": "base-url http://host:8000/v1"}


class Parsed(Exception):  # noqa: N818
    """The command line was understood; nothing is run."""


def commands_in(text: str) -> list[str]:
    """The commands in fenced or indented blocks, with their continued lines and no comments."""
    found, fenced = [], False
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
        if not (fenced or line.startswith("    ")):
            continue
        command = line
        while command.endswith("\\"):
            command = command[:-1] + next(lines)
        for part in re.split(r"&&|;", command.strip()):
            part = part.strip()
            if part.count('"') % 2:  # the end of a line for another machine, which is quoted
                part = part.removesuffix('"')
            if part.startswith("balcap "):
                found.append(part)
    return found


COMMANDS = [
    pytest.param(command, id=f"{document.stem}-{i}")
    for document in DOCUMENTS
    for i, command in enumerate(commands_in(document.read_text(encoding="utf-8")))
]


def test_the_documents_have_commands():
    assert len(COMMANDS) > 60
    assert commands_in("    balcap sft --a \\\n        --b 1\n\n`balcap x`\n") == [
        "balcap sft --a         --b 1"
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_understood(command, monkeypatch):
    def parse_alone(*arguments, **options):
        original(*arguments, **options)
        raise Parsed

    original = main.parse
    for module in MODULES:
        if hasattr(module, "parse"):
            monkeypatch.setattr(module, "parse", parse_alone)
    monkeypatch.setattr(main, "_origin", lambda arguments, name: None)  # a run to resume
    for name, value in STAND_FOR.items():
        command = command.replace(name, value)
    arguments = shlex.split(command, comments=True)[1:]
    with pytest.raises(Parsed):
        main._dispatch(arguments)
