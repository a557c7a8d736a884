"""Captions whose rewards are known exactly: those of scenes, made anew by their seed each time.

Of every image there are six, good and bad in different ways, because what a judge must do in RL is
to rank the captions of one image.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from PIL import Image

from balcap_jax.config.sections import REWARDS
from balcap_jax.data.examples import Example
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.scenes.captions import NO_FAULTS, describe, faulty_caption
from balcap_jax.scenes.language import META_SENTENCES
from balcap_jax.scenes.world import Scene

IMAGES = 10
_SEED = 2605  # of scenes that no other command makes
_ENLARGED = 4  # times; a tower that sees 28 pixels as one token would miss small things


class KnownCaption(NamedTuple):
    """A caption and its true rewards.

    Attributes:
      example: the image, with the units of its reference.
      kind: what is good or bad in it.
      rewards: in [0, 1], in the order of REWARDS.
    """

    example: Example
    caption: str
    kind: str
    rewards: tuple[float, ...]


def known_captions() -> list[KnownCaption]:
    """Sixty captions of ten held-out scenes, the same at every call."""
    judge = SceneJudge()
    source = SceneSource("heldout", IMAGES + 1, seed=_SEED)
    scenes = [source[i].scene for i in range(len(source))]
    found = []
    for i in range(IMAGES):
        example, scene, other = source[i], scenes[i], scenes[i + 1]
        assert scene is not None
        assert other is not None
        width, height = example.image.size
        shown = example._replace(
            image=example.image.resize(
                (_ENLARGED * width, _ENLARGED * height), Image.Resampling.BICUBIC
            ),
            units=judge.reference_units(example),
        )
        for kind, write in _KINDS.items():
            caption = write(random.Random(f"judge-check/{i}/{kind}"), scene, other)
            rewards = rewards_of(judge([example], [caption]), REWARDS)[0]
            found.append(KnownCaption(shown, caption, kind, tuple(map(float, rewards))))
    return found


def _true(rng: random.Random, scene: Scene, other: Scene) -> str:
    return " ".join(describe(rng, scene))


def _short(rng: random.Random, scene: Scene, other: Scene) -> str:
    return " ".join(describe(rng, scene)[:2])


def _mistaken(rng: random.Random, scene: Scene, other: Scene) -> str:
    """An invented thing and wrong attributes, well told."""
    rates = replace(NO_FAULTS, invented=1.0, wrong_attribute=0.6)
    return str(faulty_caption(scene, rng, rates))


def _remarks(rng: random.Random, scene: Scene, other: Scene) -> str:
    """Half of what is true, among remarks that point at nothing, some of them twice."""
    told = describe(rng, scene)
    told = told[: (len(told) + 1) // 2]
    remarks = rng.sample(META_SENTENCES, k=3)
    return " ".join([*told, *remarks, told[0], remarks[0], remarks[1]])


def _fragments(rng: random.Random, scene: Scene, other: Scene) -> str:
    """Names of things without a verb, told again and again."""
    rates = replace(NO_FAULTS, repetition=1.0, fragments=1.0)
    return " ".join([str(faulty_caption(scene, rng, rates))] * 2)


def _of_another_image(rng: random.Random, scene: Scene, other: Scene) -> str:
    return " ".join(describe(rng, other))


_KINDS: dict[str, Callable[[random.Random, Scene, Scene], str]] = {
    "true": _true,
    "short": _short,
    "mistaken": _mistaken,
    "remarks": _remarks,
    "fragments": _fragments,
    "of another image": _of_another_image,
}
