"""The end of a batch of calls: what was answered, and why the rest was not."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from balcap_jax.rewards.llm.client import CallFailed
from balcap_jax.rewards.llm.loop_thread import LoopThread

T = TypeVar("T")

CLOSED = "the judge was closed"
_LATE = "not answered within judge.deadline"


async def settle(
    loop: LoopThread,
    tasks: Sequence["asyncio.Task[T]"],
    *,
    deadline: float,
    end: Callable[[], Coroutine[Any, Any, None]],
    after: "asyncio.Future[Any] | None" = None,
) -> tuple[list[T | None], Counter[str]]:
    """The results of tasks, None for what failed or was late, and how often each reason was.

    Args:
      deadline: seconds for all.
      end: cancels what the tasks share.
      after: see `LoopThread.wait`.

    Raises:
      Exception: a task ended by an error that is no failed call.
    """
    try:
        await loop.wait(tasks, timeout=deadline, after=after)
    finally:
        for task in tasks:
            task.cancel()
        await end()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    failures: Counter[str] = Counter()
    for outcome in outcomes:
        if isinstance(outcome, CallFailed):
            failures[str(outcome)] += 1
        elif isinstance(outcome, asyncio.CancelledError):
            failures[CLOSED if loop.closed else _LATE] += 1
        elif isinstance(outcome, BaseException):
            raise outcome
    return [None if isinstance(o, BaseException) else o for o in outcomes], failures
