"""The one exception for mistakes that the user can fix."""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_FLAGS: ContextVar[bool] = ContextVar("flags", default=False)
_PYTHON: ContextVar[bool] = ContextVar("python", default=False)


class UserError(ValueError):
    """A mistake in settings, data or files: one sentence with the value, the rule and the remedy.

    The command line prints the sentence and exits with 2; a traceback is for our own bugs only.
    """


def as_arguments(sentence: str) -> str:
    """`sentence` with its flags as settings are called in Python: --rl.kl-coef -> rl.kl_coef."""
    sentence = re.sub(
        r"`balcap (?:train|sft) --resume ([^`]+)`", r"Trainer(resume='\1').train()", sentence
    )
    return re.sub(
        r"(?<![\w-])--([a-z][a-z0-9_.-]*[a-z0-9])", lambda m: m[1].replace("-", "_"), sentence
    )


@contextmanager
def speaking_flags() -> Iterator[None]:
    """Settings that are made in this block come from the command line: mistakes in them are told
    in its flags, as `in_callers_words` says them.
    """
    token = _FLAGS.set(True)
    try:
        yield
    finally:
        _FLAGS.reset(token)


def in_callers_words(sentence: str) -> str:
    """`sentence`, which names flags, as whoever makes settings writes them: flags on the command
    line, settings in Python.
    """
    return sentence if _FLAGS.get() else as_arguments(sentence)


def called_in_python() -> bool:
    """Whether this is within what `speaks_python` marks."""
    return _PYTHON.get()


def speaks_python(function: Callable[P, R]) -> Callable[P, R]:
    """For what is called in Python: a UserError of `function` names arguments and not flags."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _PYTHON.set(True)
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise UserError(as_arguments(str(error))) from error
        finally:
            _PYTHON.reset(token)

    return call
