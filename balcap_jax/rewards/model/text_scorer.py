"""A policy's decoder as a language model: logprobs of texts without an image."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.models.inputs import Prompts
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.padding import bucket
from balcap_jax.models.policy import DECODER, VisionLanguagePolicy
from balcap_jax.parallel.compiled import on_mesh
from balcap_jax.parallel.sharding import batch_shards, shard_batch

_TEXTS = 32  # of a row of a pass, which has one row for each shard of the batch
_TOKEN_STEP = 16  # texts are padded to multiples, each of which compiles once


class TextScorer:
    """Logprobs of texts as answers to a prompt without an image; see `TextLogprobs`.

    What it says of a text does not depend on what is asked at the same time.

    Args:
      params: those of the decoder; others are not read.
      prompt: what the texts answer.
    """

    def __init__(
        self,
        policy: VisionLanguagePolicy,
        params: dict,
        processor: Processor,
        mesh: Mesh,
        *,
        prompt: str,
    ):
        self._params = {name: params[name] for name in DECODER if name in params}
        self._processor, self._mesh = processor, mesh
        self._row = processor.text_row(prompt)
        self._rows = batch_shards(mesh)
        self._most = processor.config.text.max_position_embeddings
        self._program = on_mesh(mesh, partial(_forward, policy=policy))

    @classmethod
    def load(cls, folder: Path, *, mesh: Mesh, dtype: str, prompt: str) -> "TextScorer":
        """Of a folder that `load_pretrained` reads, its weights sharded over the mesh.

        Raises:
          UserError: the folder cannot be read, or its template takes no prompt without an image.
        """
        processor = Processor.load(folder)
        _ = processor.text_row(prompt)  # refused before gigabytes are read
        policy, params = load_pretrained(folder, dtype=dtype, mesh=mesh)
        return cls(policy, params, processor, mesh, prompt=prompt)

    def __call__(self, texts: Sequence[str]) -> list[Float[np.ndarray, " t"]]:
        """The logprobs of each text's tokens, float32, in nats, without the stop token.

        Of a text that is longer than the policy has positions, those of its beginning.
        """
        encoded = [self._ids(text) for text in texts]
        found: list[Float[np.ndarray, " t"]] = [np.zeros(0, np.float32) for _ in texts]
        # Alike long ones together, so that little is padding.
        order = sorted((i for i, ids in enumerate(encoded) if ids), key=lambda i: len(encoded[i]))
        size = _TEXTS * self._rows
        for start in range(0, len(order), size):
            places = order[start : start + size]
            logprobs = self._ask([encoded[i] for i in places])
            for row, i in enumerate(places):
                found[i] = logprobs[row, : len(encoded[i])]
        return found

    def _ids(self, text: str) -> list[int]:
        ids = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[: self._most - len(self._row.tokens)]

    def _ask(self, texts: list[list[int]]) -> Float[np.ndarray, "n c"]:
        length = bucket(max(map(len, texts)), _TOKEN_STEP)
        size = (self._rows, _TEXTS, length)
        tokens = np.full((self._rows * _TEXTS, length), self._processor.pad_token_id, np.int32)
        for i, ids in enumerate(texts):
            tokens[i, : len(ids)] = ids
        prompts = self._processor.pad([self._row] * self._rows)
        batch = shard_batch(self._mesh, (prompts, tokens.reshape(size)))
        logprobs = jax.device_get(self._program(self._params, *batch))
        return np.asarray(logprobs).reshape(-1, length)


def _forward(
    params: dict, prompts: Prompts, texts: Int[Array, "b g c"], *, policy: VisionLanguagePolicy
) -> Float[Array, "b g c"]:
    features = policy.encode_images(params, prompts.images)
    return completion_logprobs(policy, params, prompts, features, texts)[0]
