"""What judging costs: calls, tokens, price, latencies, and why captions got no verdict."""

from collections import Counter

import numpy as np


class Ledger:
    """Counts since the last lap.

    Args:
      prompt_price, completion_price: of a million tokens.
    """

    def __init__(self, *, prompt_price: float, completion_price: float):
        self._prices = (prompt_price, completion_price)
        self._start()

    def _start(self) -> None:
        self._counts: Counter[str] = Counter()
        self._latencies: list[float] = []

    def call(self, *, seconds: float, tokens: tuple[int, int]) -> None:
        """A call that was answered, usably or not.

        Args:
          tokens: what it took, of the prompt and of the answer.
        """
        self._latencies.append(seconds)
        self._spend(tokens)

    def error(self, tokens: tuple[int, int] = (0, 0)) -> None:
        """A call that brought no answer, and what it took where the server told."""
        self._counts["errors"] += 1
        self._spend(tokens)

    def _spend(self, tokens: tuple[int, int]) -> None:
        self._counts["calls"] += 1
        self._counts["prompt_tokens"] += tokens[0]
        self._counts["completion_tokens"] += tokens[1]

    def bad_answer(self) -> None:
        """An answer that could not be used."""
        self._counts["bad_answers"] += 1

    def cache_hit(self) -> None:
        """An answer that was in the cache."""
        self._counts["cache_hits"] += 1

    def failures(self, count: int) -> None:
        """Captions, or references, that got no usable answer."""
        self._counts["failures"] += count

    def lap(self) -> dict[str, float]:
        """The counts, starting anew: `calls` (tries, each one counted), `errors`, `bad_answers`,
        `cache_hits`, `failures` (captions without a verdict), `prompt_tokens`,
        `completion_tokens`, `price`, `call_seconds` (of all answered calls together, as if one came
        after the other), `latency_p50`, `latency_p95` (seconds; NaN without calls).
        """
        names = (
            "calls", "errors", "bad_answers", "cache_hits", "failures", "prompt_tokens",
            "completion_tokens",
        )  # fmt: skip
        row: dict[str, float] = {name: self._counts[name] for name in names}
        row["price"] = (
            self._prices[0] * row["prompt_tokens"] + self._prices[1] * row["completion_tokens"]
        ) / 1e6
        row["call_seconds"] = sum(self._latencies)
        for share in (50, 95):
            known = self._latencies
            row[f"latency_p{share}"] = float(np.percentile(known, share)) if known else np.nan
        self._start()
        return row


def listing(failures: Counter[str]) -> str:
    """ "timeout (12), HTTP 500 (3)": the most frequent reasons."""
    return ", ".join(f"{reason} ({count})" for reason, count in failures.most_common(3))
