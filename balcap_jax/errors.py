"""The one exception for mistakes that the user can fix."""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(ValueError):
    """A mistake in settings, data or files: one sentence with the value, the rule and the remedy.

    The command line prints the sentence and exits with 2; a traceback is for our own bugs only.
    """


def as_arguments(sentence: str) -> str:
    """`sentence` with its flags as settings are called in Python: --rl.kl-coef -> rl.kl_coef."""
    sentence = re.sub(r"`balcap train --resume ([^`]+)`", r"Trainer(resume='\1').train()", sentence)
    return re.sub(
        r"(?<![\w-])--([a-z][a-z0-9_.-]*[a-z0-9])", lambda m: m[1].replace("-", "_"), sentence
    )


def speaks_python(function: Callable[P, R]) -> Callable[P, R]:
    """For what is called in Python: a UserError of `function` names arguments and not flags."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise UserError(as_arguments(str(error))) from error

    return call
