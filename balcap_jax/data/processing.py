"""Examples to the arrays a policy reads, and tokens to captions.

Tokenizer, chat template and image processor come from the policy's folder through transformers,
without torch. Ids, grids, positions and windows of a prompt all come from one call, so they cannot
disagree.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.data.geometry import Grid, patch_positions, token_positions, window_ids
from balcap_jax.errors import UserError
from balcap_jax.models.config import read_json
from balcap_jax.models.families import load_config
from balcap_jax.models.inputs import ImagePatches, Prompts
from balcap_jax.models.qwen2_5_vl_config import Qwen2_5_VLConfig


class Row(NamedTuple):
    """One prompt before padding, its last token still in place."""

    tokens: Int[np.ndarray, " t"]
    positions: Int[np.ndarray, "3 t"]
    images: ImagePatches  # without the batch axis


@dataclass(frozen=True)
class Processor:
    """What a policy's folder says about text and images.

    Attributes:
      config: the policy's sizes and token ids.
      tokenizer, image_processor: of transformers.
      chat_template: Jinja text that makes a prompt of an image and a user's words.
      prefix_step, patch_step: prefixes and patches are padded to multiples of these, so that few
        shapes are ever compiled.
    """

    config: Qwen2_5_VLConfig
    tokenizer: Any
    image_processor: Any
    chat_template: str
    prefix_step: int = 16
    patch_step: int = 28

    def __post_init__(self) -> None:
        merged = self.config.vision.spatial_merge_size**2
        if self.prefix_step < 1 or self.patch_step < 1 or self.patch_step % merged:
            raise UserError(
                f"prefix_step={self.prefix_step} must be positive and patch_step={self.patch_step} "
                f"a positive multiple of {merged}, the patches of one image token; set them so."
            )

    @classmethod
    def load(
        cls, folder: str | Path, *, prefix_step: int = 16, patch_step: int = 28
    ) -> "Processor":
        """Reads config.json, the tokenizer, the chat template and the image processor.

        Raises:
          UserError: one of them is missing, unreadable, or does not fit the others.
        """
        folder = Path(folder)
        config = load_config(folder)
        # transformers notes on import that it found no torch; none is needed here.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoImageProcessor, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(folder, "tokenizer.json", error) from error
        try:
            # The PIL backend is the one that works without torch.
            image_processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, backend="pil"
            )
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(folder, "preprocessor_config.json", error) from error
        _check_image_processor(folder, config, image_processor)
        return cls(
            config=config,
            tokenizer=tokenizer,
            image_processor=image_processor,
            chat_template=_chat_template(folder, tokenizer),
            prefix_step=prefix_step,
            patch_step=patch_step,
        )

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
        return self.pad([self._row(example) for example in examples])

    def pad(self, rows: Sequence[Row]) -> Prompts:
        """Rows as a batch: prefix and patches padded on the right to the next bucket."""
        prefix = _up(max(len(row.tokens) for row in rows) - 1, self.prefix_step)
        patches = _up(max(len(row.images.pixels) for row in rows), self.patch_step)
        return Prompts(
            tokens=np.stack([_pad(row.tokens[:-1], prefix, self.pad_token_id) for row in rows]),
            mask=np.stack([np.arange(prefix) < len(row.tokens) - 1 for row in rows]),
            positions=np.stack([_pad(row.positions[:, :-1].T, prefix, 0).T for row in rows]),
            last_token=np.array([row.tokens[-1] for row in rows], np.int32),
            last_position=np.array([row.positions[0, -1] for row in rows], np.int32),
            images=ImagePatches(
                pixels=np.stack([_pad(row.images.pixels, patches, 0) for row in rows]),
                positions=np.stack([_pad(row.images.positions, patches, 0) for row in rows]),
                image_ids=np.stack([_pad(row.images.image_ids, patches, -1) for row in rows]),
                window_ids=np.stack([_pad(row.images.window_ids, patches, -1) for row in rows]),
            ),
        )

    def layout(
        self, ids: Sequence[int], pixels: Sequence[Float[np.ndarray, "_ c"]], grids: Sequence[Grid]
    ) -> Row:
        """A prompt with any number of images, from token ids with one placeholder per image.

        Raises:
          ValueError: not one placeholder per image, or nothing after the last one.
        """
        vision, image_token = self.config.vision, self.config.image_token_id
        merge = vision.spatial_merge_size
        ids = np.asarray(ids, np.int32)
        places = np.flatnonzero(ids == image_token)
        if len(places) != len(grids):
            raise ValueError(f"{len(places)} image placeholders for {len(grids)} images")
        if ids.size == 0 or ids[-1] == image_token:
            raise ValueError("no token after the image")
        repeats = np.ones(len(ids), np.int64)
        repeats[places] = [rows * columns // merge**2 for rows, columns in grids]
        tokens = np.repeat(ids, repeats)
        windows, first = [], 0
        for grid in grids:
            windows.append(first + window_ids(grid, merge=merge, window=vision.window))
            first = windows[-1].max() + 1
        return Row(
            tokens=tokens,
            positions=token_positions(tokens, grids, image_token_id=image_token, merge=merge),
            images=ImagePatches(
                pixels=np.concatenate(pixels),
                positions=np.concatenate([patch_positions(grid, merge=merge) for grid in grids]),
                image_ids=np.repeat(
                    np.arange(len(grids), dtype=np.int32), [len(part) for part in pixels]
                ),
                window_ids=np.concatenate(windows),
            ),
        )

    def _row(self, example: Example) -> Row:
        content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        try:
            pixels, grid = self._patches(example.image)
            return self.layout(ids, [pixels], [grid])
        except (ValueError, OSError) as error:
            raise UserError(
                f"Example {example.id!r} makes no prompt ({error}); it needs a readable image with "
                "sides at most 200 : 1 and a text without image placeholders: mend or remove it."
            ) from error

    def _patches(self, image: Image.Image) -> tuple[Float[np.ndarray, "s c"], Grid]:
        out = self.image_processor(images=[image.convert("RGB")], return_tensors="np")
        _, rows, columns = out["image_grid_thw"][0].tolist()
        return np.asarray(out["pixel_values"], np.float32), (rows, columns)

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


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _pad(x: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=value)


def _chat_template(folder: Path, tokenizer: Any) -> str:
    """The template a processor of transformers would use: its own file before the tokenizer's."""
    published = folder / "chat_template.json"
    if published.is_file() and not (folder / "chat_template.jinja").is_file():
        template = read_json(published).get("chat_template")
    else:
        template = tokenizer.chat_template
    if not isinstance(template, str):
        raise UserError(
            f"{folder} has no chat template; add the chat_template.jinja or chat_template.json "
            "that was published with the weights."
        )
    return template


def _check_image_processor(folder: Path, config: Qwen2_5_VLConfig, processor: Any) -> None:
    vision = config.vision
    for theirs, ours, value in (
        ("patch_size", "patch_size", vision.patch_size),
        ("merge_size", "spatial_merge_size", vision.spatial_merge_size),
        ("temporal_patch_size", "temporal_patch_size", vision.temporal_patch_size),
    ):
        found = getattr(processor, theirs, None)
        if found != value:
            raise UserError(
                f"{folder}: {theirs} is {found} in preprocessor_config.json but {ours} is {value} "
                "in config.json; use the files of one model."
            )


def _unreadable(folder: Path, name: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{folder} has no usable {name} ({reason}); add the one of the model.")
