"""Tokenizer, image processor and chat template of a model folder, as transformers chooses them.

Whatever the files hold: no code of the folder runs, nobody is asked anything, and what goes wrong
is one sentence.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.models.hf.companions import COMPANIONS
from balcap_jax.models.json_files import read_json, reason_of, shown

# Of the folder alone: no file of it is run, no other one is fetched.
_OPTIONS = {"local_files_only": True, "trust_remote_code": False}
# An image is brought to this many pixels at most, and one side of it to this many.
_MOST_PIXELS, _MOST_SIDE = 1 << 24, 1 << 12
_FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_pad", "do_convert_rgb")


def check_files(folder: Path) -> None:
    """Raises a UserError where a JSON file that is read of the folder is no JSON object."""
    for name in COMPANIONS:
        if name.endswith(".json") and (folder / name).is_file():
            read_json(folder / name)
    processor = folder / "processor_config.json"
    audio = processor.is_file() and "audio_tokenizer" in read_json(processor)
    if audio or (folder / "audio_tokenizer_config.json").is_file():
        raise UserError(
            f"{folder} names an audio tokenizer, which is a model of its own and not loaded; give "
            "a folder of a model of images and text."
        )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers takes.

    Raises:
      UserError: there is none, or it cannot be used.
    """
    with one_sentence(folder, "tokenizer.json"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, **_OPTIONS)


def load_image_processor(folder: Path) -> Any:
    """The image processor that transformers takes, of processor_config.json or of
    preprocessor_config.json.

    Raises:
      UserError: there is none, or its settings cannot be.
    """
    with one_sentence(folder, "preprocessor_config.json"):
        from transformers import AutoImageProcessor

        # The PIL backend is the one that works without torch.
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **_OPTIONS)
        wrong = next(_wrong_settings(processor), None)
    if wrong is not None:
        raise UserError(
            f"{folder} has no usable preprocessor_config.json ({wrong}); add the one of the model."
        )
    return processor


def choose_template(folder: Path, tokenizer: Any) -> tuple[str, str]:
    """The template that a processor of transformers would use, else the tokenizer's; and the name
    of its file.

    Raises:
      UserError: there is none, or several of which none is the default.
    """
    with one_sentence(folder, "chat template"):
        from transformers.processing_utils import ProcessorMixin

        chosen = ProcessorMixin.get_processor_dict(folder, local_files_only=True)[0]
        template, name = chosen.get("chat_template"), _template_file(folder)
        if template is None:  # a tokenizer reads chat_template.jinja too, if none of a processor
            own = (folder / "chat_template.jinja").is_file()
            name = "chat_template.jinja" if own else "tokenizer_config.json"
            template = tokenizer.chat_template
        if isinstance(template, list):  # as tokenizer_config.json has several
            template = {part["name"]: part["template"] for part in template}
        if isinstance(template, dict):
            template = template.get("default")
    if template is None:
        raise UserError(
            f"{folder} has no chat template; add the chat_template.jinja or chat_template.json "
            "that was published with the weights."
        )
    if not isinstance(template, str) or not template.strip():
        raise UserError(
            f"The chat template in {folder / name} is {shown(template)}, which is no template; "
            "take the one that was published with the weights."
        )
    return template, name


@contextmanager
def one_sentence(folder: Path, name: str) -> Iterator[None]:
    """Turns whatever transformers raises about a file into a UserError."""
    # transformers notes on import that it found no torch; none is needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with as_user_error(
        lambda reason: f"{folder} has no usable {name} ({reason}); add the one of the model."
    ):
        yield


@contextmanager
def as_user_error(sentence: Any) -> Iterator[None]:
    """Turns whatever is raised into `sentence(reason)`: files of a folder may hold anything, and
    libraries raise anything about it.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust are no Exception
        reason = reason_of(error)
        if "trust_remote_code" in str(error):
            reason = "it asks to run Python files of the folder, which is never done"
        raise UserError(sentence(reason)) from error


def _template_file(folder: Path) -> str:
    """Which file of a processor its template is in, by the order of transformers."""
    processor = folder / "processor_config.json"
    if processor.is_file() and read_json(processor).get("chat_template") is not None:
        return processor.name
    legacy = folder / "chat_template.json"
    return legacy.name if legacy.is_file() else "chat_template.jinja"


def _wrong_settings(processor: Any) -> Iterator[str]:
    """What the image processor would compute nonsense with, or for hours."""
    for name in _FLAGS:
        value = getattr(processor, name, None)
        if value is not None and not isinstance(value, bool):
            yield f"{name} is {shown(value)} but must be true or false"
    for name, low in (("image_mean", None), ("image_std", 0.0), ("rescale_factor", 0.0)):
        value = getattr(processor, name, None)
        numbers = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(_is_number(number, low) for number in numbers):
            least = "" if low is None else " above 0"
            yield f"{name} is {shown(value)} but must be numbers{least}"
        if isinstance(value, list | tuple) and len(value) != 3:
            yield f"{name} has {len(value)} numbers but must have one for red, green and blue"
    resample = getattr(processor, "resample", None)
    if resample is not None and (isinstance(resample, bool) or resample not in range(6)):
        yield f"resample is {shown(resample)} but must be from 0 to 5"
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        value = getattr(processor, name, None)
        if value is not None and not _is_size(value, 1024):
            yield f"{name} is {shown(value)} but must be a whole number from 1 to 1024"
    for name in ("size", "crop_size"):
        yield from _wrong_size(processor, name)


def _wrong_size(processor: Any, name: str) -> Iterator[str]:
    size = getattr(processor, name, None)
    # Qwen's processor has numbers of pixels there, and the largest may be anything.
    area = hasattr(processor, "merge_size")
    try:
        entries = dict(size or {})  # pairs of what is given, of a class of transformers
    except (TypeError, ValueError):
        entries = {"value": size}
    for side, value in entries.items():
        most = (1 << 40 if side == "longest_edge" else _MOST_PIXELS) if area else _MOST_SIDE
        if value is not None and not _is_size(value, most):
            yield f"{name}.{side} is {shown(value)} but must be a whole number from 1 to {most}"
    least, largest = entries.get("shortest_edge"), entries.get("longest_edge")
    if area and least is not None and largest is not None and least > largest:
        yield f"{name}.shortest_edge is {least} but must not be above longest_edge {largest}"


def _is_size(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_number(value: Any, low: float | None) -> bool:
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e6:
        return False
    return low is None or value > low
