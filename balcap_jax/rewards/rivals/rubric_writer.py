"""Writes rubrics as RubiCap does (arXiv:2603.09160): once, offline, by a model that compares what a
starting policy says of an image with what several teachers say.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from balcap_jax.data.examples import Example
from balcap_jax.rewards.llm.cached import CachedClient
from balcap_jax.rewards.llm.images import SentImage
from balcap_jax.rewards.llm.prompts import quoted
from balcap_jax.rewards.rivals.asker import Asker
from balcap_jax.rewards.rivals.rubric_questions import (
    TEACH,
    VERSION,
    WRITE,
    agreed_criteria,
    description,
    told,
)
from balcap_jax.rewards.rivals.rubrics import Criterion


class Teacher(NamedTuple):
    """One of the committee: a model that is asked for its captions, or captions that are there.

    Attributes:
      name: in the rubrics.
      client: of the model; None where the captions are there.
      captions: by the id of the image.
    """

    name: str
    client: CachedClient | None = None
    captions: Mapping[str, str] = {}


class Written(NamedTuple):
    """The rubric of one image, with what it was written from."""

    criteria: tuple[Criterion, ...]
    start: str
    teachers: tuple[str, ...]


class RubricWriter:
    """Asks the teachers for captions and the writer for criteria; see the module.

    Args:
      asker: whose model writes.
      teachers: at least one.
      start: captions of the starting policy, by the id of the image.
    """

    def __init__(self, asker: Asker, teachers: Sequence[Teacher], start: Mapping[str, str]):
        self._asker, self._teachers, self._start = asker, tuple(teachers), start
        self._writer = asker.client("rubric", version=VERSION)

    def rubrics_of(self, examples: Sequence[Example]) -> list[Written | None]:
        """The rubrics of several images at once; None where the writer or a teacher failed."""
        jobs = [lambda e=example: self._written(e) for example in examples]
        return self._asker.all(jobs, what="rubric for")

    async def _written(self, example: Example) -> Written:
        image = await self._asker.image(example)
        captions = await asyncio.gather(
            *(self._taught(teacher, example, image) for teacher in self._teachers)
        )
        start = self._start[example.id]
        criteria = await self._writer.ask(
            WRITE.name,
            (WRITE.instructions, quoted(told(start, captions))),
            lambda text: agreed_criteria(text, teachers=len(captions)),
            image=image,
            schema=WRITE.schema,
        )
        return Written(criteria, start, tuple(captions))

    async def _taught(self, teacher: Teacher, example: Example, image: SentImage) -> str:
        if teacher.client is None:
            return teacher.captions[example.id]
        return await teacher.client.ask(
            TEACH.name, (TEACH.instructions, example.prompt), description, image=image
        )
