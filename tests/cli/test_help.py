"""Help: quick, complete, in nouns."""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from balcap_jax.cli import bench, plan
from balcap_jax.cli import main as cli
from balcap_jax.cli.flags import flags_of
from balcap_jax.config import (
    commands,
    evaluation,
    evidence,
    judge,
    questions,
    reward,
    rivals,
    sections,
)
from balcap_jax.config.base import Settings
from balcap_jax.config.commands import CaptionConfig, ScoreConfig, SFTConfig, TrainConfig


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--beta", "1"]])
def test_help_and_mistakes_import_nothing_heavy(arguments):
    code = (
        f"import sys; from balcap_jax.cli.main import main; main({arguments});"
        "heavy = {'jax', 'flax', 'numpy', 'torch', 'transformers', 'orbax', 'matplotlib'};"
        "sys.exit(str(sorted(heavy & set(sys.modules))))"
    )
    root = str(Path(cli.__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert result.stderr.splitlines()[-1] == "[]"  # the exit message
    assert ("usage: balcap" in result.stdout) == (arguments[-1] == "--help")


@pytest.mark.parametrize("kind", [TrainConfig, SFTConfig, CaptionConfig, ScoreConfig])
def test_the_help_lists_the_flags_that_are_read(kind, capsys):
    command = {TrainConfig: "train", SFTConfig: "sft", CaptionConfig: "caption"}.get(kind, "score")
    assert cli.main([command, "--help"]) == 0
    listed = re.findall(r"(--[a-z][a-z0-9.-]*)", capsys.readouterr().out)
    by_place = {"--images", "--input", "--output"}
    assert set(flags_of(kind)) - by_place <= set(listed)


@pytest.mark.parametrize(
    ("command", "form"),
    [
        ("export", "balcap export RUN OUT"),
        ("score", "balcap score INPUT OUTPUT"),
        ("report", "balcap report RUN"),
        ("caption", "balcap caption IMAGES"),
        ("plan", "balcap plan CONFIG"),
        ("scenes", "balcap scenes OUT"),
        ("data units", "balcap data units DATA"),
        ("data recaption", "balcap data recaption DATA OUT"),
        ("bench load", "balcap bench load FOLDER"),
        ("bench judge", "balcap bench judge DATA"),
        ("eval report", "balcap eval report FOLDERS"),
    ],
)
def test_help_tells_what_is_given_by_place(command, form, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    assert form in capsys.readouterr().out


ALL = {
    kind
    for module in (
        commands,
        evaluation,
        evidence,
        judge,
        questions,
        reward,
        rivals,
        sections,
        bench,
        plan,
        cli,
    )
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Settings) and kind is not Settings
}
NOT_NOUNS = set(
    "Added After Also Answer By Compile Continue Divide For How Not Of Print Run Sample Say Some "
    "Stop Take Try What When Where Which Whiten Who Write".split()
)


def comments_of(kind):
    """The comment of each field: beside it, or the lines above it."""
    above = []
    own = [base for base in reversed(kind.__mro__) if issubclass(base, Settings)][1:]
    for line in "\n".join(map(inspect.getsource, own)).splitlines():
        if match := re.match(r"    # (.*)", line):
            above.append(match[1])
        elif match := re.match(r"    (\w+): ", line):
            beside = line.partition("  # ")[2]
            yield match[1], beside or " ".join(above)
            above = []
        else:
            above = []


@pytest.mark.parametrize("kind", sorted(ALL, key=lambda kind: kind.__name__))
def test_help_starts_with_a_noun(kind):
    comments: dict[str, str] = {}
    for one in reversed(kind.__mro__):  # settings that are inherited have their comments there
        comments |= dict(comments_of(one)) if dataclasses.is_dataclass(one) else {}
    for item in dataclasses.fields(kind):
        inner = getattr(item.type, "__origin__", item.type)
        if isinstance(inner, type) and issubclass(inner, Settings):
            continue
        text = comments[item.name]
        assert re.match(r"[A-Z]", text), f"{kind.__name__}.{item.name}: {text}"
        assert text.split()[0].rstrip(",:") not in NOT_NOUNS, f"{kind.__name__}.{item.name}: {text}"
        assert text.endswith((".", "...", "?")), f"{kind.__name__}.{item.name}: {text}"
    assert inspect.getdoc(kind).split()[0] not in NOT_NOUNS
