"""The type checker that annotations of shapes are checked with; see conftest.py."""

from collections.abc import Callable

from beartype import beartype


def checked(function: Callable) -> Callable:
    """Functions within functions are left alone: they would be wrapped anew in every call, which
    takes longer than what tests compute in them.
    """
    return function if "<locals>" in getattr(function, "__qualname__", "") else beartype(function)
