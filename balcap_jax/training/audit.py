"""A second look at some captions, by a judge that the policy does not learn from.

A reward that rises while an independent judge finds the captions worse is being gamed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from balcap_jax.config.judge import AuditConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.parallel.processes import gather_list
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.verdicts import FittedJudge, Judge, MeteredJudge
from balcap_jax.training.experience import Judged

APART = 2  # audits in a row at which the two judges go apart, after which the run stops


class Means(NamedTuple):
    """What the judge of the run and the second one say of the same captions: the mean of the
    rewards of a judge by their weights; NaN where one of them gave no signal.
    """

    trained: float
    audited: float


class Audit:
    """Compares two judges every so many steps.

    Attributes:
      judge: the second one.
      last: of the audit before; None before the first one.
      apart: audits in a row in which the trained reward rose and the audited one fell.
    """

    def __init__(self, config: AuditConfig, judge: Judge, reward: RewardConfig):
        self.judge, self._config, self._reward = judge, config, reward
        self.last: Means | None = None
        self.apart = 0

    def look(self, step: int, judged: Judged) -> dict[str, float]:
        """The metrics of a step, `audit/...`; empty where no audit is due.

        Args:
          step: the number of the step, from 1.
          judged: captions of this host with the rewards of the run's judge.
        """
        if step % self._config.every:
            return {}
        names = self._reward.names
        weights = np.asarray(self._reward.all_weights[: len(names)], np.float64)
        flat = [
            (example, caption, judged.rewards[b, g, : len(names)])
            for b, example in enumerate(judged.examples)
            for g, caption in enumerate(judged.captions[b])
        ][: self._config.captions]
        examples = [example for example, _, _ in flat]
        trained = np.array([rewards for _, _, rewards in flat]).reshape(-1, len(names))
        verdicts = self.judge(examples, [caption for _, caption, _ in flat]) if flat else []
        audited = rewards_of(verdicts, names, pointability=self._reward.pointability)
        both = ~(np.isnan(trained).any(axis=1) | np.isnan(audited).any(axis=1))
        sums = [float(both.sum()), *trained[both].sum(axis=0), *audited[both].sum(axis=0)]
        whole = np.sum(gather_list([list(map(float, sums))]), axis=0)
        count, rewards = whole[0], whole[1:].reshape(2, len(names))
        means = rewards / count if count else np.full_like(rewards, np.nan)
        now = Means(*(float(value) for value in means @ weights / weights.sum()))
        self._compare(now)
        metrics = {f"audit/{name}": float(means[1, k]) for k, name in enumerate(names)}
        metrics |= {"audit/trained": now.trained, "audit/audited": now.audited}
        if isinstance(self.judge, MeteredJudge):
            metrics["audit/price"] = self.judge.lap()["price"]
        return metrics | {"audit/captions": float(count), "audit/apart": float(self.apart)}

    def _compare(self, now: Means) -> None:
        """Without a signal nothing is known, and the last audit that has one stays the last."""
        if np.isnan(now).any():
            return
        if self.last is not None:
            gamed = now.trained > self.last.trained and now.audited < self.last.audited
            self.apart = self.apart + 1 if gamed else 0
        self.last = now

    @property
    def verdict(self) -> str:
        """Why the run must stop, in words; "" as long as it may go on."""
        if self.last is None or self.apart < APART:
            return ""
        return (
            f"the reward rose and the audit fell {self.apart} times in a row (now "
            f"{self.last.trained:.3f} and {self.last.audited:.3f}): the judge is being gamed"
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        judge = {"judge": self.judge.state()} if isinstance(self.judge, FittedJudge) else {}
        last = None if self.last is None else list(self.last)
        return {"last": last, "apart": self.apart, **judge}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up `state`."""
        self.last = None if state["last"] is None else Means(*state["last"])
        self.apart = state["apart"]
        if isinstance(self.judge, FittedJudge):
            self.judge.restore(state["judge"])

    def close(self) -> None:
        """Ends what the second judge has under way."""
        if isinstance(self.judge, MeteredJudge):
            self.judge.close()
