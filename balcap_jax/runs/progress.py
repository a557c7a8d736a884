"""Progress bars with rate and remaining time, on a terminal; one line now and then elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from balcap_jax.config.commands import SFTConfig, TrainConfig

console = Console(stderr=True)


def _is_watched() -> bool:
    """A terminal, or a notebook with the widgets that rich moves: elsewhere lines are printed."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def announce(line: str, *, shown: bool = True) -> None:
    """One line about what a run is going to do."""
    if shown:
        console.print(line, highlight=False, soft_wrap=not _is_watched())


def announce_settings(config: TrainConfig | SFTConfig) -> None:
    """Says what is known before anything is opened."""
    if isinstance(config, SFTConfig):
        batch = f"{config.batch_size} images"
    else:
        batch = f"{config.prompts_per_step} images x {config.rollout.group_size} captions"
    announce(
        f"{config.out / config.name}: {config.steps} steps of {batch}, "
        f"policy {config.model.path}, data {config.data.path}"
    )


@contextmanager
def waiting(what: str, *, shown: bool = True) -> Iterator[None]:
    """Says what takes its time while the block runs."""
    if not shown:
        yield
    elif console.is_terminal:  # a spinner would fill a notebook with lines
        with console.status(what):
            yield
    else:
        console.print(f"{what} ...", highlight=False)
        yield


@contextmanager
def training_progress(
    name: str, total: int, *, done: int = 0, note: str = "", shown: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """A bar for `total` steps: call the yielded function with the steps done and a short note.

    Where stderr is no terminal, about twenty lines are printed over the run instead.

    Args:
      note: what happens before the first step.
      shown: False where another process shows it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
    )
    hidden = not (shown and _is_watched())
    with Progress(*columns, console=console, disable=hidden) as progress:
        task = progress.add_task(name, total=total, completed=done, note=note, rate="")
        if note and shown and not _is_watched():
            console.print(f"{name} {done}/{total} {note} ...", highlight=False)
        printed = done

        def advance(step: int, note: str) -> None:
            nonlocal printed
            speed = progress.tasks[0].speed
            rate = f"{speed:.2f}/s" if speed else ""
            # In notebooks rich draws nothing at the end that it has not drawn before.
            last = step == total and console.is_jupyter
            progress.update(task, completed=step, note=note, rate=rate, refresh=last)
            due = step - printed >= total / 20 or step == total
            if shown and not _is_watched() and due:
                printed = step
                console.print(f"{name} {step}/{total} {note}", highlight=False)

        yield advance
