"""Generated scenes as examples, and as files that `--data.path` reads."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from balcap_jax.config.sections import PROMPT
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.runs.folder import disk_errors
from balcap_jax.scenes.captions import reference_caption
from balcap_jax.scenes.world import Split, make_scene, render
from balcap_jax.storage.local import send_folder
from balcap_jax.storage.paths import is_remote

_LIST = "scenes.jsonl"


class SceneSource:
    """Scenes of one split as examples; random access, drawn when asked for."""

    def __init__(self, split: Split, size: int, *, seed: int = 0, clusters: int | None = None):
        """`size` examples of `split`; the same (seed, split, index) is the same example anywhere.

        `clusters` fixes their number, for easier scenes; those of one cluster may have a reference
        below 30 words.
        """
        self.split, self.size, self.seed, self.clusters = split, size, seed, clusters

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.size:
            raise IndexError(index)
        scene = make_scene(self.seed, self.split, index, clusters=self.clusters)
        return Example(
            id=f"{self.split}-{self.seed}-{index:06d}",
            image=render(scene),
            prompt=PROMPT,
            reference=reference_caption(scene),
            scene=scene,
        )


def _caption(example: Example) -> dict[str, Any]:
    return {"caption": example.reference, "prompt": example.prompt}


def export(
    folder: Path,
    *,
    split: Split,
    count: int,
    seed: int = 0,
    clusters: int | None = None,
    told: Callable[[Example], dict[str, Any]] | None = None,
) -> Path:
    """Writes `count` scenes as PNG files and a `scenes.jsonl` that `--data.path` reads.

    Args:
      clusters: see `SceneSource`.
      told: what a row tells of its scene; default: its caption and the prompt.

    Raises:
      UserError: `folder` is a file, cannot be made, or holds a scenes.jsonl already.
    """
    target = folder / _LIST
    if target.exists():
        raise UserError(f"{target} exists and is not overwritten; choose another folder.")
    if is_remote(folder):  # written here, then sent, the list when all it names is there
        with tempfile.TemporaryDirectory(prefix="balcap-") as here:
            options: dict[str, Any] = {"seed": seed, "clusters": clusters, "told": told}
            export(Path(here), split=split, count=count, **options)
            with disk_errors(folder):
                send_folder(Path(here), folder, last=_LIST)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise UserError(
            f"The folder {folder} cannot be made ({reason}); choose another folder."
        ) from error
    rows, source = [], SceneSource(split, count, seed=seed, clusters=clusters)
    for example in (source[i] for i in range(count)):
        name = f"{example.id}.png"
        example.image.save(folder / name)
        assert example.scene is not None
        rows.append(
            {
                "id": example.id,
                "image": name,
                **(_caption if told is None else told)(example),
                "scene": example.scene.to_json(),
            }
        )
    beside = target.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    beside.rename(target)
    return target
