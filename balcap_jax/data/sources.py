"""From settings to sources of examples."""

from pathlib import Path

from balcap_jax.config import DataConfig
from balcap_jax.data.caption_files import CaptionFile
from balcap_jax.data.examples import Example, Source
from balcap_jax.data.scenes import SceneSource
from balcap_jax.errors import UserError

SCENES = "scenes"
# Scenes are drawn when asked for, so the split can be as large as any run is long.
_ENDLESS = 10**9


class Part:
    """The examples of `source` from `start` to `stop`."""

    def __init__(self, source: Source, start: int, stop: int):
        self.source, self.start, self.stop = source, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source[self.start + index]


def open_sources(data: DataConfig, *, seed: int) -> tuple[Source, Source]:
    """(train, held-out) examples.

    Scenes come from two splits that never share a scene; the held-out ones do not depend on `seed`,
    so that runs are compared on the same images. A file is cut: its last `data.heldout` examples
    are held out.

    Raises:
      UserError: the file is missing, unreadable or too short, or too many of its images are bad.
    """
    if data.path == SCENES:
        return SceneSource("train", _ENDLESS, seed=seed), SceneSource("heldout", data.heldout)
    source = CaptionFile(Path(data.path), max_bad_images=data.max_bad_images)
    count = len(source) - data.heldout
    if count < 1:
        raise UserError(
            f"{data.path} has {len(source)} usable examples, which leaves none to train on "
            f"beside data.heldout={data.heldout}; set --data.heldout below {len(source)}."
        )
    return Part(source, 0, count), Part(source, count, len(source))
