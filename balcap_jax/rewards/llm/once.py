"""Work that several tasks of one event loop wait for and that is done once."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Results by key.

    Args:
      keep: what is done stays until `end`, failures too; else it is forgotten once it is done, and
        who asks later has it done again.
    """

    def __init__(self, *, keep: bool):
        self._keep = keep
        self._work: dict[Hashable, asyncio.Future[T]] = {}

    async def __call__(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns or raises, begun by the first who asks; none who waits ends it."""
        if key not in self._work:
            self._work[key] = asyncio.ensure_future(work())
        mine = self._work[key]
        try:
            return await asyncio.shield(mine)
        finally:
            if not self._keep and mine.done() and self._work.get(key) is mine:
                del self._work[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._work

    def is_running(self, key: Hashable) -> bool:
        return key in self._work and not self._work[key].done()

    async def ended(self, key: Hashable) -> None:
        """Waits until what is under way for `key` has ended, whatever came of it."""
        if self.is_running(key):
            await asyncio.wait((self._work[key],))

    async def end(self) -> None:
        """Cancels what is under way and forgets all."""
        work = list(self._work.values())
        for one in work:
            one.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        self._work.clear()
