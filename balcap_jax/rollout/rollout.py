"""Examples in, sampled captions out: the host's side of the rollout."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.inputs import Prompts
from balcap_jax.models.padding import pad_to_sizes, sizes_of
from balcap_jax.models.pixels import as_computed
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.processes import largest
from balcap_jax.parallel.sharding import BatchRows, batch_shards, local_rows, replicate, shard_batch
from balcap_jax.rollout.decoding import Decoder, Rollout
from balcap_jax.rollout.sampling import (
    caption_keys,
    encode_images,
    programs_on,
    sample,
    sizes_of_compaction,
)
from balcap_jax.runs.device_clock import DeviceClock

_CHUNK = 32  # steps between two looks for captions that have ended


class Generation(NamedTuple):
    """A rollout on the device with what the update needs of its inputs.

    Attributes:
      prompts: the batch, spread over the mesh.
      features: the images, encoded once for rollout and update.
      rollout: the sampled captions.
    """

    prompts: Prompts
    features: Float[Array, "b m d"]
    rollout: Rollout


class Caption(NamedTuple):
    """One sampled caption, and its tokens, the stop token included."""

    text: str
    ids: list[int]


# Of a row of this host, a place in its group, and the caption that has ended there.
Tell = Callable[[int, int, Caption], None]


class Captioner:
    """Samples captions with fixed settings, so that each bucket of shapes is compiled once."""

    def __init__(
        self,
        policy: VisionLanguagePolicy,
        processor: Processor,
        mesh: Mesh,
        *,
        group_size: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        greedy: int = 0,
        clock: DeviceClock | None = None,
    ):
        """
        Args:
          greedy: see `sample`.

        Raises:
          UserError: the policy has not so many positions.
        """
        positions = policy.config.text.max_position_embeddings
        if max_new_tokens >= positions:
            raise UserError(
                f"max_new_tokens={max_new_tokens} must be below the policy's "
                f"max_position_embeddings={positions}, which image and prompt need a part of; set "
                f"it to less."
            )
        self.processor = processor
        self.mesh = mesh
        self._dtype = policy.dtype
        self._clock = clock
        # (prefix tokens, patches, windows) of the prompts so far: each compiles the programs once.
        self.shapes: set[tuple[int, int, int]] = set()
        self._encode = partial(encode_images, policy)
        self._keys = partial(caption_keys, group_size=group_size)
        self._sampling = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "greedy": greedy,
            "banned_tokens": policy.config.banned_tokens,
            "stop_tokens": processor.stop_tokens,
            "pad_token_id": processor.pad_token_id,
        }
        self._programs = programs_on(mesh.devices.flat[0].platform)
        self._sample = partial(self._programs.sample, policy, **self._sampling)
        self._decoder = Decoder(policy, **self._sampling)

    def sampler(self, policy: VisionLanguagePolicy) -> Callable[..., Rollout]:
        """`sample` of this policy with these settings, in one loop, to count its flops by."""
        return partial(sample, policy, **self._sampling)

    def key_shapes(self, images: int) -> jax.ShapeDtypeStruct:
        """Of the keys that `sample` draws the captions of so many images by."""
        return jax.eval_shape(self._keys, jax.random.key(0), np.zeros(images, np.int32))

    def generate(
        self,
        params: dict,
        examples: Sequence[Example],
        key: Key[Array, ""],
        *,
        images: Sequence[int] | Int[np.ndarray, " b"] | None = None,
        prompts: Prompts | None = None,
        tell: Tell | None = None,
    ) -> Generation:
        """Starts a rollout and returns without waiting for it, or tells its captions as they end.

        Args:
          key: key of the rollout, e.g. fold_in(run_key, step).
          images: a number per example for its key (see `caption_keys`); default: its place.
          examples, images: on several hosts, those of the rows that this one holds.
          prompts: of the examples, where they are made already.
          tell: hears of each caption of this host as soon as it is seen to have ended, every so
            many tokens, while the others go on; the rollout is done then.

        Raises:
          UserError: the number of examples does not divide by the data shards of the mesh.
        """
        numbers = np.arange(len(examples)) if images is None else np.asarray(images)
        prompts = self._on_mesh(examples, prompts)
        with jax.set_mesh(self.mesh):
            keys = self._keys(
                replicate(self.mesh, key), shard_batch(self.mesh, numbers.astype(np.int32))
            )
            start = None if self._clock is None else self._clock.start()
            features = self._encode(params, prompts.images)
            if tell is None:
                compact = sizes_of_compaction(keys.size, self.mesh)
                rollout = self._sample(params, prompts, features, keys, compact=compact)
            else:
                rollout = self._told(params, prompts, features, keys, tell=tell)
            if self._clock is not None:
                self._clock.ran(start, rollout)
        return Generation(prompts, features, rollout)

    def _told(
        self,
        params: dict,
        prompts: Prompts,
        features: Float[Array, "b m d"],
        keys: Key[Array, "b g"],
        *,
        tell: Tell,
    ) -> Rollout:
        """The rollout in chunks; what has ended in one is told while the next one is computed."""
        state, running = self._programs.begin(
            self._decoder, params, prompts, features, keys, steps=_CHUNK
        )
        known: Bool[np.ndarray, "b g"] | np.bool_ = np.False_
        while True:
            # Of all hosts, which so take the same number of chunks.
            left = int(jax.device_get(running))
            rollout = state.loop.rollout
            parts = local_rows(self.mesh, (rollout.tokens, rollout.mask, rollout.ended))
            tokens, mask, ended = map(np.array, parts)  # copies: the next chunk takes the memory
            if left:
                state, running = self._programs.go_on(self._decoder, state, steps=_CHUNK)
            over = ended | (left == 0)
            new = over & ~known
            for (row, place), caption in zip(
                np.argwhere(new), self._in_words(tokens[new], mask[new]), strict=True
            ):
                tell(int(row), int(place), caption)
            known = over
            if not left:
                return rollout

    def regenerate(
        self,
        params: dict,
        examples: Sequence[Example],
        rollout: Rollout,
        *,
        prompts: Prompts | None = None,
    ) -> Generation:
        """The generation that `rollout`, kept from earlier, was part of.

        Args:
          examples, prompts: see `generate`.
          params: of any step; the vision tower alone is used, and counts only where it is frozen.
        """
        prompts = self._on_mesh(examples, prompts)
        with jax.set_mesh(self.mesh):
            features = self._encode(params, prompts.images)
        return Generation(prompts, features, rollout)

    def _on_mesh(self, examples: Sequence[Example], prompts: Prompts | None) -> Prompts:
        """The batch on the mesh; its shapes are remembered."""
        prompts = self.processor.prompts(examples) if prompts is None else prompts
        # All hosts run one program, so the longest prompt of any of them decides.
        sizes = largest(sizes_of(prompts))
        prompts = pad_to_sizes(prompts, sizes, pad_token_id=self.processor.pad_token_id)
        prompts = as_computed(prompts, self._dtype)
        prompts = shard_batch(self.mesh, prompts)
        self.shapes.add(
            tuple(
                x.shape[1] for x in (prompts.tokens, prompts.images.pixels, prompts.images.windows)
            )
        )
        return prompts

    def texts(self, rollout: Rollout) -> list[list[str]]:
        """The captions of each image that this host holds, in words; waits for the rollout."""
        return [[caption.text for caption in group] for group in self.sampled(rollout)]

    def sampled(self, rollout: Rollout) -> list[list[Caption]]:
        """The captions of each image that this host holds; waits for the rollout."""
        tokens, mask = local_rows(self.mesh, (rollout.tokens, rollout.mask))
        B, G, C = tokens.shape
        flat = self._in_words(tokens.reshape(B * G, C), mask.reshape(B * G, C))
        return [flat[b * G : (b + 1) * G] for b in range(B)]

    def _in_words(
        self, tokens: Int[np.ndarray, "n c"], mask: Bool[np.ndarray, "n c"]
    ) -> list[Caption]:
        texts = self.processor.decode(tokens) if len(tokens) else []
        return [
            Caption(text, row[real].tolist())
            for text, row, real in zip(texts, tokens, mask, strict=True)
        ]

    def captions(
        self,
        params: dict,
        examples: Sequence[Example],
        key: Key[Array, ""],
        *,
        batch_size: int,
    ) -> Iterator[list[str]]:
        """The captions of each example, in order, however many examples there are.

        The last batch is filled up with copies of its last example: one shape, one compilation. An
        example's captions do not depend on `batch_size`, which is rounded up to fill the mesh.
        """
        for _, group in self.local_captions(params, examples, key, batch_size=batch_size):
            yield [caption.text for caption in group]

    def local_captions(
        self,
        params: dict,
        examples: Sequence[Example],
        key: Key[Array, ""],
        *,
        batch_size: int,
        order: Int[np.ndarray, " n"] | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, list[Caption]]]:
        """As `captions`, with tokens and places of the examples; several hosts share them out.

        Args:
          order: places of all examples in the order that batches take them; default: their own.
          look: called before each batch, on all hosts; what it raises ends the captions.
        """
        shards = batch_shards(self.mesh)
        batch_size = -(-batch_size // shards) * shards
        rows = BatchRows.of(self.mesh, batch_size)
        for start in range(0, len(examples), batch_size):
            look()
            counted = start + rows.local_rows
            numbers = counted
            if order is not None:
                numbers = order[np.minimum(counted, len(examples) - 1)]
            held = [examples[min(int(i), len(examples) - 1)] for i in numbers]
            generation = self.generate(params, held, key, images=numbers)
            sampled = self.sampled(generation.rollout)
            for place in rows.judged_places:
                if counted[place] < len(examples):
                    yield int(numbers[place]), sampled[place]
