"""`balcap scenes`: generated scenes as files, with captions or with questions."""

import random
from pathlib import Path
from typing import Any

from balcap_jax.config.commands import ScenesConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.scene_source import export


def write_scenes(config: ScenesConfig) -> Path:
    """Writes them and returns the file that `--data.path` takes.

    Raises:
      UserError: see `export`.
    """
    options: dict[str, Any] = {"split": config.split, "count": config.count, "seed": config.seed}
    clusters = config.clusters or None
    if not config.questions:
        return export(config.out, **options, clusters=clusters)
    from balcap_jax.rewards.model.scene_questions import scene_questions  # noqa: PLC0415

    def told(example: Example) -> dict[str, Any]:
        assert example.scene is not None
        rng = random.Random(f"questions/{config.seed}/{example.id}")
        turns = scene_questions(example.scene, rng, config.questions)
        return {"questions": [turn._asdict() for turn in turns]}

    return export(config.out, **options, clusters=clusters, told=told)
