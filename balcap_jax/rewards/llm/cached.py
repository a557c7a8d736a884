"""Questions in words of their own to one model: cached, and equal ones asked once at a time.

The cache is all that is kept of a start that was killed: what is in it is not asked again.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.rewards.llm.accounting import Ledger
from balcap_jax.rewards.llm.cache import Cache, key_of
from balcap_jax.rewards.llm.images import SentImage
from balcap_jax.rewards.llm.limits import Clock, Sleep
from balcap_jax.rewards.llm.once import Once
from balcap_jax.rewards.llm.questions import Part
from balcap_jax.rewards.llm.request_form import Sampling
from balcap_jax.rewards.llm.stored_answers import StoredAnswers

T = TypeVar("T")

_IN_WORDS: Mapping[str, Any] = {}  # the schema of an answer whose form the words ask for


class CachedClient:
    """Asks one model about one topic; used by one event loop.

    Args:
      judge: `structured` is used where a question has a schema.
      topic: what the questions are of: a benchmark, a reward. A part of every key.
      version: of the words of the questions; another one asks anew.
      clock, sleep: of seconds; tests give their own.

    Raises:
      UserError: no model is named, `openai` is not installed, or the cache cannot be used.
    """

    def __init__(
        self,
        judge: JudgeConfig,
        ledger: Ledger,
        *,
        topic: str,
        version: str,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ):
        self.judge = judge
        self._topic, self._version = topic, version
        self._default = Sampling(judge.temperature, judge.max_tokens)
        self._answers = StoredAnswers(judge, ledger, version=version, clock=clock, sleep=sleep)
        self._calls: Once = Once(keep=False)

    @property
    def cache(self) -> Cache:
        """Of `judge.cache`; the caller closes it, after `close`."""
        return self._answers.cache

    async def ask(
        self,
        part: str,
        texts: tuple[str, str],
        check: Callable[[str], T],
        *,
        sampling: Sampling | None = None,
        image: SentImage | None = None,
        schema: Mapping[str, Any] = _IN_WORDS,
    ) -> T:
        """The checked answer, from the cache or the model.

        Args:
          part: name of the question.
          texts: of the system ("": there is none) and of the user.
          check: raises BadAnswer for what is asked for again.
          sampling: a part of the key, too; another seed is another answer. Default: by the settings
            of the judge, and warmer when an answer cannot be used, as one at temperature 0 would
            come again.
          image: stands before the user's text.
          schema: JSON schema of the answer; default: any text.

        Raises:
          CallFailed: there is none.
          UserError: the cache is to be replayed, and another program has locked it.
        """
        system, user = map(_sendable, texts)
        key = key_of(
            model=self.judge.model,
            version=self._version,
            part=f"{self._topic}/{part}",
            image=image.digest if image else None,
            side=self.judge.image_side if image else None,
            text=[system, user],
            sampling=(sampling or self._default)._asdict(),
        )
        return await self._answers.get(
            key,
            Part(f"{self._topic}_{part}", "", dict(schema), frozenset()),
            lambda: _messages(system, user, image),
            check,
            once=self._calls,
            sampling=sampling,
            pixels=image.pixels if image else 0,
        )

    async def cancel(self) -> None:
        """Ends the calls that are under way."""
        await self._calls.end()

    async def close(self) -> None:
        """Closes the connections."""
        await self._answers.close()


def _messages(system: str, user: str, image: SentImage | None) -> list[dict[str, Any]]:
    content: Any = user
    if image is not None:
        shown = {"type": "image_url", "image_url": {"url": image.url, "detail": "high"}}
        content = [shown, {"type": "text", "text": user}]
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": content}]


def _sendable(text: str) -> str:
    """Half of a character cannot be sent."""
    return text.encode("utf-8", "replace").decode("utf-8")
