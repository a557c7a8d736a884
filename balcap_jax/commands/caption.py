"""`balcap caption`: captions of the user's own images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from balcap_jax.config.commands import CaptionConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.images import BadImageError, Pixels, check_file, open_image
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.storage.paths import as_path
from balcap_jax.training.saved_policy import saved_policy, tell_if_older

BATCH = 8


def caption(config: CaptionConfig) -> Iterator[tuple[Path, str]]:
    """(path, caption) of each image, in order. At most `BATCH` images are in memory.

    Raises:
      UserError: an image or the policy cannot be read; images that are none, before the first
        caption.
    """
    pixels = Pixels(config.min_pixels, config.max_pixels, config.max_file_pixels)
    photos = _Photos(config.images, config.prompt, pixels)
    if config.checkpoint:
        saved = saved_policy(as_path(config.model), config.checkpoint)
        folder, policy = saved.source, saved.policy
        params = jax.device_put(saved.params, jax.devices()[0])
    else:
        tell_if_older(config.model)
        folder = policy_folder(config.model, revision=config.revision)
        policy, params = load_pretrained(folder)
    captioner = Captioner(
        policy,
        Processor.load(folder).limited(min_pixels=pixels.least, max_pixels=pixels.most),
        make_mesh(devices=jax.devices()[:1]),
        group_size=1,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
    )
    key = jax.random.key(config.seed)
    captions = captioner.captions(params, photos, key, batch_size=min(BATCH, len(photos)))
    for path, (text,) in zip(config.images, captions, strict=True):
        yield path, text


class _Photos(Sequence[Example]):
    """Image files, each opened when it is asked for."""

    def __init__(self, paths: Sequence[Path], prompt: str, pixels: Pixels):
        self._paths, self._prompt, self._pixels = paths, prompt, pixels
        self._last: tuple[int, Example] | None = None  # a batch is filled up with copies of it
        for path in paths:
            try:
                check_file(path, pixels=pixels)
            except BadImageError as error:
                raise _refused(path, error) from None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if self._last is None or self._last[0] != index:
            path = self._paths[index]
            try:
                image = open_image(path, pixels=self._pixels)
            except BadImageError as error:
                raise _refused(path, error) from None
            self._last = index, Example(str(path), image, self._prompt, reference="")
        return self._last[1]


def _refused(path: Path, error: BadImageError) -> UserError:
    return UserError(f"{path} cannot be captioned ({error}); give a readable RGB image file.")
