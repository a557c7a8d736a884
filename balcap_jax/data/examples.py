"""What a data source yields: one image with its prompt and what is known to be true of it."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image

if TYPE_CHECKING:
    from balcap_jax.scenes.world import Scene


NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})


class Box(NamedTuple):
    """An object that is known to be in an image.

    Attributes:
      label: its kind, in words.
      left, top, right, bottom: as shares of the image's width and height, from 0 to 1.
    """

    label: str
    left: float
    top: float
    right: float
    bottom: float


class Turn(NamedTuple):
    """What the user says, and the answer: a later turn of a conversation, or a question."""

    question: str
    answer: str


class Example(NamedTuple):
    """One image to caption.

    Attributes:
      id: stable name, unique within its source.
      image: RGB image.
      prompt: the user's text; the image stands before it.
      reference: reference caption `r`; its words are the unit of length of the mask. Where a photo
        has several captions it is the longest of them: the one that tells most.
      scene: ground truth of a generated scene, None for photos.
      references: all reference captions of a photo, `reference` among them; empty means only it.
      boxes: objects known to be in the image.
      units: reference units, where they are stored with the data.
      messages: the whole conversation up to the answer, in chat form, where the data have that in
        place of a text; `prompt` is then its last text.
      columns: what else the data say of the image, by name, for reward functions.
      more_images: RGB images after the first, of a prompt that shows several; `messages` says where
        each stands. For supervised training.
      turns: what comes after the first answer, `reference`. For supervised training.
      questions: asked of the image each by itself, behind `prompt`, with their answers. For
        supervised training.
    """

    id: str
    image: Image.Image
    prompt: str
    reference: str
    scene: "Scene | None" = None
    references: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    units: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = NO_COLUMNS
    more_images: tuple[Image.Image, ...] = ()
    turns: tuple[Turn, ...] = ()
    questions: tuple[Turn, ...] = ()

    @property
    def all_references(self) -> tuple[str, ...]:
        """`references`, or `reference` where they are empty."""
        return self.references or (self.reference,)

    @property
    def all_images(self) -> tuple[Image.Image, ...]:
        """`image` and `more_images`."""
        return (self.image, *self.more_images)


@runtime_checkable
class Source(Protocol):
    """Random access to examples, so that the order is a function of the seed and the step only."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def iterate(source: Source) -> Iterator[Example]:
    """All examples of `source` in order."""
    for index in range(len(source)):
        yield source[index]
