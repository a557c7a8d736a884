"""orbax and tensorstore write pages about a failed read or save, which we raise as one sentence."""

import functools
import gc
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any


@functools.cache
def quiet_storage() -> None:
    """From here on this process drops what is written about a storage error beside the error.

    A failed save ends its event loop while threads of tensorstore still report to it; Python hands
    each report to its hook for errors that nobody can catch.
    """
    # Of a library's coroutines, by their names: our own shall be heard of.
    warnings.filterwarnings(
        "ignore", message=r"coroutine '(async_serialize|_read_array|_async)\S*' was never awaited"
    )
    logging.getLogger("absl").addFilter(_not_from_orbax)
    # Of parts of a save that fail after the first that failed, which is the one that is raised.
    logging.getLogger("asyncio").addFilter(_not_of_orbax)
    sys.excepthook = _without_closed_loops(sys.excepthook, of=lambda *args: args[1])
    sys.unraisablehook = _without_closed_loops(sys.unraisablehook, of=lambda told: told.exc_value)


def drop_half_done() -> None:
    """Collects what a failed read or save left waiting, without a page about each part of it."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _not_of_orbax(record: logging.LogRecord) -> bool:
    # asyncio names the coroutine and its file: "coro=<... defined at .../orbax/...>".
    return "orbax" not in record.getMessage()


def _without_closed_loops(hook: Callable[..., Any], *, of: Callable[..., Any]) -> Callable:
    def quiet(*args: Any) -> None:
        error = of(*args)
        if not (isinstance(error, RuntimeError) and "Event loop is closed" in str(error)):
            hook(*args)

    return quiet
