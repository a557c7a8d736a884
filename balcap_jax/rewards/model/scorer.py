"""A policy that is asked statements about images: its logits of yes against no."""

from collections.abc import Sequence
from functools import partial
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
from balcap_jax.models.padding import bucket
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.yes_no import yes_no_logits
from balcap_jax.parallel.sharding import batch_shards, shard_batch
from balcap_jax.rl.update import on_mesh

_BLANK_SIDE = 224  # pixels of the empty image
_GREY = (128, 128, 128)
# Texts of an image and tokens of a text are padded to multiples of these, and a pass has always the
# same number of images: what is asked differs from step to step, and each size is compiled once.
_TEXT_STEP, _TOKEN_STEP = 32, 8


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
        self._program = on_mesh(mesh, jax.jit(partial(_forward, policy=policy, yes=yes, no=no)))
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

    def blank(self) -> Row:
        """The prefix of an empty image."""
        empty = Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE), _GREY)
        return self.row(Example("the empty image", empty, QUESTION_PROMPT, ""))

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
            logits = self._ask([rows[i] for i in places], [encoded[i] for i in places])
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
        count = bucket(max(map(len, texts)), _TEXT_STEP)
        length = bucket(longest + 1, _TOKEN_STEP)
        filled = [*rows, *[rows[-1]] * (self._images - len(rows))]
        tokens = np.full((self._images, count, length), self._processor.pad_token_id, np.int32)
        lengths = np.zeros((self._images, count), np.int32)
        for b, of_image in enumerate(texts):
            for g, ids in enumerate(of_image):
                tokens[b, g, : len(ids)] = ids
                lengths[b, g] = len(ids)
        self.forwards += 1
        self.tokens += int(lengths.sum())
        batch = shard_batch(self._mesh, (self._processor.pad(filled), tokens, lengths))
        return np.asarray(jax.device_get(self._program(self._params, *batch)))


def _forward(
    params: dict,
    prompts: Prompts,
    texts: jax.Array,
    lengths: jax.Array,
    *,
    policy: VisionLanguagePolicy,
    yes: tuple[int, ...],
    no: tuple[int, ...],
) -> jax.Array:
    features = policy.encode_images(params, prompts.images)
    return yes_no_logits(policy, params, prompts, features, texts, lengths, yes=yes, no=no)
