"""Images as a request carries them."""

import asyncio
import base64
import io
from typing import NamedTuple

from PIL import Image

from balcap_jax.rewards.llm.cache import digest_of
from balcap_jax.rewards.llm.once import Once


class SentImage(NamedTuple):
    """An image, made ready once for all requests about it.

    Attributes:
      digest: hash of the pixels of the original, for the cache.
      url: what is sent, a data URL.
      pixels: how many it has as sent.
    """

    digest: str
    url: str
    pixels: int


def make_ready(image: Image.Image, *, side: int) -> SentImage:
    """`image` as JPEG, its longer side shrunk to `side` pixels at most."""
    digest = digest_of(image)
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return SentImage(digest, url, image.width * image.height)


class ReadyImages:
    """Images made ready once for a batch, beside the event loop.

    Args:
      side: see `make_ready`.
    """

    def __init__(self, side: int):
        self._side = side
        self._made: Once[SentImage] = Once(keep=True)

    async def of(self, image: Image.Image) -> SentImage:
        """`image`, which the caller keeps alive until `end`."""
        return await self._made(
            id(image), lambda: asyncio.to_thread(make_ready, image, side=self._side)
        )

    async def end(self) -> None:
        """Forgets all."""
        await self._made.end()
