"""What a model folder holds besides its weights, and how it goes along when a policy is written.

The source's files are the base. What runs code, what holds weights, and what lies outside of the
folder stays behind.
"""

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.models.hf.weight_files import lies_within
from balcap_jax.models.json_files import read_json

# What tokenizers, processors and generation read.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
TEMPLATES = "additional_chat_templates"
# What people read; together with COMPANIONS and TEMPLATES this is what is fetched of the hub.
PAPERS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*", "README*")
# Other files of a folder that are kept, by their endings.
_KEPT = (
    *(".json", ".txt", ".md", ".jinja", ".model", ".tiktoken", ".vocab", ".bpe", ".spm", ".rst"),
    *(".yaml", ".yml", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bib", ".cff"),
)
# Of the folder alone, or of training that wrote it.
_LEFT = (
    "config.json",
    "*.index.json",
    "adapter_config.json",
    "trainer_state.json",
    "optimizer*",
    "quantize_config.json",
)
# First bytes of scripts, ELF, Mach-O, Windows programs, zip archives (torch) and pickles.
_CODE = (b"#!", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"MZ", b"PK\x03\x04", b"\x80\x02", b"\x80\x04")


def copy_companions(source: Path, folder: Path) -> None:
    """Copies what goes along from `source` to `folder`; links become files.

    Raises:
      OSError: a file cannot be read or written.
    """
    for path in sorted(source.iterdir()):
        if path.is_file() and _goes_along(source, path):
            _copy(path, folder / path.name)
    for path in sorted((source / TEMPLATES).glob("*.jinja")):
        if path.is_file() and _goes_along(source, path):
            (folder / TEMPLATES).mkdir(exist_ok=True)
            _copy(path, folder / TEMPLATES / path.name)


def with_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """config.json for weights stored as `dtype`, wherever it names one; None: of several."""
    named = ("dtype", "torch_dtype")

    def replaced(section: Mapping[str, Any]) -> dict[str, Any]:
        inner = {
            name: replaced(value) if isinstance(value, Mapping) else value
            for name, value in section.items()
            if name not in named
        }
        says = dtype is not None and any(name in section for name in named)
        return inner | {"dtype": dtype} if says else inner

    return replaced({**config, "dtype": None})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as Hugging Face's files are written."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _goes_along(source: Path, path: Path) -> bool:
    name = path.name
    if name.startswith(".") or any(fnmatch(name, left) for left in _LEFT):
        return False
    papers = any(fnmatch(name.upper(), pattern) for pattern in PAPERS)
    # A paper without an ending, "LICENSE" or "LICENSE-2.0", but no "README.py".
    plain = papers and not any(sign.isalpha() for sign in path.suffix)
    if path.suffix.lower() not in _KEPT and not plain:
        return False
    if not lies_within(source, str(path.relative_to(source))):
        return False
    with path.open("rb") as file:
        return not file.read(8).startswith(_CODE)


def _copy(path: Path, out: Path) -> None:
    """The bytes, but for the names of Python files of the source, which are not copied."""
    if path.suffix == ".json" and path.name not in ("tokenizer.json", "vocab.json"):
        try:
            content = read_json(path)
        except UserError:  # no object: nothing that names files
            content = {}
        clean = _without_code(content)
        if clean != content:
            write_json(out, clean)
            return
    shutil.copyfile(path, out)


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_code(v) for k, v in value.items() if k != "auto_map"}
    return [_without_code(item) for item in value] if isinstance(value, list) else value
