"""One image and two captions for the judge: does it answer, and does it see?"""

import dataclasses
import tempfile
from contextlib import closing
from pathlib import Path

from PIL import Image, ImageDraw

from balcap_jax.commands.checks.lines import SkipLine
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.captions import precision
from balcap_jax.rewards.llm.judge import LLMJudge

TRUE = "A red circle is on the left, and a blue square is on the right, on a white background."
FALSE = "Three dogs are sleeping on a green sofa beside an open window."


def picture() -> Image.Image:
    """A red circle on the left, a blue square on the right."""
    image = Image.new("RGB", (448, 336), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 98, 180, 238), fill="red")
    draw.rectangle((268, 98, 408, 238), fill="blue")
    return image


class JudgeFailed(Exception):  # noqa: N818
    """The judge gave no usable answer; the text says what it said."""


def compare_captions(config: JudgeConfig) -> tuple[bool, str]:
    """The precision of a true caption is above that of one that is false in everything.

    Raises:
      SkipLine: no judge is named.
      JudgeFailed: it gave no usable answer.
    """
    if not config.model:
        raise SkipLine("no judge is named; give --judge.model and --judge.base-url")
    example = Example("check", picture(), "Describe the image.", TRUE, units=(TRUE,))
    # Answers of now, not of the cache of runs.
    with tempfile.TemporaryDirectory() as folder:
        fresh = dataclasses.replace(config, cache=Path(folder) / "cache.sqlite", replay=False)
        try:
            judge = LLMJudge(fresh)
        except UserError as error:
            raise JudgeFailed(str(error)) from error
        with closing(judge):
            verdicts = judge([example, example], [TRUE, FALSE])
            if None in verdicts:
                raise JudgeFailed(judge.last_failures)
    true, false = (precision(verdict) for verdict in verdicts if verdict is not None)
    return true > false, f"precision {true:.2f} of a true caption, {false:.2f} of a false one"
