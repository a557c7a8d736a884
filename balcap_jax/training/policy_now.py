"""The policy that a `Trainer` has at the moment, and its captions."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from balcap_jax.config.commands import CaptionConfig
from balcap_jax.config.files import RunConfig
from balcap_jax.data import rows
from balcap_jax.data.examples import Example
from balcap_jax.data.images import BadImageError, ImageLike, Pixels, open_image
from balcap_jax.data.memory_rows import image_of
from balcap_jax.data.rows import BadRowError
from balcap_jax.data.sources import pixels_of
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import POLICY, policy_folder
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.runs.progress import announce
from balcap_jax.storage.local import fetched
from balcap_jax.training.checkpoint_record import latest_step_of
from balcap_jax.training.opening import open_processor
from balcap_jax.training.saved_policy import is_finished, saved_policy

_BATCH = 16  # images that are captioned at once


class PolicyNow(NamedTuple):
    """A policy with its weights.

    Attributes:
      folder: with its processor and all that is written beside weights.
      dtype: that its weights are written in.
    """

    folder: Path
    policy: VisionLanguagePolicy
    params: Any
    dtype: str


def trained_policy(run: Path, checkpoint: str, *, dtype: str | None) -> PolicyNow | None:
    """What a run has trained: its finished policy, or where it has not ended its newest checkpoint,
    which is told. None where nothing is saved.

    Args:
      checkpoint: "best" or the number of a step instead.
      dtype: of the finished policy's weights; None: as `load_pretrained` takes them.
    """
    if not checkpoint and is_finished(run):
        folder = fetched(run / POLICY)
        policy, params = load_pretrained(folder, **({} if dtype is None else {"dtype": dtype}))
        return PolicyNow(folder, policy, params, jnp.dtype(policy.dtype).name)
    if not checkpoint and not latest_step_of(run):
        return None
    saved = saved_policy(run, checkpoint)
    announce(f"{run} is not finished; its policy of step {saved.step} is taken")
    dtype = jnp.dtype(saved.policy.dtype).name
    return PolicyNow(saved.source, saved.policy, saved.params, dtype)


def start_policy(config: RunConfig) -> PolicyNow:
    """The policy that a run with these settings starts from."""
    folder = policy_folder(config.model.path, revision=config.model.revision)
    policy, params = load_pretrained(folder)
    return PolicyNow(folder, policy, params, jnp.dtype(policy.dtype).name)


class Captions:
    """Captions by one policy, whose weights stay on the first device between calls."""

    def __init__(self, now: PolicyNow, config: RunConfig):
        self._policy = now.policy
        self._params = jax.device_put(now.params, jax.devices()[0])
        self._processor = open_processor(now.folder, config.data)
        self._captioners: dict[tuple, Captioner] = {}

    def __call__(self, examples: Sequence[Example], sampling: CaptionConfig) -> list[str]:
        """A caption of each example."""
        options = sampling.max_new_tokens, sampling.temperature, sampling.top_p
        if options not in self._captioners:
            self._captioners[options] = Captioner(
                self._policy,
                self._processor,
                make_mesh(devices=jax.devices()[:1]),
                group_size=1,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
            )
        captions = self._captioners[options].captions(
            self._params,
            examples,
            jax.random.key(sampling.seed),
            batch_size=min(_BATCH, len(examples)),
        )
        return [group[0] for group in captions]


def example_of(image: ImageLike, prompt: Any, config: RunConfig) -> Example:
    """An image to caption; `prompt` is a text or messages.

    Raises:
      UserError: the image cannot be read, or the prompt is neither.
    """
    name = str(image) if isinstance(image, str | PurePath) else "the image"
    try:
        text, messages = rows.prompt(prompt, where="caption()")
        opened = _opened(image, pixels_of(config.data))
    except BadRowError as error:
        raise UserError(str(error)) from None
    except BadImageError as error:
        raise UserError(f"{name} cannot be captioned ({error}); give a readable image.") from None
    return Example(id=name, image=opened, prompt=text, reference="", messages=messages)


def _opened(image: Any, pixels: Pixels) -> Any:
    return open_image(image_of(image, where="caption()"), pixels=pixels)
