"""`balcap judge-check`: is a model fit to be a judge, before a run is paid for?

It judges captions whose rewards are known. What RL reads of a judge is which caption of an image is
better than which other, so that is what decides; a judge that is too mild or too strict with all
alike teaches the same.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich import box
from rich.table import Table

from balcap_jax.commands.known_captions import KnownCaption, known_captions
from balcap_jax.config.judge import JudgeCheckConfig
from balcap_jax.config.sections import REWARDS
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.data.sources import SCENES
from balcap_jax.errors import UserError
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.llm.judge import LLMJudge
from balcap_jax.rewards.model.calibration import LEAST_AUC, Calibration
from balcap_jax.rewards.verdicts import FITTED_ON, Verdict

# Half is chance. Below this more than three of ten pairs push the policy the wrong way.
LEAST_RANKED = 0.70
# What has no verdict is left out of its group, whose means then are of few captions.
LEAST_ANSWERED = 0.90
_APART = 0.1  # true rewards that are nearer need not be told apart


class Agreement(NamedTuple):
    """How far a judge and the truth agree in one reward, over the captions that it judged.

    Attributes:
      reward: its name.
      ranked: share of pairs of captions of one image, whose true rewards are at least 0.1 apart,
        that the judge ranks as the truth does; a tie is half of it. NaN without such a pair.
      pairs: their number.
      pearson: Pearson's correlation over all captions; NaN where the judge gives all the same.
      error: mean of judge - truth; above 0 the judge is too mild.
      off: mean of |judge - truth|.
    """

    reward: str
    ranked: float
    pairs: int
    pearson: float
    error: float
    off: float

    @property
    def fit(self) -> bool:
        """Whether it ranks enough of the pairs right; NaN is not."""
        return self.ranked >= LEAST_RANKED


class JudgeCheck(NamedTuple):
    """What came of a check.

    Attributes:
      asked, answered: captions, and those that got a verdict; the others are no signal.
      failures: why they got none, the most frequent reasons first.
      agreements: by reward.
      spent: see `Ledger.lap`.
      calibration: of a judge of kind "model", on one-edit negatives of the scenes; else None.
    """

    asked: int
    answered: int
    failures: str
    agreements: tuple[Agreement, ...]
    spent: dict[str, float]
    calibration: Calibration | None = None

    @property
    def faults(self) -> list[str]:
        """Why the judge is unfit, in words; none where it is fit."""
        found = []
        if self.answered < LEAST_ANSWERED * self.asked:
            found.append(
                f"it gave no verdict on {self.asked - self.answered} of {self.asked} captions "
                f"({self.failures}), where at most {1 - LEAST_ANSWERED:.0%} may lack one"
            )
        found += [
            f"in {a.reward} it ranks {a.ranked:.2f} of the pairs right, where {LEAST_RANKED:.2f} "
            "is the least and 0.50 is chance"
            for a in self.agreements
            if not a.fit
        ]
        if self.calibration is not None and not self.calibration.auc >= LEAST_AUC:
            found.append(
                f"on one-edit negatives its AUC within images is {self.calibration.auc:.2f}, where "
                f"{LEAST_AUC:.2f} is the least and 0.50 is chance"
            )
        return found


def judge_check(config: JudgeCheckConfig) -> JudgeCheck:
    """Asks the model about all known captions.

    Raises:
      UserError: the judge lacks a setting or a library, or there is not one verdict.
    """
    known = known_captions()
    if config.judge.kind == "model":
        return _model_check(config, known)
    with closing(LLMJudge(config.judge)) as judge:
        verdicts = judge([k.example for k in known], [k.caption for k in known])
        answered = sum(verdict is not None for verdict in verdicts)
        if not answered:
            raise UserError(
                f"judge.model={config.judge.model!r} at {config.judge.base_url} gave no verdict on "
                f"any of {len(known)} captions: {judge.last_failures}; {judge.remedy()}."
            )
        spent, failures = judge.lap(), judge.last_failures
    return JudgeCheck(len(known), answered, failures, _agreements(known, verdicts), spent)


def _model_check(config: JudgeCheckConfig, known: Sequence[KnownCaption]) -> JudgeCheck:
    """Of a policy folder: fitted as a run on scenes does it, on other scenes than it then judges.

    Only precision is its own, so that is the agreement that is measured.
    """
    from balcap_jax.rewards.judges import make_judge
    from balcap_jax.rewards.model.judge import ModelJudge

    judge = make_judge(config.judge, data=SCENES, example=known[0].example)
    assert isinstance(judge, ModelJudge)
    scenes = SceneSource("train", FITTED_ON)
    calibration = judge.calibrate([scenes[i] for i in range(len(scenes))])
    verdicts = judge([k.example for k in known], [k.caption for k in known])
    answered = sum(verdict is not None for verdict in verdicts)
    if not answered:
        raise UserError(
            f"judge.model={config.judge.model!r} gave no verdict on any of {len(known)} captions: "
            f"{judge.last_failures}."
        )
    agreements = _agreements(known, verdicts, names=("precision",))
    return JudgeCheck(
        len(known), answered, judge.last_failures, agreements, judge.lap(), calibration
    )


def _agreements(
    known: Sequence[KnownCaption],
    verdicts: Sequence[Verdict | None],
    *,
    names: Sequence[str] = REWARDS,
) -> tuple[Agreement, ...]:
    judged, truth = rewards_of(verdicts, REWARDS), np.array([k.rewards for k in known])
    images = [k.example.id for k in known]
    return tuple(
        agreement(reward, judged[:, k], truth[:, k], images)
        for k, reward in enumerate(REWARDS)
        if reward in names
    )


def agreement(
    reward: str,
    judged: Float[np.ndarray, " n"],
    truth: Float[np.ndarray, " n"],
    images: Sequence[str],
) -> Agreement:
    """The agreement in one reward; NaN in `judged` is no signal and left out.

    Args:
      judged, truth: rewards in [0, 1].
      images: of each caption, the name of its image.
    """
    known = ~np.isnan(judged)
    judged, truth = judged[known].astype(np.float64), truth[known].astype(np.float64)
    names = np.array(images)[known]
    first, second = np.triu_indices(len(judged), k=1)
    gaps = truth[first] - truth[second]
    told = (names[first] == names[second]) & (np.abs(gaps) >= _APART)
    products = np.sign(gaps[told]) * np.sign(judged[first] - judged[second])[told]
    same = len(judged) < 2 or not judged.std() or not truth.std()
    return Agreement(
        reward,
        ranked=float(((products + 1) / 2).mean()) if told.any() else np.nan,
        pairs=int(told.sum()),
        pearson=np.nan if same else float(np.corrcoef(judged, truth)[0, 1]),
        error=float((judged - truth).mean()) if len(judged) else np.nan,
        off=float(np.abs(judged - truth).mean()) if len(judged) else np.nan,
    )


def table(check: JudgeCheck) -> Table:
    """The agreements for people."""
    title = f"Agreement with the truth on {check.answered} of {check.asked} captions"
    rendered = Table(title=title, box=box.SIMPLE)
    rendered.add_column("", no_wrap=True)
    for column in ("ranked right", "pairs", "correlation", "error", "distance", ""):
        rendered.add_column(column, justify="right", no_wrap=True)
    for a in check.agreements:
        rendered.add_row(
            a.reward, f"{a.ranked:.2f}", str(a.pairs), f"{a.pearson:.2f}", f"{a.error:+.2f}",
            f"{a.off:.2f}", "fit" if a.fit else "unfit",
        )  # fmt: skip
    return rendered


def first_line(check: JudgeCheck, *, model: str) -> str:
    """How well a judge of kind "model" sees; "" of any other."""
    found = check.calibration
    return "" if found is None else found.told(model)


def conclusion(check: JudgeCheck, *, model: str) -> str:
    """One sentence: fit or not, and by what bounds."""
    if check.faults:
        return f"{model} is unfit to be the judge: {'; '.join(check.faults)}."
    return (
        f"{model} is fit to be the judge: in every reward it ranks at least {LEAST_RANKED:.2f} of "
        f"the pairs of one image right (0.50 is chance) and at least {LEAST_ANSWERED:.0%} of the "
        "captions have a verdict."
    )


def cost(check: JudgeCheck) -> str:
    """One line: what the check took."""
    spent = check.spent
    if check.calibration is not None:
        return (
            f"{spent['calls']:.0f} passes, {spent['questions']:.0f} questions asked for "
            f"{spent['statements']:.0f} statements made, {spent['prompt_tokens']:.0f} tokens"
        )
    price = f", price {spent['price']:.4f}" if spent["price"] else ""
    return (
        f"{spent['calls']:.0f} calls, {spent['cache_hits']:.0f} answers from the cache, "
        f"{spent['prompt_tokens']:.0f} + {spent['completion_tokens']:.0f} tokens{price}"
    )
