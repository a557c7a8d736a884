"""Reward functions of the user, called as TRL's GRPOTrainer calls them.

    def short(completions, **columns):
        return [1 / (1 + len(completion.split())) for completion in completions]

A function gets `prompts`, `completions` and `completion_ids` (lists, an entry per completion), the
columns of the data (a list per column), `trainer_state`, `log_extra` and `log_metric`, all by name,
and returns a number per completion; None or NaN is no signal. It may be `async`. Completions are
texts, or lists of one message where the row's prompt is a list of messages.
"""

import asyncio
import inspect
import math
import numbers
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError, described
from balcap_jax.rewards.function_names import RewardFunction

_LARGEST = float(np.finfo(np.float32).max)  # above it a reward would become infinite
_BLAME_SECONDS = 10.0  # for finding the completion at which a function raises


class TrainerState(NamedTuple):
    """What `trainer_state` tells a reward function; names as in transformers' TrainerState."""

    global_step: int
    max_steps: int
    epoch: float
    is_world_process_zero: bool = True


class Completions(NamedTuple):
    """Captions to score, flat, an entry per caption.

    Attributes:
      ids: tokens of each, the stop token included.
    """

    examples: Sequence[Example]
    captions: Sequence[str]
    ids: Sequence[Sequence[int]]


class FunctionScores(NamedTuple):
    """What the functions gave.

    Attributes:
      rewards: NaN = no signal.
      extra: columns for the samples, by name, an entry per caption.
      metrics: numbers for the row of metrics, by name: means over the calls of `log_metric`.
    """

    rewards: Float[np.ndarray, "n k"]
    extra: dict[str, list]
    metrics: dict[str, float]


class RewardFunctionError(UserError):
    """A reward function raised, or returned what is no reward; the run is saved before it ends."""


class RewardFunctions:
    """The functions of a run, called one after the other; async ones together."""

    def __init__(self, functions: Sequence[RewardFunction]):
        self.functions = tuple(functions)
        self.names = tuple(function.name for function in functions)
        self._loop: _LoopThread | None = None

    def __call__(self, completions: Completions, state: TrainerState) -> FunctionScores:
        """Rewards of all completions.

        Raises:
          RewardFunctionError: a function raised or returned what is no reward, with its name and
            the row.
        """
        count = len(completions.captions)
        log = _Log(count)
        if not count or not self.functions:
            return FunctionScores(np.zeros((count, len(self.functions)), np.float32), {}, {})
        arguments = arguments_of(completions, state, log)
        # Lists of its own for each: what one function does to them is nothing to the others.
        answers: list[Any] = [
            self._call(f, {name: _copied(value) for name, value in arguments.items()}, completions)
            for f in self.functions
        ]
        waiting = [i for i, answer in enumerate(answers) if inspect.isawaitable(answer)]
        results = self._await([answers[i] for i in waiting]) if waiting else []
        for i, result in zip(waiting, results, strict=True):
            if isinstance(result, BaseException):
                raise self._blamed(self.functions[i], arguments, completions, result)
            answers[i] = result
        columns = [
            _numbers(function, answer, completions.examples)
            for function, answer in zip(self.functions, answers, strict=True)
        ]
        rewards = np.array(columns, np.float32).T.reshape(count, len(self.functions))
        return FunctionScores(rewards, log.extra, log.means())

    def close(self) -> None:
        """Ends the thread of async functions; twice is fine."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _call(
        self, function: RewardFunction, arguments: dict[str, Any], completions: Completions
    ) -> Any:
        try:
            return function.call(**arguments)
        except Exception as error:  # the user's code may raise anything
            raise self._blamed(function, arguments, completions, error) from error

    def _await(self, answers: Sequence[Any]) -> list[Any]:
        if self._loop is None:  # one loop for the whole run: clients that functions keep live in it
            self._loop = _LoopThread()
        return self._loop.run(_gather(answers))

    def _blamed(
        self,
        function: RewardFunction,
        arguments: dict[str, Any],
        completions: Completions,
        error: BaseException,
    ) -> RewardFunctionError:
        """The error with the row at which the function raises, where calling it again tells."""
        row = self._row_that_raises(function, arguments, len(completions.captions))
        examples = completions.examples
        where = (
            f"row {examples[row].id!r} (caption {completions.captions[row]!r:.60})"
            if row is not None
            else f"the rows {examples[0].id!r} to {examples[-1].id!r}"
        )
        return RewardFunctionError(
            f"The reward function {function.name} raised at {where}: {described(error)}; fix it "
            "and go on with the run, which is saved."
        )

    def _row_that_raises(
        self, function: RewardFunction, arguments: dict[str, Any], count: int
    ) -> int | None:
        began = time.monotonic()
        for row in range(count):
            alone = {
                name: [value[row]] if name not in _SHARED else value
                for name, value in arguments.items()
            } | _Log(1).calls()
            try:
                answer = function.call(**alone)
                if inspect.isawaitable(answer) and isinstance(
                    self._await([answer])[0], BaseException
                ):
                    return row
            except Exception:
                return row
            if time.monotonic() - began > _BLAME_SECONDS:
                return None
        return None


_SHARED = ("trainer_state", "log_extra", "log_metric")


def arguments_of(completions: Completions, state: TrainerState, log: "_Log") -> dict[str, Any]:
    """The keyword arguments of a call, as TRL's GRPOTrainer makes them.

    Columns of the data that some rows lack are None there. What every example knows of itself comes
    under `id`, `image`, `reference` and `references` where the data have no such column.
    """
    columns = [_columns(example) for example in completions.examples]
    names = dict.fromkeys(name for row in columns for name in row)
    return {
        "prompts": [_prompt(example) for example in completions.examples],
        "completions": [
            [{"role": "assistant", "content": caption}] if example.messages else caption
            for example, caption in zip(completions.examples, completions.captions, strict=True)
        ],
        "completion_ids": [list(ids) for ids in completions.ids],
        **{
            name: [row.get(name) for row in columns]
            for name in names
            if name not in ("prompts", "completions", "completion_ids", *_SHARED)
        },
        "trainer_state": state,
        **log.calls(),
    }


def _prompt(example: Example) -> str | list[dict[str, Any]]:
    return [dict(message) for message in example.messages] or example.prompt


def _columns(example: Example) -> dict[str, Any]:
    known: dict[str, Any] = {"id": example.id, "image": example.image}
    if example.reference:
        known["reference"] = example.reference
        known["references"] = list(example.references) or [example.reference]
    if example.boxes:
        known["boxes"] = list(example.boxes)
    return known | dict(example.columns)


class _Log:
    """What `log_extra` and `log_metric` collect in one call of all functions."""

    def __init__(self, count: int):
        self._count = count
        self.extra: dict[str, list] = {}
        self._metrics: dict[str, list[float]] = {}

    def calls(self) -> dict[str, Callable[..., None]]:
        return {"log_extra": self._add_extra, "log_metric": self._add_metric}

    def _add_extra(self, column: str, values: Sequence) -> None:
        if len(values) != self._count:
            raise ValueError(f"log_extra({column!r}) has {len(values)} values for {self._count}")
        self.extra[column] = [_plain(value) for value in values]

    def _add_metric(self, name: str, value: float) -> None:
        self._metrics.setdefault(name, []).append(float(value))

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self._metrics.items()}


def _numbers(function: RewardFunction, answer: Any, examples: Sequence[Example]) -> list[float]:
    """The rewards in what a function returned; None is NaN.

    Raises:
      RewardFunctionError: they are not as many as the completions, or one is no number.
    """
    try:
        values = answer.tolist() if hasattr(answer, "tolist") else answer  # arrays and tensors
    except Exception:  # of an array that has no plain form
        values = None
    # Sets have no order, and the numbers in bytes are no rewards.
    if isinstance(values, str | bytes | bytearray | Mapping | Set) or not hasattr(
        values, "__len__"
    ):
        raise RewardFunctionError(
            f"The reward function {function.name} returned {_kind(answer)}, which must be a list "
            f"of {len(examples)} numbers, one per completion, or None in a place without signal; "
            "change it."
        )
    if len(values) != len(examples):
        raise RewardFunctionError(
            f"The reward function {function.name} returned {len(values)} rewards for "
            f"{len(examples)} completions, and there must be one for each; change it."
        )
    found = []
    for value, example in zip(values, examples, strict=True):
        number = _number(value)
        if number is None:
            raise RewardFunctionError(
                f"The reward function {function.name} returned {value!r:.60} for row "
                f"{example.id!r}, which must be a finite number of float32, or None or NaN for no "
                "signal; change it."
            )
        found.append(number)
    return found


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _number(value: Any) -> float | None:
    """A reward as a number, NaN for no signal; None for what is none."""
    if value is None:
        return math.nan
    try:
        value = value.item() if hasattr(value, "item") else value
        number = float(value) if isinstance(value, numbers.Real) else math.inf
    except (ValueError, OverflowError, RuntimeError):  # an array, a number of 400 digits
        return None
    return None if abs(number) > _LARGEST else number


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A value of `log_extra` as JSON holds it; as text where it is none of JSON's."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # numbers of numpy, torch
    return value if isinstance(value, str | int | float | None) else str(value)


class _LoopThread:
    """An event loop in a thread of its own: the caller's thread may have one already, as in a
    notebook.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="reward-functions", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _gather(answers: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*answers, return_exceptions=True)
