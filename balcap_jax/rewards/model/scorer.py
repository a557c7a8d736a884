"""A policy that is asked statements about images: its logits of yes against no."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from PIL import Image

from balcap_jax.config.sections import QUESTION_PROMPT
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.prompts.questions import QuestionEncoder
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.models.inputs import Prompts, Row
from balcap_jax.models.packing import Packing, Room, room_for
from balcap_jax.models.padding import bucket
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.yes_no import read_by, yes_no_logits
from balcap_jax.parallel.compiled import on_mesh
from balcap_jax.parallel.sharding import batch_shards, shard_batch

_BLANK_SIDE = 224  # pixels of the empty image
_GREY = (128, 128, 128)
# What is asked differs from step to step, and each size is compiled once, so sizes are few: tokens
# of a text are multiples of 16, texts of an image 32 times a power of four (what has no token costs
# hardly anything), and tokens of a pass 4 or 6 times a power of two.
_TOKEN_STEP = 16
_FEWEST_TEXTS = 32
_ROW_STEPS = (4, 6)


class StatementScorer:
    """Asks a policy statements; those of one image share its prefix.

    What it answers does not depend on what is asked at the same time.

    Args:
      images: images of a forward pass; more are asked in several.

    Attributes:
      forwards, tokens: passes, and tokens of statements in them, so far.
    """

    def __init__(
        self,
        policy: VisionLanguagePolicy,
        params: dict,
        processor: Processor,
        mesh: Mesh,
        *,
        images: int,
    ):
        self._params, self._processor, self._mesh = params, processor, mesh
        self.questions = QuestionEncoder(processor)
        shards = batch_shards(mesh)
        self._images = -(-images // shards) * shards
        self._most = processor.config.text.max_position_embeddings
        yes, no = self.questions.answers
        self._shards = shards
        forward = partial(_forward, policy=policy, yes=yes, no=no, rows=shards)
        self._program = on_mesh(mesh, forward, static_argnums=4)
        self.forwards = self.tokens = 0

    @classmethod
    def load(
        cls, folder: Path, *, mesh: Mesh, dtype: str, images: int, image_side: int
    ) -> "StatementScorer":
        """Of a folder that `load_pretrained` reads, its weights sharded over the mesh.

        Args:
          image_side: larger images are shrunk to the pixels of a square of this side.

        Raises:
          UserError: the folder cannot be read, or its tokenizer has no yes or no.
        """
        processor = Processor.load(folder).limited(min_pixels=0, max_pixels=image_side**2)
        _ = QuestionEncoder(processor).answers  # refused before gigabytes are read
        policy, params = load_pretrained(folder, dtype=dtype, mesh=mesh)
        return cls(policy, params, processor, mesh, images=images)

    def row(self, example: Example) -> Row:
        """The prefix of an image: what stands before its statements.

        Raises:
          UserError: the image processor refuses the image.
        """
        asked = Example(example.id, example.image, QUESTION_PROMPT, "")
        return self.questions.row(asked)

    @cached_property
    def blank(self) -> Row:
        """The prefix of an empty image."""
        empty = Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE), _GREY)
        return self.row(Example("the empty image", empty, QUESTION_PROMPT, ""))

    def without_image(self, statements: Sequence[str]) -> Float[np.ndarray, " n"]:
        """The same of statements behind an empty image, whose prefix all of them share.

        Raises:
          UserError: as `__call__`.
        """
        encoded = [self.questions.ids(text) for text in statements]
        if not encoded:
            return np.zeros(0, np.float32)
        # As many prefixes as there are parts of the batch.
        parts = [encoded[i :: self._shards] for i in range(self._shards)]
        logits = self._ask([self.blank] * self._shards, parts)
        found = np.zeros(len(encoded), np.float32)
        for i, part in enumerate(parts):
            found[i :: self._shards] = logits[i, : len(part)]
        return found

    def __call__(
        self, rows: Sequence[Row], statements: Sequence[Sequence[str]]
    ) -> list[Float[np.ndarray, " g"]]:
        """log P(yes) - log P(no) of the statements about each image, float32, in nats.

        Args:
          rows: of `row`; statements may be of any number, also none.

        Raises:
          UserError: a statement has more tokens than the policy has positions.
        """
        encoded = [[self.questions.ids(text) for text in texts] for texts in statements]
        found: list[Float[np.ndarray, " g"]] = [np.zeros(0, np.float32) for _ in rows]
        # Alike long ones together, so that little is padding.
        order = sorted((i for i in range(len(rows)) if encoded[i]), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), self._images):
            places = order[start : start + self._images]
            # Always as many images, the last ones asked nothing.
            empty = self._images - len(places)
            logits = self._ask(
                [rows[i] for i in places] + [rows[places[-1]]] * empty,
                [encoded[i] for i in places] + [[]] * empty,
            )
            for row, i in enumerate(places):
                found[i] = logits[row, : len(encoded[i])]
        return found

    def _ask(self, rows: list[Row], texts: list[list[list[int]]]) -> Float[np.ndarray, "b g"]:
        longest = max(len(ids) for of_image in texts for ids in of_image)
        last = max(int(row.positions.max()) for row in rows)
        if last + longest >= self._most:
            raise UserError(
                f"a statement of {longest} tokens does not fit behind an image in the "
                f"{self._most} positions of the judge; shrink images with --judge.image-side."
            )
        count = _FEWEST_TEXTS
        while count < max(map(len, texts)):
            count *= 4
        length = bucket(longest + 1, _TOKEN_STEP)
        tokens = np.full((len(rows), count, length), self._processor.pad_token_id, np.int32)
        lengths = np.zeros((len(rows), count), np.int32)
        for b, of_image in enumerate(texts):
            for g, ids in enumerate(of_image):
                tokens[b, g, : len(ids)] = ids
                lengths[b, g] = len(ids)
        self.forwards += 1
        self.tokens += int(lengths.sum())
        prompts = self._processor.pad(rows)
        room = room_for(
            (lengths + (lengths > 0)).sum(axis=1).reshape(self._shards, -1),
            prompts.mask.sum(axis=1).reshape(self._shards, -1),
            group=count,
            length=length,
            prefix_length=prompts.mask.shape[1],
            steps=_ROW_STEPS,
        )
        batch = shard_batch(self._mesh, (prompts, tokens, lengths))
        return np.asarray(jax.device_get(self._program(self._params, *batch, room)))


def _forward(
    params: dict,
    prompts: Prompts,
    texts: jax.Array,
    lengths: jax.Array,
    room: Room | None,
    *,
    policy: VisionLanguagePolicy,
    yes: tuple[int, ...],
    no: tuple[int, ...],
    rows: int,
) -> jax.Array:
    features = policy.encode_images(params, prompts.images)
    packing = None
    if room is not None:
        read = read_by(lengths, length=texts.shape[2])
        packing = Packing.of(room, prompts.mask, read, rows=rows)
    return yes_no_logits(
        policy, params, prompts, features, texts, lengths, yes=yes, no=no, packing=packing
    )
