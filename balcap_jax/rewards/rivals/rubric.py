"""`rubric`: binary criteria per image, judged from the caption's words (RubiCap,
arXiv:2603.09160).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import Completions, FunctionScores
from balcap_jax.rewards.llm.prompts import clean, quoted
from balcap_jax.rewards.rivals.marks import listed, marks
from balcap_jax.rewards.rivals.protocol import Setup
from balcap_jax.rewards.rivals.rubric_files import RubricFile, rubrics_path
from balcap_jax.rewards.rivals.rubric_questions import JUDGE
from balcap_jax.rewards.rivals.rubrics import Criterion, rubric_reward
from balcap_jax.rewards.rivals.scene_rubrics import met, scene_rubric, starting_caption
from balcap_jax.storage.local import fetched

VERSION = "1"  # of the question and of the rules for scenes


def make(setup: Setup, name: str) -> "RubricReward":
    """The reward of the settings `reward.rubric`."""
    del name
    return RubricReward(setup)


class RubricReward:
    """See the module; scenes have rubrics of their own, made of their truth.

    Raises:
      UserError: there are no rubrics, or they cannot be read.
    """

    def __init__(self, setup: Setup):
        self._settings, self._asker = setup.reward.rubric, setup.asker
        self._file: RubricFile | None = None
        self._client = None
        if self._asker is not None:
            if self._settings.scene != "failed":
                raise UserError(
                    f"reward.rubric.scene={self._settings.scene!r} has no effect with "
                    "reward.judge.kind='llm', which judges by rubrics in a file; leave it out."
                )
            self._file = RubricFile(_path(self._settings.file, setup.data))
            self._client = self._asker.client("rubric", version=VERSION)
        elif self._settings.file:
            raise UserError(
                f"reward.rubric.file={self._settings.file!r} has no effect with "
                "reward.judge.kind='scene', whose rubrics are made of the scenes' truth; leave it "
                "out, or set --reward.judge.kind llm."
            )

    def __call__(self, completions: Completions, *, step: int) -> FunctionScores:
        """See `RivalReward`; `rubric_marks` of the samples says which criteria are met.

        Raises:
          UserError: an image has no rubric.
        """
        pairs = list(zip(completions.examples, completions.captions, strict=True))
        if self._asker is None:
            found = [self._by_rules(example, caption) for example, caption in pairs]
        else:
            for example in completions.examples:
                self.check(example)  # before any of them costs something
            jobs = [lambda e=e, c=c: self._asked(e, c) for e, c in pairs]
            found = self._asker.all(jobs, what="marks of a rubric for")
        values = [math.nan if one is None else rubric_reward(*one) for one in found]
        told = [
            "" if one is None else "".join(str(int(is_met)) for is_met in one[1]) for one in found
        ]
        return FunctionScores(
            np.array(values, np.float32).reshape(-1, 1), {"rubric_marks": told}, {}
        )

    def check(self, example: Example) -> None:
        """See `RivalReward`."""
        if self._file is not None:
            self._file.get(example)

    def _by_rules(self, example: Example, caption: str) -> "_Marked | None":
        scene = example.scene
        if scene is None:
            return None
        start = starting_caption(scene) if self._settings.scene == "failed" else None
        criteria = scene_rubric(scene, example.reference, start)
        return [c.criterion for c in criteria], met(criteria, caption, scene)

    async def _asked(self, example: Example, caption: str) -> "_Marked":
        assert self._file is not None
        assert self._client is not None
        rubric = self._file.get(example)
        if not rubric.criteria:
            return (), ()  # the starting caption failed nothing: no signal, and no failure
        # The criteria first: a server computes them once for a group of captions.
        listing = quoted(listed(rubric.texts, name="criterion"))
        found = await self._client.ask(
            JUDGE.name,
            (
                JUDGE.instructions,
                f"Criteria: {listing}\n{quoted({'caption': clean(caption)})}",
            ),
            lambda text: marks(text, len(rubric.criteria)),
            schema=JUDGE.schema,
        )
        return rubric.criteria, found


_Marked = tuple[Sequence[Criterion], Sequence[bool]]  # the criteria, and which of them are met


def _path(file: str, data: str | None) -> Path:
    """The file of rubrics that is named, or the one beside the data.

    Raises:
      UserError: there is none.
    """
    path = fetched(file) if file else None if data is None else rubrics_path(data)
    if path is None or not path.exists():
        where = f"reward.rubric.file={file!r}" if file else f"no {path or 'file'}"
        raise UserError(
            f"rubric finds no rubrics ({where}); write them with `balcap data rubrics` and name "
            "the file with --reward.rubric.file."
        )
    return path
