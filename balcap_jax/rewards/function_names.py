"""Reward functions by name: from settings and from objects to functions that a run can call."""

import importlib
import importlib.util
import inspect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError

# What a function gets beside the columns of the data, by name.
ALWAYS_PASSED = (
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric",
)  # fmt: skip
IN_PYTHON = "in Python:"  # how a run's settings name a function that was given as an object


class RewardFunction(NamedTuple):
    """A function with its name in metrics, samples and settings.

    Attributes:
      spec: what `reward.functions` of the run's settings holds.
    """

    name: str
    spec: str
    call: Callable[..., Any]


def load_function(spec: str) -> RewardFunction:
    """The function that `FILE.py:NAME` or `MODULE:NAME` names.

    Raises:
      UserError: there is no such file, module or function, or it fails to be imported.
    """
    if spec.startswith(IN_PYTHON):
        raise UserError(
            f"The reward {spec.removeprefix(IN_PYTHON)!r} was given to a Trainer in Python, where "
            "the command line cannot find it; go on there: Trainer(resume=RUN, reward_funcs=[...])."
        )
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(
            f"reward.functions holds {spec!r}, which must be FILE.py:NAME or MODULE:NAME; write it "
            "like my_rewards.py:short."
        )
    module = _module_of(place, spec)
    call = getattr(module, name, None)
    if not callable(call):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        guess = did_you_mean(name, known) or "; define it there."
        raise UserError(
            f"reward.functions holds {spec!r}, but {place} has no function {name}{guess}"
        )
    _check_signature(call, name)
    return RewardFunction(name, spec, call)


def _module_of(place: str, spec: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise UserError(
                f"reward.functions holds {spec!r}, but there is no file {place}; check the path."
            )
        loader = importlib.util.spec_from_file_location(f"balcap_rewards_{path.stem}", path)
        assert loader is not None
        assert loader.loader is not None
        module = importlib.util.module_from_spec(loader)
        loader.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"reward.functions holds {spec!r}, but {place} cannot be imported "
            f"({described(error)}); fix it."
        ) from error


def name_function(call: Any) -> RewardFunction:
    """A function given as an object, by the name it was defined with; "lambda" for a lambda.

    Raises:
      UserError: it cannot be called, has no name, or refuses what every call passes by name.
    """
    if isinstance(call, str):
        raise UserError(
            f"reward_funcs holds {call!r}, and reward models by name are not known here; give a "
            "function that asks the model, or name a judge by judge.kind and judge.model."
        )
    if not callable(call) or isinstance(call, type):
        raise UserError(
            f"reward_funcs holds {call!r:.80}, which must be a function; give a function or an "
            "object with __call__."
        )
    inner = getattr(call, "func", call)  # of functools.partial
    name = getattr(call, "__name__", None) or getattr(inner, "__name__", type(inner).__name__)
    name = "lambda" if name == "<lambda>" else name
    if not name.isidentifier():
        raise UserError(
            f"reward_funcs holds a function called {name!r}, and rewards are told apart by their "
            "names; define it with def."
        )
    _check_signature(call, name)
    return RewardFunction(name, _spec_of(call, name), call)


def name_functions(calls: Sequence[Any]) -> list[RewardFunction]:
    """Functions given as objects; a second one of a name is called NAME_2.

    Raises:
      UserError: see `name_function`.
    """
    found: list[RewardFunction] = []
    for call in calls:
        function, taken = name_function(call), {other.name for other in found}
        name = function.name
        if not any(other.call is call for other in found):  # the same twice is refused by settings
            numbers = itertools.count(2)
            while name in taken:
                name = f"{function.name}_{next(numbers)}"
        spec = function.spec if name == function.name else IN_PYTHON + name
        found.append(RewardFunction(name, spec, call))
    return found


def _check_signature(call: Any, name: str) -> None:
    """Refuses before the run what would raise at its first captions."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # of no Python function
        return
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    refused = [argument for argument in ALWAYS_PASSED if argument not in named]
    if refused and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UserError(
            f"The reward function {name} takes no argument {refused[0]}, and prompts, completions "
            "and all columns are passed by name; give it a last parameter **columns."
        )


def _spec_of(call: Any, name: str) -> str:
    module = getattr(call, "__module__", None)
    if module and module != "__main__":
        try:
            if getattr(importlib.import_module(module), name, None) is call:
                return f"{module}:{name}"
        except ImportError:  # a module of a notebook's or a test's making
            pass
    return IN_PYTHON + name


def described(error: BaseException) -> str:
    """What a user's code raised, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
