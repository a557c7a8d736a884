"""Mutated model folders: each loads, or is refused in one sentence, in time.

300 mutations of each file of two folders, the first 100 of them in CI, the same ones whenever it
runs. What a mutation does not
touch is not read again (weights are not loaded for a changed tokenizer), and one process for trials
serves all.
"""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_hf
import tiny_llava
from PIL import Image
from safetensors.numpy import load_file, save_file

import balcap_jax
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.prompts.trials import trials
from balcap_jax.errors import UserError
from balcap_jax.models.families import load_config
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained

pytestmark = pytest.mark.slow

FEW, MANY = 100, 300  # mutations of each file of each folder
SECONDS = 60.0  # for one load, a trial that is cut off among them
BASE = Path(balcap_jax.__file__).parent / "assets" / "base"
EXTREMES = (0, -1, 1, 2.5, 1e308, -1e308, 2**31, 2**63, 2**64, 10**30, 1e-320, 999999, float("nan"),
            float("inf"))  # fmt: skip
TEXTS = ("", "false", "\ud83d", "\x00", "é" * 400, "../../etc/passwd", "{{", "{% for %}", "None",
         "LlamaTokenizer", "(a+)+$", "__class__")  # fmt: skip
TEMPLATES = (
    "{% for i in range(10**12) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**11 }}",
    "{{ raise_exception('no') }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include 'x' %}",
    "{{ messages[99].content }}",
    "{{ 1 / 0 }}",
    "no template",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
)


# ---- mutations


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats, other encodings."""
    how, at = rng.randrange(8), rng.randrange(len(data) + 1)
    if how == 0:
        return data[:at]
    if how == 1:
        return data[at:]
    if how == 2:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if how == 3:
        return data[:at] + b"\xff\xfe\xed\xa0\x80" + data[at:]
    if how == 4:
        return data.decode("utf-8", "replace").encode("utf-16")
    if how == 5:
        return rng.choice((b"", b"null", b"[]", b"{}", b"0", b"\x00" * 64, b"\xef\xbb\xbf" + data))
    if how == 6:
        end = min(len(data), at + rng.randrange(1, 40))
        return data[:at] + data[end:]
    flipped = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Another value, none, two, or a deep one, somewhere in the tree."""
    content = json.loads(data)
    parent, key = spot(content, rng)
    how = rng.randrange(9)
    if how == 0:
        del parent[key]
    elif how == 1:
        parent[key] = rng.choice(EXTREMES)
    elif how == 2:
        parent[key] = rng.choice(TEXTS)
    elif how == 3:
        parent[key] = rng.choice((None, True, False, [], {}, [[]], [None], {"a": 1}))
    elif how == 4:
        parent[key] = [parent[key]]
    elif how == 5:
        parent[key] = str(parent[key])
    elif how == 6:
        other, name = spot(content, rng)
        parent[key] = json.loads(json.dumps(other[name]))
    elif how == 7:
        deep = rng.choice((100, 5000, 100_000))
        text = json.dumps(parent[key])
        parent[key] = "@DEEP@"
        nested = ("[" * deep + text + "]" * deep) if rng.random() < 0.5 else (
            '{"a":' * deep + text + "}" * deep)  # fmt: skip
        return json.dumps(content).replace('"@DEEP@"', nested).encode()
    elif isinstance(parent, dict):
        parent[key + "x"] = parent.pop(key)
    else:
        parent.append(parent[key])
    return json.dumps(content).encode()


def spot(content, rng: random.Random):
    """A place in the tree, the upper levels as often as the lower."""
    parent = content
    while True:
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        inner = parent[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            return parent, key
        parent = inner


def mutate_template(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return rng.choice(TEMPLATES).encode()
    if rng.random() < 0.5:
        return mutate_bytes(data, rng)
    words = data.decode().split(" ")
    at, other = rng.randrange(len(words)), rng.randrange(len(words))
    words[at] = rng.choice((words[other], "", "%}", "{%", "messages", "9**9", "none", "'"))
    return " ".join(words).encode()


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """The length and the JSON before the tensors."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2:
        size = rng.choice((0, 1, length - 1, length + 1, 2**40, 2**64 - 1, rng.randrange(length)))
        return size.to_bytes(8, "little") + data[8:]
    change = mutate_json if rng.random() < 0.7 else mutate_bytes
    header = change(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def mutate_file(data: bytes, rng: random.Random) -> bytes:
    return (mutate_json if rng.random() < 0.75 else mutate_bytes)(data, rng)


# ---- folders and what reads them


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The two, with weights as shards and with a tokenizer_config.json and the like."""
    made = tmp_path_factory.mktemp("whole")
    shutil.copytree(BASE, made / "base")
    tiny_llava.write_processor(made / "llava")
    save_pretrained(made / "llava", *tiny_llava.policy())
    # Small weights beside, for what is done hundreds of times with them.
    tiny_hf.write_processor(made / "qwen")
    save_pretrained(made / "qwen", *tiny.policy())
    return {path.name: path for path in made.iterdir()}


def read_processor(folder: Path) -> None:
    processor = Processor.load(folder)
    processor.prompts([Example("a", Image.new("RGB", (40, 30)), "Describe the image.", "")])


def read_config(folder: Path) -> None:
    read_processor(folder)
    load_config(folder)


def read_weights(folder: Path) -> None:
    load_pretrained(folder)


FILES: dict[str, tuple[tuple[str, str], Callable, Callable]] = {
    "tokenizer.json": (("base", "llava"), mutate_file, read_processor),
    "tokenizer_config.json": (("base", "llava"), mutate_file, read_processor),
    "chat_template.jinja": (("base", "llava"), mutate_template, read_processor),
    "preprocessor_config.json": (("base", "llava"), mutate_file, read_processor),
    "config.json": (("base", "llava"), mutate_file, read_config),
    "generation_config.json": (("base", "llava"), mutate_file, read_config),
    "model.safetensors.index.json": (("qwen", "llava"), mutate_file, read_weights),
    "model.safetensors": (("qwen", "llava"), mutate_header, read_weights),
}


def shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def outcome(read: Callable, folder: Path) -> str:
    """ "loaded" or "refused"; anything else says what went wrong."""
    started = time.monotonic()
    try:
        read(folder)
        result = "loaded"
    except UserError as error:
        sentence = str(error)
        whole = sentence.endswith(".") and sentence.isprintable() and len(sentence) < 1200
        result = "refused" if whole else f"no sentence: {sentence[:300]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        result = f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.monotonic() - started
    return result if seconds < SECONDS else f"took {seconds:.0f} s"


@pytest.mark.parametrize("mutations", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", FILES)
def test_mutations_load_or_are_one_sentence(name, mutations, folders, tmp_path):
    kinds, mutate, read = FILES[name]
    wrong, counts = [], {"loaded": 0, "refused": 0}
    for kind in kinds:
        folder = shutil.copytree(folders[kind], tmp_path / kind)
        if name.endswith(".index.json"):
            shard(folder)
        whole = (folder / name).read_bytes()
        with trials() as worker:
            worker.seconds = SECONDS
            assert outcome(read, folder) == "loaded"
            worker.seconds = 1.0
            for i in range(mutations):
                (folder / name).write_bytes(mutate(whole, random.Random(f"{kind}/{name}/{i}")))
                result = outcome(read, folder)
                if result in counts:
                    counts[result] += 1
                else:
                    wrong.append(f"{kind}/{name}/{i}: {result}")
    assert not wrong, "\n".join(wrong)
    assert counts["refused"] > mutations / 2, counts
