"""`balcap caption`: captions of the user's own images."""

from collections.abc import Iterator
from pathlib import Path

import jax

from balcap_jax.config.commands import CaptionConfig
from balcap_jax.data.caption_files import BadImageError, open_image
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.training.saved_policy import saved_policy

BATCH = 16


def caption(config: CaptionConfig) -> Iterator[tuple[Path, str]]:
    """(path, caption) of each image, in order.

    Raises:
      UserError: an image or the policy cannot be read.
    """
    examples = [_example(path, config.prompt) for path in config.images]
    if config.checkpoint:
        folder, policy, params, _ = saved_policy(Path(config.model), config.checkpoint)
        params = jax.device_put(params, jax.devices()[0])
    else:
        folder = policy_folder(config.model, revision=config.revision)
        policy, params = load_pretrained(folder)
    captioner = Captioner(
        policy,
        Processor.load(folder),
        make_mesh(devices=jax.devices()[:1]),
        group_size=1,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
    )
    key = jax.random.key(config.seed)
    captions = captioner.captions(params, examples, key, batch_size=min(BATCH, len(examples)))
    for path, (text,) in zip(config.images, captions, strict=True):
        yield path, text


def _example(path: Path, prompt: str) -> Example:
    try:
        image = open_image(path)
    except BadImageError as error:
        raise UserError(
            f"{path} cannot be captioned ({error}); give a readable RGB image file."
        ) from None
    return Example(id=str(path), image=image, prompt=prompt, reference="")
