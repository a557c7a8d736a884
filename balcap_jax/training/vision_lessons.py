"""What a new vision tower is taught before it learns to talk: scenes, from far off in the split."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from balcap_jax.config.commands import SFTConfig
from balcap_jax.data.examples import Source
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.models.inputs import ImagePatches
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.runs.progress import training_progress
from balcap_jax.training.vision_pretraining import pretrain_tower, token_labels

T = TypeVar("T")
CROWD = 8  # clusters of the scenes that a new tower learns most from


def pretrain_vision(
    config: SFTConfig,
    policy: VisionLanguagePolicy,
    params: dict,
    source: Source,
    processor: Processor,
) -> dict:
    """`params` with a tower that has learned to see."""
    crowded = SceneSource("train", len(source), seed=config.seed, clusters=CROWD)

    def make(step: int) -> tuple[ImagePatches, np.ndarray]:
        # Crowded scenes show more things for the same work; the last third is as captions have it.
        part = crowded if step < config.vision_steps * 2 // 3 else source
        # From the far end of the split, so that no image is met again.
        first = len(source) - (step + 1) * config.vision_batch_size
        examples = [part[first + i] for i in range(config.vision_batch_size)]
        labels = np.stack([token_labels(example.scene) for example in examples])
        return processor.prompts(examples).images, labels

    losses: list[Any] = []
    with training_progress("vision", config.vision_steps) as advance:

        def on_step(step: int, loss: Any) -> None:
            losses.append(loss)
            if step % config.log_every == 0:
                mean = np.mean(jax.device_get(losses), axis=0)
                losses.clear()
                advance(step, f"loss {' '.join(f'{value:.2f}' for value in mean)}")

        return pretrain_tower(
            policy,
            params,
            made_ahead(make, config.vision_steps),
            learning_rate=config.optim.learning_rate,
            steps=config.vision_steps,
            on_step=on_step,
        )


def made_ahead(make: Callable[[int], T], steps: int) -> Iterator[T]:
    """make(0) to make(steps - 1), each made by a thread while the one before is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(make, 0)
        for step in range(steps):
            made = waiting.result()
            if step + 1 < steps:
                waiting = pool.submit(make, step + 1)
            yield made
