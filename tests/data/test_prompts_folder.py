"""Which files of a folder a processor takes, and that nothing in them runs, hangs or crashes."""

import contextvars
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_hf
import tiny_llava
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.data.prompts import processor as processor_module
from balcap_jax.data.prompts import time_limit as time_limit_module
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.prompts.time_limit import within
from balcap_jax.data.prompts.trials import trials
from balcap_jax.errors import UserError

PLACES = (
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer_config.json as a list",
    "additional_chat_templates/default.jinja",
    "additional_chat_templates/tool_use.jinja",
)


PATIENT = 60.0  # s for a trial that ends, however slow the machine is


@pytest.fixture(scope="module", autouse=True)
def worker():
    """One for the trials of all tests: its start takes longer than most of them."""
    with trials() as worker:
        worker.seconds = PATIENT
        yield worker


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_llava.write_processor(folder / "llava")
    tiny_hf.write_processor(folder / "qwen")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A LLaVA without a chat template."""
    folder = shutil.copytree(whole / "llava", tmp_path / "llava")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=None)
    return folder


def edit(path, **entries):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({k: v for k, v in (content | entries).items() if v is not None}))


def template_of(place):
    """One that says where it stands."""
    return f"{{# {place} #}}{tiny_llava.CHAT_TEMPLATE}"


def put(folder, place):
    text = template_of(place)
    if place.endswith("list"):
        several = [{"name": "default", "template": text}, {"name": "rag", "template": "x"}]
        edit(folder / "tokenizer_config.json", chat_template=several)
    elif place.endswith(".json"):
        edit(folder / place, chat_template=text)
    else:
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(text)


def refusal(folder):
    with pytest.raises(UserError) as error:
        Processor.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the choice of transformers


@pytest.mark.torch
@pytest.mark.parametrize(
    "places",
    [*((place,) for place in PLACES), *itertools.combinations(PLACES, 2), PLACES[:4], PLACES],
    ids=" + ".join,
)
def test_the_template_is_the_one_that_transformers_takes(folder, places):
    pytest.importorskip("torch", reason="AutoProcessor of transformers wants torch")
    from transformers import AutoProcessor, AutoTokenizer

    for place in places:
        put(folder, place)
    try:
        theirs = AutoProcessor.from_pretrained(folder).chat_template
        if theirs is None:  # of no processor: then a user calls the tokenizer
            theirs = AutoTokenizer.from_pretrained(folder).get_chat_template()
        if isinstance(theirs, dict):
            theirs = theirs["default"]
    except (ValueError, KeyError):
        assert "chat template" in refusal(folder)
        return
    assert Processor.load(folder).chat_template == theirs


def test_processor_config_before_tokenizer_config(folder):
    put(folder, "tokenizer_config.json")
    assert Processor.load(folder).chat_template == template_of("tokenizer_config.json")
    put(folder, "processor_config.json")
    assert Processor.load(folder).chat_template == template_of("processor_config.json")


def test_several_templates_without_a_default(folder):
    put(folder, "additional_chat_templates/tool_use.jinja")
    assert "has no chat template" in refusal(folder)


@pytest.mark.torch
@pytest.mark.parametrize("where", ["preprocessor_config.json", "processor_config.json", "both"])
def test_the_image_processor_is_the_one_that_transformers_takes(folder, where):
    pytest.importorskip("torch", reason="AutoProcessor of transformers wants torch")
    from transformers import AutoProcessor

    put(folder, "chat_template.jinja")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    if where != "preprocessor_config.json":
        nested = settings | {"image_mean": [0.1, 0.2, 0.3]}
        edit(folder / "processor_config.json", image_processor=nested)
    if where == "processor_config.json":
        (folder / "preprocessor_config.json").unlink()
    theirs = AutoProcessor.from_pretrained(folder).image_processor
    ours = Processor.load(folder).image_processor
    assert list(ours.image_mean) == list(theirs.image_mean)
    assert (list(ours.image_mean) == [0.1, 0.2, 0.3]) == (where != "preprocessor_config.json")


@pytest.mark.torch
@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": 2}, {"eos_token_id": [2, 5]}])
@pytest.mark.parametrize("text", [None, 6, [6, 7]])
def test_stop_tokens_are_those_of_transformers(folder, generation, text):
    pytest.importorskip("torch", reason="the models of transformers want torch")
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from balcap_jax.models.families import load_config

    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = text
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    if generation is None:  # nothing but config.json: theirs is made of it
        theirs = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder))
        stop = theirs.generation_config.eos_token_id
    else:
        from transformers import GenerationConfig

        stop = GenerationConfig.from_pretrained(folder).eos_token_id
    if stop is not None:
        stop = tuple(stop) if isinstance(stop, list) else (stop,)
        assert load_config(folder).stop_tokens == stop


# ---- no code of a folder


CODE = "import pathlib\npathlib.Path({!r}).write_text('ran')\nclass Mine:\n    pass\n"


@pytest.mark.parametrize(
    "local",
    [
        pytest.param(True, id="known class"),
        pytest.param(False, id="unknown class", marks=pytest.mark.slow),
    ],
)
def test_python_files_of_a_folder_never_run_and_nobody_is_asked(folder, tmp_path, local):
    """With `y` on stdin, which transformers would read."""
    put(folder, "chat_template.jinja")
    (folder / "mine.py").write_text(CODE.format(str(tmp_path / "ran")))
    names = ("AutoTokenizer", "AutoImageProcessor", "AutoConfig", "AutoProcessor")
    entry = {name: "mine.Mine" for name in names} | {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}
    for name in ("tokenizer_config", "preprocessor_config", "processor_config", "config"):
        edit(folder / f"{name}.json", auto_map=entry)
    if not local:
        edit(folder / "tokenizer_config.json", tokenizer_class="Mine")
        edit(folder / "preprocessor_config.json", image_processor_type="Mine")
    code = (
        "import sys\n"
        "from balcap_jax.data.prompts.processor import Processor\n"
        "from balcap_jax.errors import UserError\n"
        "try:\n"
        f"    Processor.load({str(folder)!r})\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "print(len(sys.stdin.read()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="y\n" * 9, capture_output=True, text=True, timeout=120,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
    *sentence, left = done.stdout.splitlines()
    assert left == "18"  # no answer was read
    if not local:
        assert "which is never done" in sentence[0]


# ---- templates


@pytest.fixture
def fast(worker, whole):
    """Gives up a trial soon, of a worker that has begun: its start is not part of the time."""
    Processor.load(whole / "llava")
    worker.seconds = 1.5
    yield worker
    worker.seconds = PATIENT


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "end"),
        ("{% set n = namespace(a=[1]) %}{% for i in range(99) %}{% set n.a = n.a + n.a %}"
         "{% endfor %}", "The chat template"),
        ("{{ 'a' * 10 ** 11 }}", "cannot be used"),
        ("{% if messages|length > 2 %}{% for a in range(99999) %}{% for b in range(99999) %}"
         "{% endfor %}{% endfor %}{% endif %}" + tiny_llava.CHAT_TEMPLATE, "end"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "makes no prompt"),
        ("{{ raise_exception('never') }}", "(never)"),
        ("{% for %}", "makes no prompt"),
        ("{% include 'a' %}", "makes no prompt"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "makes no prompt"),
        ("{{ messages[0]['content'] + 1 }}", "makes no prompt"),
        ("plain text", "0 image placeholders for 1 images"),
        ("<image>", "no token after the image"),
        ("<image> a <image> a", "2 image placeholders for 1 images"),
        ("   ", "which is no template"),
        ("", "which is no template"),
    ],
)  # fmt: skip
def test_bad_templates_are_named_at_load_time(folder, fast, template, message):
    (folder / "chat_template.jinja").write_text(template)
    if message not in ("end", "The chat template"):
        fast.seconds = PATIENT
    sentence = refusal(folder)
    assert message in sentence
    assert str(folder / "chat_template.jinja") in sentence


@pytest.mark.parametrize("value", [7, {"a": "b"}, ["a"], [{"name": "default"}], True])
def test_templates_of_another_type(folder, value):
    edit(folder / "processor_config.json", chat_template=value)
    assert "chat template" in refusal(folder)


def test_a_template_that_knows_no_system_role_is_fine(folder):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template + tiny_llava.CHAT_TEMPLATE)
    Processor.load(folder)


def test_names_and_tags_of_transformers_are_known_in_trials(folder):
    template = (
        "{% generation %}{{ strftime_now('%Y')[:0] }}{{ ({'a': 1}|tojson)[:0] }}{% endgeneration %}"
        "{% for a in [1, 2] %}{% if a > 1 %}{% break %}{% endif %}{% endfor %}"
        "{% for a in range(2) %}{% if messages|length > 2 %}{% set b = 'a' * 10 ** 11 %}{% endif %}"
        "{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template + tiny_llava.CHAT_TEMPLATE)
    assert "takes too much memory" in refusal(folder)  # the trial got that far


# ---- tokenizers


def test_a_pattern_that_takes_for_ever_or_a_panic(folder, fast):
    put(folder, "chat_template.jinja")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = split | {"pattern": {"Regex": r"(?=((a|a)+)+\d{9}!)"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    sentence = refusal(folder)
    assert "tokenizer" in sentence


def test_a_tokenizer_of_a_larger_vocabulary(folder):
    put(folder, "chat_template.jinja")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["beyond"] = tiny_llava.CONFIG.vocab_size
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "the tokenizer has the token 48 but the vocabulary of config.json is 48" in refusal(
        folder
    )


def test_an_audio_tokenizer_is_not_loaded(folder):
    put(folder, "chat_template.jinja")
    edit(folder / "processor_config.json", audio_tokenizer={"a": "b"})
    assert "names an audio tokenizer" in refusal(folder)


def test_the_worker_goes_on_after_it_was_cut_off():
    contextvars.Context().run(_cut_off)  # with a worker of its own, which ends with the block


def _cut_off():
    conversations = [[{"role": "user", "content": "a"}]]
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with trials() as worker:
        worker.seconds = 1.5
        worker.template("x", endless, conversations, {})
        with pytest.raises(UserError, match="does not end within"):
            worker.check()
        worker.seconds = PATIENT
        worker.template("x", "a", conversations, {})
        worker.check()
        process = worker._process
        process.kill()
        worker.template("x", "a", conversations, {})
        with pytest.raises(UserError, match="ends the process"):
            worker.check()
    assert worker._process is None


# What loops for one row -------------------------------------------------------------------------

# What is tried when a folder is loaded has no such word.
LOOPS = (
    "{% if 'labyrinth' in messages[0].content[1].text %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
)


def test_a_template_that_loops_for_one_row_alone_is_cut_off(folder, monkeypatch):
    (folder / "chat_template.jinja").write_text(LOOPS + tiny_llava.CHAT_TEMPLATE)
    monkeypatch.setattr(processor_module, "TEMPLATE_SECONDS", 0.5)
    processor = Processor.load(folder)
    good = Example("good", Image.new("RGB", (16, 16)), "describe the image", "")
    bad = good._replace(id="bad", prompt="a labyrinth")
    expected = processor.row(good)

    def row(example):
        try:
            return processor.row(example).tokens.tolist()
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(row, [good, bad, good, bad, good]))
    assert found[::2] == [expected.tokens.tolist()] * 3
    for said in found[1::2]:
        assert said.startswith("Example 'bad' makes no prompt (it does not end within 0.5 s); ")
        assert "\n" not in said


def test_a_time_limit_ends_its_own_call_alone(monkeypatch):
    monkeypatch.setattr(time_limit_module, "_LOOK_SECONDS", 0.001)

    def wait(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    ended = 0
    for i in range(60):  # the limit falls about the end of the call
        try:
            within(0.01, lambda seconds=0.005 + 0.001 * (i % 20): wait(seconds))
        except TimeoutError:
            ended += 1
        wait(0.01)  # where what was raised too late would come
    assert 0 < ended < 60
    with pytest.raises(TimeoutError, match=r"within 0.01 s"):
        within(0.01, lambda: wait(30))
    with pytest.raises(KeyError):
        within(0.01, lambda: {}["a"])
    assert within(0.01, lambda: 3) == 3
    assert not time_limit_module._WATCH._ends
    assert not time_limit_module._WATCH._fired
