"""A judge of kind "model" in a run: whether it may be the policy itself, and how it sees."""

from collections.abc import Sequence

import numpy as np

from balcap_jax.config.commands import TrainConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.rewards.model.judge import ModelJudge
from balcap_jax.rewards.model.scene_questions import is_true
from balcap_jax.rewards.model.statements import statements


def check_own_policy(config: TrainConfig) -> None:
    """Raises a UserError where the policy would judge itself and nobody has said that it may."""
    judge = config.judge
    if judge.kind != "model" or judge.own_policy:
        return
    folders = [policy_folder(config.model.path, revision=config.model.revision)]
    folders.append(policy_folder(judge.model))
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(
            f"judge.model={judge.model!r} is the policy that is trained, which believes its own "
            "inventions; name another policy, or set --judge.own-policy true."
        )


def on_own_captions(
    judge: ModelJudge, examples: Sequence[Example], captions: Sequence[str]
) -> str | None:
    """A line on how well it tells true from false statements of captions of scenes; None where
    there is no scene or no pair of both.
    """
    asked = [
        (example, made.text, true)
        for example, caption in zip(examples, captions, strict=True)
        if example.scene is not None
        for made in statements(caption)
        if (true := is_true(made.text, example.scene)) is not None
    ]
    if not asked:
        return None
    shown, texts, true = zip(*asked, strict=True)
    auc = judge.auc(shown, texts, true)
    if np.isnan(auc):
        return None
    return (
        f"judge {judge.name}: AUC within images {auc:.2f} on the policy's own captions "
        f"({len(texts)} statements, {np.mean(true):.0%} of them true)"
    )
