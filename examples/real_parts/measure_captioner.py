"""How much a captioner looks at its image, and what it says: nats per caption, and captions.

python examples/real_parts/measure_captioner.py POLICY PHOTOS.jsonl --out FOLDER

Prints the nats of one human caption per photo behind its own photo and behind another one, and
writes FOLDER/captions.jsonl for `balcap score`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import balcap_jax
from balcap_jax.config.sections import DataConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.lessons import Answers
from balcap_jax.data.photos import Photos
from balcap_jax.data.prompts.answers import AnswerEncoder
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.sources import open_rows, pixels_of
from balcap_jax.data.supervised import Supervised, join, prepared
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rollout.rollout import Captioner


class Nats(NamedTuple):
    """Negative log-likelihood of the same captions, in nats per caption, the end included.

    Attributes:
      right: behind their own image.
      other: behind the image of another example.
    """

    right: Float[np.ndarray, " n"]
    other: Float[np.ndarray, " n"]

    def described(self) -> str:
        """Means, and the mean of the difference with its standard error."""
        gain = self.other - self.right
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        return (
            f"{len(gain)} captions: {self.right.mean():.2f} nats with the right image, "
            f"{self.other.mean():.2f} with another one: {gain.mean():+.2f} +- {error:.2f}; the "
            f"right one is better for {(gain > 0).mean():.0%}"
        )


def nats_right_and_other(
    policy: VisionLanguagePolicy,
    params: dict,
    processor: Processor,
    examples: Sequence[Example],
    *,
    length: int,
    batch_size: int,
) -> Nats:
    """Of the first reference of each example, cut after `length` tokens.

    The other image is that of the next example, of the last one that of the first.
    """
    encoder = AnswerEncoder(processor, length=length)
    images = [example.image for example in examples]
    moved = [
        example._replace(image=image)
        for example, image in zip(examples, images[1:] + images[:1], strict=True)
    ]
    nats = jax.jit(lambda params, batch: _nats(policy, params, batch))

    def of(examples: Sequence[Example]) -> np.ndarray:
        found = []
        for start in range(0, len(examples), batch_size):
            # The last batch is filled up: one shape, one compilation.
            places = np.minimum(np.arange(start, start + batch_size), len(examples) - 1)
            lessons = [_lesson(examples[int(i)]) for i in places]
            rows = [prepared(lesson, processor, encoder) for lesson in lessons]
            batch = _of_one_length(join(rows, processor, encoder), length)
            found.append(np.asarray(nats(params, batch))[: len(examples) - start])
        return np.concatenate(found)

    return Nats(of(examples), of(moved))


def _lesson(example: Example) -> Answers:
    return Answers(example, [(example.references or (example.reference,))[0]])


def _of_one_length(batch: Supervised, length: int) -> Supervised:
    more = [(0, 0), (0, 0), (0, length - batch.tokens.shape[-1])]
    return batch._replace(tokens=np.pad(batch.tokens, more), mask=np.pad(batch.mask, more))


def _nats(policy: VisionLanguagePolicy, params: dict, batch: Supervised) -> jax.Array:
    features = policy.encode_images(params, batch.prompts.images)
    logprobs, _ = completion_logprobs(policy, params, batch.prompts, features, batch.tokens)
    return -jnp.sum(jnp.where(batch.mask, logprobs, 0.0), axis=(1, 2))


def write_captions(
    policy: VisionLanguagePolicy,
    params: dict,
    processor: Processor,
    examples: Sequence[Example],
    path: Path,
    *,
    length: int,
    batch_size: int,
) -> list[str]:
    """Writes the likeliest caption of each example as the rows that `balcap score` reads."""
    captioner = Captioner(
        policy,
        processor,
        make_mesh(devices=jax.devices()[:1]),
        group_size=1,
        max_new_tokens=length,
        temperature=0.0,
    )
    groups = captioner.captions(params, examples, jax.random.key(0), batch_size=batch_size)
    captions = [caption for (caption,) in groups]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for example, caption in zip(examples, captions, strict=True):
            row = {"id": example.id, "caption": caption, "references": [*example.references]}
            file.write(json.dumps(row) + "\n")
    return captions


def photos(path: Path, count: int) -> list[Example]:
    """The first `count` rows of a file of {"image", "captions"} rows."""
    data = DataConfig(path=str(path))
    rows = open_rows(data, path, split=data.split)
    source = Photos(rows, name=str(path), max_bad_images=0, pixels=pixels_of(data))
    return [source[i] for i in range(min(count, len(source)))]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="How much a captioner looks at its image.")
    parser.add_argument("policy", help="a folder or a run")
    parser.add_argument("photos", help='a .jsonl file of {"image", "captions"} rows')
    parser.add_argument("--out", type=Path, required=True, help="folder of captions.jsonl")
    parser.add_argument("--count", type=int, default=150, help="photos, from the first")
    parser.add_argument("--length", type=int, default=24, help="most tokens of a caption")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--shown", type=int, default=20, help="captions that are printed")
    chosen = parser.parse_args(arguments)
    folder = policy_folder(chosen.policy)
    policy, params = balcap_jax.load_pretrained(folder, dtype="float32")
    processor = Processor.load(folder)
    examples = photos(Path(chosen.photos), chosen.count)
    sizes = {"length": chosen.length, "batch_size": chosen.batch_size}
    print(nats_right_and_other(policy, params, processor, examples, **sizes).described())
    captions = write_captions(
        policy, params, processor, examples, chosen.out / "captions.jsonl", **sizes
    )
    print("\n".join(captions[: chosen.shown]))


if __name__ == "__main__":
    main()
