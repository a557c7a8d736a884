"""`claims`: the units of a caption, each verified by several judges (FEEDQUILL-style).

Two rewards, `claims_precision` and `claims_recall`; see `claim_votes` for what they are and for
what we chose where FEEDQUILL's code is not public.
"""

import asyncio

import numpy as np
from jaxtyping import Bool

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import Completions, FunctionScores
from balcap_jax.rewards.llm.cached import CachedClient
from balcap_jax.rewards.llm.images import SentImage
from balcap_jax.rewards.llm.prompts import clean, quoted
from balcap_jax.rewards.rivals.claim_questions import SPLIT, VERIFY, units
from balcap_jax.rewards.rivals.claim_votes import claims_precision, claims_recall, correctness
from balcap_jax.rewards.rivals.marks import listed, marks
from balcap_jax.rewards.rivals.protocol import Setup
from balcap_jax.rewards.scene.judge import judge

VERSION = "1"  # of the questions


def make(setup: Setup, name: str) -> "Claims":
    """The rewards of the settings `reward.claims`."""
    del name
    return Claims(setup)


class Claims:
    """See the module.

    The model of `reward.judge` splits the captions; the judges verify. On scenes the exact rules do
    both, as one judge that is never wrong, and commentary is a unit like any other, true of every
    image: nothing in FEEDQUILL takes it out.
    """

    def __init__(self, setup: Setup):
        self._settings, self._asker = setup.reward.claims, setup.asker
        self._splitter: CachedClient | None = None
        self._judges: list[CachedClient] = []
        if self._asker is not None:
            self._splitter = self._asker.client("claims", version=VERSION)
            self._judges = [
                self._asker.client("claims", version=VERSION, model=model)
                for model in self._settings.judges or (self._asker.judge.model,)
            ]
        elif self._settings.judges:
            raise UserError(
                f"reward.claims.judges={', '.join(self._settings.judges)} has no effect with "
                "reward.judge.kind='scene', whose rules verify alone; leave it out, or set "
                "--reward.judge.kind llm."
            )

    def __call__(self, completions: Completions, *, step: int) -> FunctionScores:
        """See `RivalReward`; `claims_correct` of the samples says how many of how many are."""
        pairs = list(zip(completions.examples, completions.captions, strict=True))
        if self._asker is None:
            found = [_by_rules(example, caption) for example, caption in pairs]
        else:
            jobs = [lambda e=e, c=c: self._votes(e, c) for e, c in pairs]
            found = self._asker.all(jobs, what="verified claims for")
        correct = [None if v is None else correctness(v, vote=self._settings.vote) for v in found]
        rewards = [
            (np.nan, np.nan) if of is None else (claims_precision(of), claims_recall(of))
            for of in correct
        ]
        told = ["" if of is None else f"{of.sum():.3g} of {of.size}" for of in correct]
        return FunctionScores(
            np.array(rewards, np.float32).reshape(-1, 2), {"claims_correct": told}, {}
        )

    def check(self, example: Example) -> None:
        """See `RivalReward`: the image is enough."""
        if self._asker is None and example.scene is None:
            raise UserError(
                f"the example {example.id!r} has no scene, and exact rules verify no other claims; "
                "set --reward.judge.kind llm."
            )

    async def _votes(self, example: Example, caption: str) -> Bool[np.ndarray, "j u"]:
        assert self._asker is not None
        assert self._splitter is not None
        if not clean(caption):
            return np.zeros((len(self._judges), 0), bool)  # no words, no units
        told = await self._splitter.ask(
            SPLIT.name,
            (SPLIT.instructions, quoted({"caption": clean(caption)})),
            units,
            schema=SPLIT.schema,
        )
        image = await self._asker.image(example)
        votes = await asyncio.gather(*(self._verify(j, told, image) for j in self._judges))
        return np.array(votes, bool)

    async def _verify(
        self, client: CachedClient, told: tuple[str, ...], image: SentImage
    ) -> tuple[bool, ...]:
        return await client.ask(
            VERIFY.name,
            (VERIFY.instructions, f"Statements: {quoted(listed(told, name='statement'))}"),
            lambda text: marks(text, len(told)),
            image=image,
            schema=VERIFY.schema,
        )


def _by_rules(example: Example, caption: str) -> Bool[np.ndarray, "j u"] | None:
    if example.scene is None:
        return None
    found = judge(caption, example.scene, example.reference).assertions
    return np.array([[assertion.verified for assertion in found]], bool)
