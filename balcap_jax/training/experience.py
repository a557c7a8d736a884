"""What a step learns from: captions of a batch of images, judged, as rewards and advantages."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import RLConfig
from balcap_jax.data.examples import Example
from balcap_jax.parallel.processes import gather_rows
from balcap_jax.parallel.sharding import BatchRows
from balcap_jax.reporting.rows import caption_row
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.commentary import comments, praises_itself
from balcap_jax.rewards.verdicts import Verdict
from balcap_jax.rl.advantages import (
    gdpo_advantages,
    grpo_advantages,
    preset_advantages,
    rloo_advantages,
)
from balcap_jax.rl.contributions import balance, group_spread
from balcap_jax.rl.masking import control_length
from balcap_jax.training.judge_queue import Answered, JudgeQueue
from balcap_jax.training.metrics import length_metrics, reward_metrics


class Judged(NamedTuple):
    """The captions of a batch, [B][G], with what the judge found.

    Attributes:
      rewards: as judged; NaN = no signal.
      studied: as a study changes them; without one the same.
      kept: these after the length control.
      lengths: of the captions, in the unit of the length control.
      words: of the captions.
      token_counts: of the captions, the stop token included.
      praises, comments: the caption praises itself, or comments on the image.
      by_judge, by_rivals: how many of the K rewards are the judge's, which come first, and the
        rivals', which come next.
      taught: of each reward, whether it has a weight; others are only watched.
      extra: what rivals and reward functions noted of the captions, by name, [B][G].
    """

    examples: Sequence[Example]
    captions: list[list[str]]
    verdicts: list[list[Verdict | None]]
    rewards: Float[np.ndarray, "b g k"]
    studied: Float[np.ndarray, "b g k"]
    kept: Float[np.ndarray, "b g k"]
    lengths: Num[np.ndarray, "b g"]
    reference_lengths: Num[np.ndarray, " b"]
    words: Num[np.ndarray, "b g"]
    token_counts: Int[np.ndarray, "b g"]
    praises: Bool[np.ndarray, "b g"]
    comments: Bool[np.ndarray, "b g"]
    by_judge: int
    by_rivals: int
    taught: tuple[bool, ...]
    extra: dict[str, list[list]]

    @property
    def lost(self) -> float:
        """The share of captions without a signal: of the judge or of the rival that gave least,
        whatever functions say; or, without either, no function gave one.
        """
        missing = np.isnan(self.rewards)
        judge, rest = np.split(missing, [self.by_judge], axis=-1)
        shares = [of_rival.mean() for of_rival in np.moveaxis(rest[..., : self.by_rivals], -1, 0)]
        if self.by_judge or not shares:
            shares.append((judge if self.by_judge else missing).all(axis=-1).mean())
        return float(max(shares))

    @property
    def valid(self) -> Bool[np.ndarray, "b g"]:
        """Captions with a signal in at least one reward that is trained on; the others have no
        weight anywhere.
        """
        return ~np.isnan(self.kept[..., np.array(self.taught)]).all(axis=-1)


def reward_captions(
    answered: Answered,
    examples: Sequence[Example],
    captions: list[list[str]],
    token_counts: Num[np.ndarray, "b g"],
    reference_tokens: Num[np.ndarray, " b"],
    reward: RewardConfig,
    *,
    study: Callable[[Float[np.ndarray, "b g k"]], Float[np.ndarray, "b g k"]] | None = None,
) -> Judged:
    """From what was found to rewards, the length control applied.

    Args:
      answered: on all captions, image by image.
      token_counts, reference_tokens: lengths in tokens, for `length_unit="tokens"`.
      study: what it does to the rewards before the length control.
    """
    images, group = np.shape(token_counts)  # no images where other hosts judge all that it holds
    texts = [caption for of_image in captions for caption in of_image]
    verdicts = answered.verdicts
    judged = rewards_of(verdicts, reward.names, pointability=reward.pointability)
    rewards = np.concatenate([judged, answered.others.rewards], axis=1)
    rewards = rewards.reshape(images, group, len(reward.all_names))
    shown = rewards if study is None else study(rewards)
    words = np.array([len(caption.split()) for caption in texts], np.float32)
    words = words.reshape(images, group)
    reference_words = np.array([len(e.reference.split()) for e in examples], np.float32)
    in_words = reward.length_unit == "words"
    lengths = words if in_words else np.asarray(token_counts, np.float32)
    reference_lengths = reference_words if in_words else np.asarray(reference_tokens, np.float32)
    return Judged(
        examples=examples,
        captions=captions,
        verdicts=_by_image(verdicts, group),
        rewards=rewards,
        studied=shown,
        kept=_control_length(shown, lengths, reference_lengths, reward),
        lengths=lengths,
        reference_lengths=reference_lengths,
        words=words,
        token_counts=np.asarray(token_counts, np.int32),
        praises=np.array([praises_itself(text) for text in texts], bool).reshape(images, group),
        comments=np.array([comments(text) for text in texts], bool).reshape(images, group),
        by_judge=len(reward.names),
        by_rivals=len(reward.rival_names),
        taught=tuple(weight > 0 for weight in reward.all_weights),
        extra={name: _by_image(column, group) for name, column in answered.others.extra.items()},
    )


def _by_image(flat: Sequence, group: int) -> list[list]:
    return [list(flat[i : i + group]) for i in range(0, len(flat), group)]


def of_whole_batch(judged: Judged, rows: BatchRows) -> Judged:
    """With the numbers of all hosts' captions, on every host; texts and verdicts stay its own."""
    numbers = {
        name: value for name, value in judged._asdict().items() if isinstance(value, np.ndarray)
    }
    return judged._replace(**gather_rows(rows, numbers))


def _control_length(
    rewards: Float[np.ndarray, "b g k"],
    lengths: Num[np.ndarray, "b g"],
    reference_lengths: Num[np.ndarray, " b"],
    reward: RewardConfig,
) -> Float[np.ndarray, "b g k"]:
    if reward.control == "none":
        return rewards
    kept = control_length(
        reward.mask_mode if reward.control == "mask" else reward.control,
        jax.device_put(rewards),
        jax.device_put(lengths),
        jax.device_put(reference_lengths),
        reward_index=reward.names.index("linguistic"),
        lower=reward.tau_l,
        upper=reward.tau_u,
        coefficient=reward.linear_coefficient,
    )
    return np.asarray(jax.device_get(kept))


def advantages_of(
    judged: Judged,
    reward: RewardConfig,
    rl: RLConfig,
    *,
    weights: Float[np.ndarray, " k"] | None = None,
) -> Float[Array, "b g"]:
    """One advantage per caption, by the setting `rl.advantage`.

    Args:
      weights: of the rewards; default: those of the settings.
    """
    if weights is None:
        weights = np.asarray(reward.all_weights, np.float32)
    # What is only watched is no signal: a caption that has nothing else teaches nothing.
    kept = np.where(np.array(judged.taught), judged.kept, np.float32(np.nan))
    kept, weights = jax.device_put((kept, weights))
    if rl.advantage == "gdpo":
        return gdpo_advantages(kept, weights=weights, eps=rl.eps, ddof=rl.ddof, whiten=rl.whiten)
    if rl.advantage == "grpo":
        return grpo_advantages(kept, weights=weights, eps=rl.eps, ddof=rl.ddof, scale=rl.grpo_scale)
    if rl.advantage == "rloo":
        return rloo_advantages(kept, weights=weights)
    counts = jax.device_put(judged.token_counts)
    return preset_advantages(rl.advantage, kept, weights=weights, token_counts=counts)


def rollout_metrics(
    judged: Judged,
    rollout_ended: Bool[np.ndarray, "b g"],
    advantages: Float[np.ndarray, "b g"],
    reward: RewardConfig,
) -> dict[str, Any]:
    """The part of a metrics row that the rollout and its rewards fill."""
    valid = judged.valid
    return {
        **reward_metrics(reward.all_names, judged.rewards, judged.studied, judged.kept),
        **length_metrics(judged.lengths, judged.reference_lengths, judged.words, ~rollout_ended),
        "self_praise": float(judged.praises.mean()),
        "commentary": float(judged.comments.mean()),
        "no_signal": float((~valid).mean()),
        "advantage/rms": float(np.sqrt(np.mean(advantages[valid] ** 2))) if valid.any() else 0.0,
    }


def spread_of(judged: Judged, rl: RLConfig) -> Float[np.ndarray, " k"]:
    """See `group_spread`: of the rewards that the advantages are made of."""
    ddof = rl.ddof if rl.advantage in ("gdpo", "grpo") else 1
    return np.asarray(jax.device_get(group_spread(jax.device_put(judged.kept), ddof=ddof)))


def balance_metrics(
    judged: Judged,
    reward: RewardConfig,
    rl: RLConfig,
    *,
    weights: Float[np.ndarray, " k"],
    spread: Float[np.ndarray, " k"],
) -> dict[str, float]:
    """Per reward its share in the advantages, `balance/<name>`, its spread within groups,
    `reward/<name>/group_std`, and its weight, `weight/<name>`, where the run estimates it.

    Args:
      weights: of the advantages.
      spread: see `spread_of`.
    """
    kept, on_device = jax.device_put((judged.kept, weights))
    shares = jax.device_get(
        balance(
            kept,
            weights=on_device,
            advantage=rl.advantage,
            eps=rl.eps,
            ddof=rl.ddof,
            scale=rl.grpo_scale,
        )
    )
    names = reward.all_names
    row = {f"balance/{name}": float(share) for name, share in zip(names, shares, strict=True)}
    row |= {f"reward/{name}/group_std": float(s) for name, s in zip(names, spread, strict=True)}
    if rl.grpo_weights != "given":
        row |= {f"weight/{name}": float(w) for name, w in zip(names, weights, strict=True)}
    return row


def sample_rows(
    judged: Judged, judge: JudgeQueue, reward: RewardConfig, *, images: int
) -> list[dict]:
    """Rows for samples.jsonl: all captions of the first `images` images."""
    rows = []
    for b, example in enumerate(judged.examples[:images]):
        has_verdict = any(verdict is not None for verdict in judged.verdicts[b])
        row = partial(
            caption_row,
            id=example.id,
            reference=example.reference,
            references=example.references,
            units=judge.reference_units(example) if has_verdict else (),
        )
        rows += [
            row(
                caption=caption,
                rewards=dict(zip(reward.all_names, judged.rewards[b, g], strict=True)),
                verdict=judged.verdicts[b][g],
                rho=judged.lengths[b, g] / max(judged.reference_lengths[b], 1),
                extra={name: column[b][g] for name, column in judged.extra.items()},
            )
            for g, caption in enumerate(judged.captions[b])
        ]
    return rows
