"""The judge on the run's own devices: a policy answers whether each statement of a caption is true.

Each distinct statement of an image is asked once, whatever number of captions makes it, and all of
an image share its prefix. Only precision is the model's: coverage and language are judged by the
judge that the data have without it, the exact one of scenes or the one of words.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.models.inputs import Row
from balcap_jax.rewards.model.calibration import LEAST_AUC, Calibration, auc_within, fit
from balcap_jax.rewards.model.negatives import one_edit_negatives
from balcap_jax.rewards.model.score import chances, weights
from balcap_jax.rewards.model.scorer import StatementScorer
from balcap_jax.rewards.model.statements import Asked, statements
from balcap_jax.rewards.verdicts import Assertion, FittedJudge, Judge, Verdict

_TRUE = 0.5  # chance from which on a statement is called verified
_KEPT = 1 << 12  # statements whose answer without an image is remembered


class ModelJudge:
    """Judges captions by asking a policy; see `MeteredJudge`.

    Args:
      beside: judges everything but precision, and refuses examples that it cannot judge.
      name: of the model, for messages.

    Attributes:
      calibration: how logits become chances; of none until `calibrate` or until it is set.
      last_failures: why captions of the last call have no verdict, "" where all have one.
    """

    def __init__(self, scorer: StatementScorer, beside: Judge, *, name: str):
        self._scorer, self._beside, self.name = scorer, beside, name
        self.calibration = Calibration()
        self.last_failures = ""
        self._blank: dict[str, float] = {}
        self._spent: Counter[str] = Counter()

    def __call__(
        self, examples: Sequence[Example], captions: Sequence[str]
    ) -> list[Verdict | None]:
        """One verdict per pair; None where the judge beside has none, or the model's processor
        refuses the image.
        """
        verdicts = self._beside(examples, captions)
        made = [statements(caption) for caption in captions]
        places: dict[str, int] = {}  # of the images, by the ids of their examples
        asked: list[dict[str, None]] = []
        images: list[Example] = []
        for example, of_caption in zip(examples, made, strict=True):
            if example.id not in places:
                places[example.id] = len(images)
                images.append(example)
                asked.append({})
            asked[places[example.id]].update(dict.fromkeys(a.text for a in of_caption))
        rows, refused = self._rows(images)
        answers = self._answers(rows, [list(texts) for texts in asked])
        found = [
            None
            if verdict is None or example.id in refused
            else verdict._replace(
                assertions=self._assertions(of_caption, answers[places[example.id]])
            )
            for verdict, example, of_caption in zip(verdicts, examples, made, strict=True)
        ]
        self.last_failures = "; ".join(dict.fromkeys(refused.values()))
        self._spent["failures"] += sum(verdict is None for verdict in found)
        self._spent["statements"] += sum(map(len, made))
        self._spent["questions"] += sum(map(len, answers))
        return found

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """See `Judge.reference_units`."""
        return self._beside.reference_units(example)

    def lap(self) -> dict[str, float]:
        """Since the last lap: calls (forward passes), prompt_tokens (of statements), questions
        asked, statements that captions made, failures. Without an image nothing is counted: what
        is known of that depends on when the run was started. It costs no money.
        """
        names = ("calls", "failures", "prompt_tokens", "questions", "statements")
        spent = {name: float(self._spent[name]) for name in names}
        self._spent.clear()
        return spent | {"cache_hits": 0.0, "completion_tokens": 0.0, "price": 0.0}

    def state(self) -> dict[str, Any]:
        """See `FittedJudge.state`."""
        beside = {"beside": self._beside.state()} if isinstance(self._beside, FittedJudge) else {}
        return {"calibration": self.calibration._asdict(), "blank": dict(self._blank), **beside}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up `state`."""
        self.calibration = Calibration(**state["calibration"])
        self._blank = dict(state["blank"])
        if isinstance(self._beside, FittedJudge):
            self._beside.restore(state["beside"])

    def close(self) -> None:
        """Nothing is under way between calls."""

    # ---- calibration

    def fit(self, examples: Sequence[Example]) -> None:
        """See `FittedJudge.fit`; the judge beside is fitted, too.

        Raises:
          UserError: see `calibrate` and `check`.
        """
        self.calibrate(examples)
        self.check()
        if isinstance(self._beside, FittedJudge):
            self._beside.fit(examples)

    def told(self) -> list[str]:
        """See `FittedJudge.told`."""
        beside = self._beside.told() if isinstance(self._beside, FittedJudge) else []
        return [self.calibration.told(self.name), *beside]

    def record(self) -> dict[str, Any]:
        """See `FittedJudge.record`."""
        beside = self._beside.record() if isinstance(self._beside, FittedJudge) else {}
        return {"calibration": self.calibration._asdict(), **beside}

    def calibrate(self, examples: Sequence[Example]) -> Calibration:
        """Fits alpha and beta on one-edit negatives of examples, and keeps them.

        Raises:
          UserError: the examples have no such statements, or the model tells too few of them apart.
        """
        known = one_edit_negatives(examples)
        used = sorted({label.image for label in known})
        rows, refused = self._rows([examples[i] for i in used])
        place = {i: p for p, i in enumerate(used) if rows[p] is not None}
        known = [label for label in known if label.image in place]
        if not known:
            why = f" ({next(iter(refused.values()))})" if refused else ""
            raise UserError(
                f"judge.model={self.name!r} cannot be measured: none of the first {len(examples)} "
                f"examples has a statement with an object, colour, number or place to change{why}; "
                "give data whose references describe, or another --judge.kind."
            )
        texts: list[list[str]] = [[] for _ in used]
        for label in known:
            texts[place[label.image]].append(label.text)
        texts = [list(dict.fromkeys(of_image)) for of_image in texts]
        answers = self._answers(rows, texts)
        image = np.array([answers[place[label.image]][label.text][0] for label in known])
        blank = np.array([answers[place[label.image]][label.text][1] for label in known])
        self.calibration = fit(
            image, blank, np.array([label.true for label in known]), [k.image for k in known]
        )
        self._spent.clear()
        return self.calibration

    def check(self) -> None:
        """Raises a UserError where the model tells too little apart to be learned from."""
        found = self.calibration
        if not found.auc >= LEAST_AUC:
            raise UserError(
                f"judge.model={self.name!r} tells true statements of an image from ones with one "
                f"word changed with AUC {found.auc:.2f} ({found.statements} statements of "
                f"{found.images} images), where {LEAST_AUC:.2f} is the least and 0.50 is chance; "
                "take a better model, or another --judge.kind."
            )

    def auc(self, examples: Sequence[Example], texts: Sequence[str], true: Sequence[bool]) -> float:
        """AUC within images of statements with known truth, by the calibrated chances."""
        images = {example.id: example for example in examples}
        rows, _ = self._rows(list(images.values()))
        asked: dict[str, dict[str, None]] = {name: {} for name in images}
        for example, text in zip(examples, texts, strict=True):
            asked[example.id].setdefault(text)
        answers = dict(
            zip(images, self._answers(rows, [list(t) for t in asked.values()]), strict=True)
        )
        pairs = [
            answers[example.id].get(text, (np.nan, np.nan))
            for example, text in zip(examples, texts, strict=True)
        ]
        logits = np.array(pairs, np.float64).reshape(-1, 2)
        self._spent.clear()
        return auc_within(
            self._chances(logits[:, 0], logits[:, 1]),
            np.asarray(true, bool),
            [example.id for example in examples],
        )

    # ---- asking

    def _rows(self, images: Sequence[Example]) -> tuple[list[Row | None], dict[str, str]]:
        """(the prefix of each image, None where it is refused; why, by the id of its example)."""
        rows: list[Row | None] = []
        refused: dict[str, str] = {}
        for example in images:
            try:
                rows.append(self._scorer.row(example))
            except UserError as error:
                rows.append(None)
                refused[example.id] = str(error)
        return rows, refused

    def _answers(
        self, rows: Sequence[Row | None], texts: Sequence[Sequence[str]]
    ) -> list[dict[str, tuple[float, float]]]:
        """By text: the logit with the image and the one without; none of a refused image."""
        places = [i for i, row in enumerate(rows) if row is not None]
        calls, tokens = self._scorer.forwards, self._scorer.tokens
        logits = self._scorer([rows[i] for i in places], [texts[i] for i in places])
        self._spent["calls"] += self._scorer.forwards - calls
        self._spent["prompt_tokens"] += self._scorer.tokens - tokens
        blank = self._without_image({text for i in places for text in texts[i]})
        found: list[dict[str, tuple[float, float]]] = [{} for _ in rows]
        for i, of_image in zip(places, logits, strict=True):
            found[i] = {
                text: (float(logit), blank[text])
                for text, logit in zip(texts[i], of_image, strict=True)
            }
        return found

    def _without_image(self, texts: set[str]) -> dict[str, float]:
        """The logit of each text behind an empty image."""
        new = sorted(text for text in texts if text not in self._blank)
        if new:
            if len(self._blank) > _KEPT:
                self._blank = {text: self._blank[text] for text in texts if text in self._blank}
            self._blank |= dict(zip(new, self._scorer.without_image(new).tolist(), strict=True))
        return {text: self._blank[text] for text in texts}

    def _chances(
        self, image: Float[np.ndarray, " n"], blank: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        line = self.calibration
        return chances(image, blank, alpha=line.alpha, beta=line.beta)

    def _assertions(
        self, made: Sequence[Asked], answers: dict[str, tuple[float, float]]
    ) -> tuple[Assertion, ...]:
        logits = np.array([answers[asked.text] for asked in made]).reshape(-1, 2)
        true = self._chances(logits[:, 0], logits[:, 1])
        weight = weights(logits[:, 1])
        return tuple(
            Assertion(
                text=asked.text,
                verified=bool(p >= _TRUE),
                pointable=asked.pointable >= 1.0,
                chance=float(p) * asked.pointable,
                weight=float(w),
                truth=float(p),
            )
            for asked, p, w in zip(made, true, weight, strict=True)
        )
