"""Progress bars with rate and remaining time, on a terminal; one line now and then elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


@contextmanager
def training_progress(
    name: str, total: int, *, done: int = 0, shown: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """A bar for `total` steps: call the yielded function with the steps done and a short note.

    Where stderr is no terminal, about twenty lines are printed over the run instead.

    Args:
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
    hidden = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=hidden) as progress:
        task = progress.add_task(name, total=total, completed=done, note="", rate="")
        printed = done

        def advance(step: int, note: str) -> None:
            nonlocal printed
            speed = progress.tasks[0].speed
            rate = f"{speed:.2f}/s" if speed else ""
            progress.update(task, completed=step, note=note, rate=rate)
            due = step - printed >= total / 20 or step == total
            if shown and not console.is_terminal and due:
                printed = step
                console.print(f"{name} {step}/{total} {note}", highlight=False)

        yield advance
