"""Captions of a benchmark's images by our sampler; what was made is not made again."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.config.base import to_dict
from balcap_jax.data.examples import Example
from balcap_jax.data.images import BadImageError, Pixels, open_image
from balcap_jax.errors import UserError
from balcap_jax.runs.folder import (
    RunLock,
    disk_errors,
    read_jsonl,
    to_json,
    write_json_atomic,
    write_jsonl_atomic,
)
from balcap_jax.runs.progress import training_progress
from balcap_jax.storage.paths import as_path, is_remote

_PROCESSOR = "processor"
MADE, SETTINGS = "made.jsonl", "made.settings.json"
_DEPEND = (
    "model", "revision", "checkpoint", "prompt", "max_new_tokens", "temperature", "top_p", "seed",
    "max_pixels", "min_pixels", "dtype",
)  # fmt: skip


class Wanted(NamedTuple):
    """An image to caption, or several related ones that have one caption.

    Attributes:
      image: its file or bytes.
      prompt: "" for that of the settings.
      more: files or bytes of the images after the first.
    """

    name: str
    image: Any
    prompt: str = ""
    more: tuple[Any, ...] = ()


def make_captions(config: Any, wanted: Sequence[Wanted], folder: Path) -> dict[str, str]:
    """The captions of all images, in their order; those that `folder` has are not made again.

    An image's caption depends on its place in `wanted`, the settings and the policy alone.

    Args:
      config: of a benchmark.
      folder: of its results.

    Raises:
      UserError: the policy or an image cannot be read, another process writes the folder, or what
        is there was made with other settings or of other images.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        done = _made(folder / MADE, {one.name for one in wanted})
        missing = [place for place, one in enumerate(wanted) if one.name not in done]
        source = _source_of(config) if missing else None
        _check_settings(config, wanted, folder, source)
        if missing:
            with disk_errors(folder / MADE), (folder / MADE).open("a", encoding="utf-8") as file:
                for place, caption, ended in _sampled(config, wanted, missing, source):
                    row = {"id": wanted[place].name, "caption": caption, "cut": not ended}
                    file.write(to_json(row) + "\n")
                    file.flush()
                    done[wanted[place].name] = caption
    return {one.name: done[one.name] for one in wanted}


def cut_captions(config: Any, folder: Path) -> dict[str, int]:
    """How many captions reached `max_new_tokens` and were cut there, as a count of a result; none
    where the captions are those of a file.
    """
    if config.captions is not None:
        return {}
    return {"cut": sum(bool(row.get("cut")) for row in read_jsonl(folder / MADE))}


def _source_of(config: Any) -> Path | None:
    """The folder of the policy; None for a checkpoint, which says itself what it was made of."""
    from balcap_jax.models.hf.folders import policy_folder  # noqa: PLC0415

    return None if config.checkpoint else policy_folder(config.model, revision=config.revision)


def _check_settings(
    config: Any, wanted: Sequence[Wanted], folder: Path, source: Path | None
) -> None:
    """Refuses to add to captions that were made otherwise.

    Args:
      source: of the policy, where captions are to be made.
    """
    from balcap_jax.models.hf.folders import commit_of  # noqa: PLC0415

    values = to_dict(config)
    now = {name: values[name] for name in _DEPEND} | {"images": [one.name for one in wanted]}
    now |= {"policy": _policy_files(config), _PROCESSOR: _processor(config)}
    path = folder / SETTINGS
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        then = {}
    # A branch of the hub may have moved.
    now["commit"] = commit_of(config.model, source) if source else then.get("commit")
    if not path.exists() or not (folder / MADE).exists():
        write_json_atomic(path, now)
        return
    now = json.loads(to_json(now))
    known = [name for name in now if name in then or name != _PROCESSOR]  # of older versions
    if changed := [name for name in known if then.get(name) != now[name]]:
        raise UserError(
            f"{folder / MADE} holds captions that were made with other {', '.join(changed)}; give "
            "another --out, or remove that file."
        )


def _policy_files(config: Any) -> list[list[Any]]:
    """Names, sizes and times (in a bucket generations) of the weights of a policy that is a folder:
    a retrained run is another one, and so is the best checkpoint of a run that went on.
    """
    from balcap_jax.models.hf.folders import POLICY  # noqa: PLC0415 - as in `_sampled`

    folder = as_path(config.model)
    if not folder.is_dir():
        return []
    if config.checkpoint:
        return _checkpoint(folder, config.checkpoint)
    if is_remote(folder):
        return [
            [name, info["size"], info["generation"]]
            for name, info in sorted(folder.files_below().items())
            if name.endswith(".safetensors") and name.rpartition("/")[0] in ("", POLICY)
        ]
    files = sorted(
        path
        for path in (*folder.glob("*.safetensors"), *folder.glob("policy/*.safetensors"))
        if path.is_file()
    )
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _checkpoint(run: Path, which: str) -> list[list[Any]]:
    from balcap_jax.training.checkpoint import Checkpoints  # noqa: PLC0415 - as in `_sampled`
    from balcap_jax.training.checkpoint_record import EXTRA, FOLDER  # noqa: PLC0415

    if not (run / FOLDER).is_dir():
        return []  # told where it is read
    with Checkpoints(run, read_only=True) as checkpoints:
        step = checkpoints.find(which)
    record = run / FOLDER / str(step) / EXTRA / "metadata"
    if is_remote(record):
        return [[which, step, record.info()["generation"]]]
    return [[which, step, record.stat().st_mtime_ns if record.is_file() else 0]]


def _processor(config: Any) -> str:
    """A digest of the processor of a local policy; "" of others, which their commit tells."""
    from balcap_jax.models.hf.folders import BASE, policy_folder  # noqa: PLC0415 - as in `_sampled`
    from balcap_jax.training.other_files import processor_digest  # noqa: PLC0415

    local = config.model == BASE or as_path(config.model).is_dir()
    return processor_digest(policy_folder(config.model)) if local else ""


def _made(path: Path, names: set[str]) -> dict[str, str]:
    """The captions that are there; a torn last row is cut off."""
    if not path.exists():
        return {}
    rows = read_jsonl(path)
    if not path.read_bytes().endswith(b"\n"):
        write_jsonl_atomic(path, rows)
    try:
        found = {row["id"]: row["caption"] for row in rows}
    except (KeyError, TypeError):
        raise UserError(
            f"{path} is no file of captions; remove it or give another --out."
        ) from None
    return {name: caption for name, caption in found.items() if name in names}


def _sampled(
    config: Any, wanted: Sequence[Wanted], missing: Sequence[int], source: Path | None
) -> Iterator[tuple[int, str, bool]]:
    """(place, caption, whether it came to an end) of each missing one."""
    # Here, not above: captions from files need no device.
    import jax  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from balcap_jax.data.prompts.processor import Processor  # noqa: PLC0415
    from balcap_jax.models.hf.weights import load_pretrained  # noqa: PLC0415
    from balcap_jax.parallel.sharding import batch_shards, make_mesh, replicate  # noqa: PLC0415
    from balcap_jax.rollout.rollout import Captioner  # noqa: PLC0415
    from balcap_jax.training.saved_policy import saved_policy, tell_if_older  # noqa: PLC0415

    pixels = Pixels(config.min_pixels, config.max_pixels, config.max_file_pixels)
    mesh = make_mesh()
    if source is None:
        saved = saved_policy(as_path(config.model), config.checkpoint)
        source, policy = saved.source, saved.policy
        params = jax.tree.map(lambda leaf: replicate(mesh, leaf), saved.params)
    else:
        tell_if_older(config.model)
        policy, params = load_pretrained(source, dtype=config.dtype, mesh=mesh)
    captioner = Captioner(
        policy,
        Processor.load(source).limited(min_pixels=pixels.least, max_pixels=pixels.most),
        mesh,
        group_size=1,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
    )
    key = jax.random.key(config.seed)
    shards = batch_shards(mesh)
    size = -(-min(config.batch_size, len(wanted)) // shards) * shards
    with training_progress("captions", len(wanted), done=len(wanted) - len(missing)) as advance:
        for start in range(0, len(missing), size):
            places = missing[start : start + size]
            examples = [_example(config, wanted[place], pixels) for place in places]
            rest = size - len(places)  # one shape, one compilation
            generation = captioner.generate(
                params,
                [*examples, *examples[-1:] * rest],
                key,
                images=np.array([*places, *places[-1:] * rest]),
            )
            texts, ended = captioner.texts(generation.rollout), generation.rollout.ended
            yield from (
                (place, text[0], bool(end[0]))
                for place, text, end in zip(places, texts, np.asarray(ended), strict=False)
            )
            advance(len(wanted) - len(missing) + start + len(places), "")


def _example(config: Any, one: Wanted, pixels: Pixels) -> Example:
    try:
        image, *more = (open_image(image, pixels=pixels) for image in (one.image, *one.more))
    except BadImageError as error:
        raise UserError(
            f"The image {one.name} cannot be captioned ({error}); give a readable RGB image file."
        ) from None
    prompt = one.prompt or config.prompt
    if not more:
        return Example(one.name, image, prompt, reference="")
    count = 1 + len(more)
    text = {"type": "text", "text": f"These are {count} related images. {prompt}"}
    asked = {"role": "user", "content": [*({"type": "image"} for _ in range(count)), text]}
    return Example(
        one.name, image, text["text"], reference="", messages=(asked,), more_images=tuple(more)
    )


def captions_of(
    config: Any,
    wanted: Sequence[Wanted],
    folder: Path,
    *,
    data: Path,
    passed_over: Collection[str] = (),
) -> Mapping[str, str]:
    """The captions that the settings give: those of a file, or of a policy.

    Args:
      passed_over: images of the data that are not asked about; a file may have their captions.

    Raises:
      UserError: neither is named, or see `make_captions`, `read_captions` and `matched`.
    """
    from balcap_jax.evaluation.caption_files import matched, read_captions  # noqa: PLC0415

    if config.captions is not None:
        return matched(
            read_captions(config.captions),
            [one.name for one in wanted],
            path=config.captions,
            data=data,
            allow_missing=config.allow_missing,
            passed_over=passed_over,
        )
    if not config.model:
        raise UserError(
            "model='' and captions=None name no captions to evaluate; give a policy with --model, "
            "or a file with --captions."
        )
    return make_captions(config, wanted, folder)
