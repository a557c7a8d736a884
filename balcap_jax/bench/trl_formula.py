"""TRL's advantage formula, run from TRL's own installed source.

TRL computes advantages inside a method of its trainer, which needs a model to call. This module
cuts those statements out of the installed file and compiles them, so that comparisons are with
what TRL ships and not with our reading of it. Neither TRL nor its dependencies are imported;
only torch is.
"""

import ast
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

Aggregation = Literal["normalize_then_sum", "sum_then_normalize"]
Formula = Callable[[Any], Any]


def installed() -> bool:
    """Whether both torch and TRL are installed."""
    return find_spec("torch") is not None and find_spec("trl") is not None


def describe() -> str:
    """The versions that `load` runs, for a report."""
    return f"TRL {version('trl')}, torch {version('torch')}"


def load(
    aggregation: Aggregation,
    *,
    weights: tuple[float, ...],
    scale: Literal["group", "batch", "none"] = "group",
) -> Formula:
    """TRL's formula as a function of a torch tensor of rewards `[B, G, K]`, giving `[B, G]`.

    Args:
      aggregation: TRL's name: "normalize_then_sum" is GDPO, "sum_then_normalize" GRPO.
      weights: one per reward, as TRL's `reward_weights`.
      scale: TRL's `scale_rewards`; GRPO only.

    Raises:
      LookupError: this version of TRL is written another way.
    """
    function = _compiled("grpo_trainer.py", _OF_GRPO)
    return _formula(
        function,
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        weights=weights,
    )


def load_rloo(*, weights: tuple[float, ...]) -> Formula:
    """TRL's leave-one-out formula, without its KL in the reward, as `load` gives the others.

    Args:
      weights: one per reward, as TRL's `reward_weights`.

    Raises:
      LookupError: this version of TRL is written another way.
    """
    function = _compiled("rloo_trainer.py", _OF_RLOO)
    return _formula(function, normalize_advantages=False, weights=weights)


# How the statements from rewards to advantages begin, in their order.
_OF_GRPO = (
    "unscorable_mask = ",
    "if self.multi_objective_aggregation == ",
    "advantages = torch.nan_to_num(",
)
_OF_RLOO = (
    "unscorable_mask = ",
    "rewards = (rewards_per_func * ",
    "rewards[unscorable_mask] = ",
    "grouped_rewards = ",
    "scorable_counts = ",
    "grouped_sum = ",
    "if num_generations > 1:\n    baselines = ",
    "if self.normalize_advantages:",
    "advantages = torch.nan_to_num(",
)


def _formula(function: Callable[..., Any], *, weights: tuple[float, ...], **settings: Any):
    import torch

    trainer = SimpleNamespace(
        reward_weights=torch.tensor(weights), reward_funcs=weights, **settings
    )

    def formula(rewards):
        batch, group, count = rewards.shape
        trainer.reward_weights = trainer.reward_weights.to(rewards.dtype)
        advantages = function(trainer, rewards.view(-1, count), group, torch.device("cpu"))
        return advantages.view(batch, group)

    return formula


def _compiled(trainer_file: str, beginnings: Sequence[str]) -> Callable[..., Any]:
    """A function of the statements of TRL's trainer that begin like this."""
    import torch

    statements, nanstd = _statements(trainer_file, beginnings)
    arguments = ["self", "rewards_per_func", "num_generations", "device"]
    function = ast.FunctionDef(
        name="formula",
        args=ast.arguments(
            posonlyargs=[],
            args=[ast.arg(name) for name in arguments],
            kwonlyargs=[],
            kw_defaults=[],
            defaults=[],
        ),
        body=[*statements, *ast.parse("return advantages").body],
        decorator_list=[],
        type_params=[],
    )
    module = ast.fix_missing_locations(ast.Module([nanstd, function], type_ignores=[]))
    namespace = {"torch": torch}
    exec(compile(module, f"trl/trainer/{trainer_file}", "exec"), namespace)
    return namespace["formula"]


def _statements(
    trainer_file: str, beginnings: Sequence[str]
) -> tuple[list[ast.stmt], ast.FunctionDef]:
    """The first statement with each of these beginnings, and TRL's `nanstd`, which they call."""
    folder = Path(find_spec("trl").submodule_search_locations[0]) / "trainer"
    trainer = ast.parse((folder / trainer_file).read_text(encoding="utf-8"))
    utils = ast.parse((folder / "utils.py").read_text(encoding="utf-8"))
    nanstd = [n for n in utils.body if isinstance(n, ast.FunctionDef) and n.name == "nanstd"]
    for body in (n.body for n in ast.walk(trainer) if isinstance(n, ast.FunctionDef)):
        firsts = [next((n for n in body if ast.unparse(n).startswith(b)), None) for b in beginnings]
        if None not in firsts and nanstd:
            return [_WithoutLogging().visit(n) for n in firsts], nanstd[0]
    raise LookupError(f"the advantage formula was not found in TRL {version('trl')}")


class _WithoutLogging(ast.NodeTransformer):
    """Drops what is computed for the log only: a fair time is that of the advantages alone."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:  # noqa: N802
        return None if ast.unparse(node.targets[0]) == "is_std_zero" else node
