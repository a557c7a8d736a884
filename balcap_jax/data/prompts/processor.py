"""Examples to the arrays a policy reads, and tokens to captions.

Tokenizer, chat template and image processor come from the policy's folder through transformers,
without torch. Ids, grids, positions and windows of a prompt all come from one call, so they cannot
disagree.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.data.order import NO_EXTENT, Extent
from balcap_jax.data.prompts.folder_parts import (
    as_user_error,
    check_files,
    choose_template,
    load_image_processor,
    load_tokenizer,
)
from balcap_jax.data.prompts.pixel_levels import AS_BYTES, levels_of, to_bytes
from balcap_jax.data.prompts.time_limit import within
from balcap_jax.data.prompts.trials import trials
from balcap_jax.errors import UserError
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.families import layout_of, load_config
from balcap_jax.models.geometry import Grid
from balcap_jax.models.hf.adapter_config import base_folder
from balcap_jax.models.inputs import CutImage, Prompts, Row
from balcap_jax.models.layout import Layout
from balcap_jax.models.padding import Least, pad_rows
from balcap_jax.models.pixels import one_frame

# Of a chat template for one row, which takes a thousandth of it; others may wait for the processor.
TEMPLATE_SECONDS = 10.0
# Words, numbers, marks, spaces and signs of several alphabets: what patterns tell apart.
_TRIAL_TEXT = "Describe this image: 2 cats aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!   éß 猫 🐈\n" * 4


@dataclass(frozen=True)
class Processor:
    """What a policy's folder says about text and images.

    Attributes:
      config: the policy's sizes and token ids.
      tokenizer, image_processor: of transformers.
      chat_template: Jinja text that makes a prompt of an image and a user's words.
      min_pixels, max_pixels: bounds of the image, within those of the folder; None: only those.
        Read by towers that take images of any size.
      prefix_step, patch_step: prefixes and patches are padded to multiples of these (see `bucket`),
        so that few shapes are ever compiled.
    """

    config: PolicyConfig
    tokenizer: Any
    image_processor: Any
    chat_template: str
    prefix_step: int = 16
    patch_step: int = 28
    min_pixels: int = 0
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.prefix_step < 1 or self.patch_step < 1:
            raise UserError(
                f"prefix_step={self.prefix_step} and patch_step={self.patch_step} must be "
                "positive; set them so."
            )
        self.layout.step_for(self.patch_step)  # refuses what does not fit

    @classmethod
    def load(
        cls, folder: str | Path, *, prefix_step: int = 16, patch_step: int = 28
    ) -> "Processor":
        """Reads config.json, the tokenizer, the chat template and the image processor.

        Raises:
          UserError: one of them is missing, unreadable, or does not fit the others.
        """
        folder = base_folder(Path(folder))
        config = load_config(folder)
        check_files(folder)
        with trials() as trial:
            # In the other process while transformers is imported here.
            if (folder / "tokenizer.json").is_file():
                trial.tokenizer(folder / "tokenizer.json", _TRIAL_TEXT)
                import transformers  # noqa: F401

                trial.check()
            tokenizer = load_tokenizer(folder)
            template, name = choose_template(folder, tokenizer)
            conversations = [conversation(example) for example in _trial_examples()]
            tokens = {
                key: value
                for key, value in getattr(tokenizer, "special_tokens_map", {}).items()
                if isinstance(value, str)
            }
            trial.template(str(folder / name), template, conversations, tokens)
            image_processor = load_image_processor(folder)
            trial.check()
        processor = cls(
            config=config,
            tokenizer=tokenizer,
            image_processor=image_processor,
            chat_template=template,
            prefix_step=prefix_step,
            patch_step=patch_step,
        )
        processor.check(folder, template_file=name)
        return processor

    @cached_property
    def layout(self) -> Layout:
        """How this family cuts images and counts positions."""
        return layout_of(self.config)

    def check(self, folder: Path, *, template_file: str) -> None:
        """Raises a UserError where tokenizer, template or image processor are not of the model: by
        the prompt of a small image.
        """
        try:
            self.layout.check_image_processor(self.image_processor)
            with as_user_error(
                lambda reason: (
                    f"preprocessor_config.json makes nothing of an image ({reason}); "
                    "take the one that was published with the weights."
                )
            ):
                images = self._cut(_trial_examples()[0].image)
            shown = [image.pixels if image.levels is None else image.levels for image in images]
            if not all(np.isfinite(numbers).all() for numbers in shown):
                raise UserError(
                    "the image processor makes pixels that are no numbers; take the "
                    "preprocessor_config.json that was published with the weights."
                )
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        with as_user_error(
            lambda reason: (
                f"{folder} has no usable tokenizer.json ({reason}); add the one of the model."
            )
        ):
            largest = max(self.tokenizer.get_vocab().values())
        if largest >= self.config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has the token {largest} but the vocabulary of "
                f"config.json is {self.config.vocab_size}; use the files of one model."
            )
        with as_user_error(
            lambda reason: (
                f"The chat template in {folder / template_file} makes no prompt of an "
                f"image and a text ({reason}); take the one that was published with the weights."
            )
        ):
            self.layout.expand(self._ids(_trial_examples()[0]), images)

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return self.config.stop_tokens

    @property
    def pad_token_id(self) -> int:
        return self.config.pad_token_id

    # ---- prompts

    def prompts(self, examples: Sequence[Example]) -> Prompts:
        """Numpy arrays of the examples' prompts, ready to be answered.

        Raises:
          UserError: an image that cannot be processed, or a prompt whose placeholders are not one
            per image token; the message has the example's id.
        """
        return self.pad([self.row(example) for example in examples])

    def pad(self, rows: Sequence[Row], *, least: Extent = NO_EXTENT) -> Prompts:
        """Rows as a batch: prefix and patches padded on the right to the next bucket.

        Args:
          least: images for which there is room at least.
        """
        image = self.config.image_token_id
        text = max(int(np.sum(row.tokens != image)) for row in rows)
        tokens, windows = least
        return pad_rows(
            rows,
            pad_token_id=self.pad_token_id,
            prefix_step=self.prefix_step,
            patch_step=self.layout.step_for(self.patch_step),
            least=Least(tokens + text - 1 if tokens else 0, tokens * self.layout.granule, windows),
        )

    def row(self, example: Example) -> Row:
        """One prompt before padding; many threads may make theirs at once.

        Raises:
          UserError: see `prompts`.
        """
        return self.row_of(example, lambda: self.rendered(example))

    def row_of(self, example: Example, render: Callable[[], str]) -> Row:
        """The images of an example behind a text that shows them; see `row`."""
        sentence = partial(_no_prompt, example.id)
        with as_user_error(sentence):
            ids = self._encode(render())
        try:
            return self.layout.expand(ids, self._cut(*example.all_images))
        except (ValueError, OSError) as error:
            raise UserError(sentence(str(error))) from error

    def text_row(self, text: str) -> Row:
        """The prompt of a user's text without any image.

        Raises:
          UserError: the chat template takes none.
        """
        with as_user_error(
            lambda reason: (
                f"The chat template of the policy takes no text without an image ({reason}); use "
                "the one that was published with the weights."
            )
        ):
            content = [{"type": "text", "text": text}]
            ids = self._encode(self._rendered([{"role": "user", "content": content}]))
            return self.layout.expand(ids, [])

    def rendered(self, example: Example) -> str:
        """The prompt as the chat template writes it, up to the answer."""
        return self._rendered(conversation(example))

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        return within(
            TEMPLATE_SECONDS,
            lambda: self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            ),
        )

    def _ids(self, example: Example) -> list[int]:
        """Tokens of the prompt, one placeholder for each image."""
        return self._encode(self.rendered(example))

    def _encode(self, text: str) -> list[int]:
        # As processors of transformers do: what the template has written is not added again.
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        return self.tokenizer(text, add_special_tokens=not begun)["input_ids"]

    def limited(self, *, min_pixels: int, max_pixels: int | None) -> "Processor":
        """This one with other bounds of images, see `data.min_pixels` and `data.max_pixels`."""
        other = replace(self, min_pixels=min_pixels, max_pixels=max_pixels)
        other.__dict__["levels"] = self.levels  # of any size
        return other

    @cached_property
    def levels(self) -> Float[np.ndarray, "k 256"] | None:
        """The float that each byte of a pixel stands for, by channel; None: pixels are floats."""

        def process(image: Image.Image, **options: Any) -> Float[np.ndarray, "s k c"]:
            (cut,) = self._processed([image], **options)
            return cut.pixels.reshape(len(cut.pixels), self.layout.channels, -1)

        return levels_of(self.image_processor, process, channels=self.layout.channels)

    def _cut(self, *images: Image.Image) -> list[CutImage]:
        if self.levels is None:
            return [self._one_frame(cut) for cut in self._processed(images)]
        cuts = [self._one_frame(cut) for cut in self._processed(images, **AS_BYTES)]
        return [CutImage(to_bytes(cut.pixels), cut.grid, self.levels) for cut in cuts]

    def _one_frame(self, cut: CutImage) -> CutImage:
        layout = self.layout
        pixels = one_frame(cut.pixels, channels=layout.channels, frames=layout.frames)
        return cut._replace(pixels=pixels)

    def _processed(self, images: Sequence[Image.Image], **options: Any) -> list[CutImage]:
        """What the image processor returns for still images, all of its frames equal."""
        return self.layout.cut(
            self.image_processor(
                images=[image.convert("RGB") for image in images],
                return_tensors="np",
                **self._size_options(),
                **options,
            )
        )

    def extent(self, sizes: Iterable[tuple[int, int]]) -> Extent:
        """Of images of (width, height) that are opened so, which themselves are not needed; what no
        prompt can be made of counts nothing.
        """
        grids = [grid for grid in map(self._grid, sizes) if grid is not None]
        layout = self.layout
        return Extent(sum(map(layout.features, grids)), sum(map(layout.windows, grids)))

    def _grid(self, size: tuple[int, int]) -> Grid | None:
        """Rows and columns of patches, by the image processor's own rule; None where it has no such
        rule, or makes nothing of a strip.
        """
        processor = self.image_processor
        if not hasattr(processor, "merge_size"):  # one size for all, and one number of features
            return 1, 1
        bounds = self._size_options().get("size") or processor.size
        patch = processor.patch_size
        try:
            height, width = sys.modules[type(processor).__module__].smart_resize(
                size[1],
                size[0],
                factor=patch * processor.merge_size,
                min_pixels=bounds["shortest_edge"],
                max_pixels=bounds["longest_edge"],
            )
        except (ValueError, AttributeError, TypeError):  # or the rule of another class
            return None
        return height // patch, width // patch

    def shortest_first(self, examples: Sequence[Example]) -> Int[np.ndarray, " n"]:
        """The places of examples by the tokens of their images; equal ones in their order."""
        tokens = [self.extent(i.size for i in e.all_images).tokens for e in examples]
        return np.argsort(np.array(tokens, np.int64), kind="stable")

    def _size_options(self) -> dict[str, Any]:
        """The bounds as the image processor takes them; none where it has one size for all."""
        size = getattr(self.image_processor, "size", None) or {}
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        bounded = self.min_pixels > 0 or self.max_pixels is not None
        # Edges by name, areas by meaning, as only processors that merge patches have them.
        if not bounded or not (least and most and hasattr(self.image_processor, "merge_size")):
            return {}
        most = most if self.max_pixels is None else min(most, self.max_pixels)
        least = min(max(least, self.min_pixels), most)
        return {"size": {"shortest_edge": least, "longest_edge": most}}

    # ---- captions

    def encode_captions(
        self, captions: Sequence[Sequence[str]], length: int
    ) -> tuple[Int[np.ndarray, "b g c"], Bool[np.ndarray, "b g c"]]:
        """Tokens of G captions for each prompt, each with the stop token, and where they are real.

        A caption longer than `length` is cut and has no stop token: it does not end there.
        """
        assert len({len(group) for group in captions}) == 1, "groups must have one size"
        flat = [caption for group in captions for caption in group]
        encoded = self.tokenizer(flat, add_special_tokens=False)["input_ids"]
        tokens = np.full((len(flat), length), self.pad_token_id, np.int32)
        mask = np.zeros((len(flat), length), bool)
        for i, ids in enumerate(encoded):
            ids = [*ids, self.stop_tokens[0]][:length]
            tokens[i, : len(ids)] = ids
            mask[i, : len(ids)] = True
        shape = (len(captions), -1, length)
        return tokens.reshape(shape), mask.reshape(shape)

    def decode(self, tokens: Int[np.ndarray, "*b c"]) -> list[str]:
        """The captions in `tokens`, each up to its first stop token; leading axes are flattened."""
        rows = np.asarray(tokens).reshape(-1, tokens.shape[-1])
        ends = np.isin(rows, self.stop_tokens)
        lengths = np.where(ends.any(axis=1), ends.argmax(axis=1), rows.shape[1])
        return self.tokenizer.batch_decode(
            [row[:end].tolist() for row, end in zip(rows, lengths, strict=True)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )


def conversation(example: Example) -> list[dict[str, Any]]:
    """The messages that the chat template reads; the image stands before the first text of the
    user where the data do not say where.
    """
    given = example.messages or ({"role": "user", "content": example.prompt},)
    messages = [{**message, "content": _parts(message["content"])} for message in given]
    images = [part for m in messages for part in m["content"] if part["type"] == "image"]
    if not images:
        first = next(m for m in messages if m["role"] not in ("system", "assistant"))
        first["content"] = [{"type": "image"}, *first["content"]]
    return messages


def _parts(content: Any) -> list[dict[str, Any]]:
    """A message's content as parts; images are named alone, their pixels are in the example."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image"} if part["type"] == "image" else dict(part) for part in content]


def _no_prompt(name: str, reason: str) -> str:
    return (
        f"Example {name!r} makes no prompt ({reason}); it needs a readable image with sides at "
        "most 200 : 1 and a text without image placeholders that the chat template takes: fix or "
        "remove it."
    )


def _trial_examples() -> list[Example]:
    """What any folder of a captioner can make a prompt of, the plainest first."""
    image = Image.new("RGB", (64, 48))
    turns = [("system", "the image"), ("user", _TRIAL_TEXT), ("assistant", "a red square .")]
    messages = tuple({"role": role, "content": text} for role, text in (*turns, turns[1]))
    return [
        Example("trial", image, "describe the image", ""),
        Example("trial", image, _TRIAL_TEXT, ""),
        Example("trial", image, "", "", messages=messages),
    ]
