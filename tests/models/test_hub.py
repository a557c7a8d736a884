"""A policy by its name on the hub: only what is needed, never half of it, one sentence if not."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hub_server import HubServer
from safetensors.numpy import load_file, save_file

import balcap_jax
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import LoraConfig, ModelConfig
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.adapters import adapted_paths, adapter_shapes
from balcap_jax.models.decoder.lora import Lora, merge_adapters, take_adapters
from balcap_jax.models.hf.adapters import save_adapter
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.hub import is_hub_name
from balcap_jax.models.selection import overlaid
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.training.adapter_run import base_of
from balcap_jax.training.opening import open_policy

NAME = "tiny/captioner"
BASE = Path(balcap_jax.__file__).parent / "assets" / "base"


@pytest.fixture
def repository(tmp_path):
    """The package's policy among what else a repository holds."""
    folder = shutil.copytree(BASE, tmp_path / "repository")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.gguf", "README.md"):
        (folder / name).write_bytes(b"not wanted")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a network; no token of this machine's user, no waiting between tries."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    return tmp_path / "cache"


@pytest.fixture
def hub(repository, cache, monkeypatch):
    with HubServer({NAME: repository}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refusal(name=NAME, **options):
    with pytest.raises(UserError) as error:
        policy_folder(name, **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def shard(folder):
    """The weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# ---- names


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "a/b", "llava-hf/llava-1.5-7b-hf"])
def test_names_of_repositories(name):
    assert is_hub_name(name)


@pytest.mark.parametrize(
    "name",
    ["captioner", "/a/b", "./a", "../a", "a/b/c", "a/", "a//b", "~/a", "a/b--c", "a/b.git", "a/b c",
     "a/b..c", "a/b\n", "a/" + 95 * "b"],
)  # fmt: skip
def test_what_is_no_name_of_a_repository_never_asks_the_hub(name, hub):
    assert not is_hub_name(name)
    assert "is not a folder; give 'base'" in refusal(name)
    assert not hub.tokens


def test_a_path_object_is_never_a_repository(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is not a folder" in refusal(Path(NAME))
    assert not hub.tokens


def test_an_existing_folder_wins(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert policy_folder(NAME) == Path(NAME)
    assert not hub.tokens
    assert "revision 'main' has no effect on the local folder" in refusal(revision="main")
    assert "revision 'v1' has no effect" in refusal("base", revision="v1")


# ---- fetching


def test_only_what_a_policy_needs_is_fetched_and_once(hub, monkeypatch):
    folder = policy_folder(NAME)
    # The weights and what goes along when the policy is written again, its licence too.
    assert names(folder) == names(BASE) | {"README.md"}
    assert set(hub.fetched.values()) == {1}
    for name in names(BASE):
        assert (folder / name).read_bytes() == (BASE / name).read_bytes()
    assert policy_folder(NAME, revision=hub.commit(NAME)) == folder
    assert policy_folder(NAME, revision="main") == folder
    assert set(hub.fetched.values()) == {1}
    hub.close()
    assert policy_folder(NAME) == folder  # nobody there: what the cache has
    offline(monkeypatch)
    assert policy_folder(NAME) == folder


def test_shards_are_those_of_the_index(hub, repository):
    shard(repository)
    folder = policy_folder(NAME)
    wanted = names(BASE) - {"model.safetensors"} | {"README.md"}
    assert names(folder) == wanted | {
        "a.safetensors", "b.safetensors", "model.safetensors.index.json",
    }  # fmt: skip
    policy, params = balcap_jax.load_pretrained(NAME, dtype="float32")
    _, expected = balcap_jax.load_pretrained(BASE, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_new_commit_is_another_snapshot(hub, repository):
    first, commit = policy_folder(NAME), hub.commit(NAME)
    path = repository / "generation_config.json"
    path.write_text(path.read_text() + " ")
    second = policy_folder(NAME)
    assert (first.name, second.name) == (commit, hub.commit(NAME))
    assert (second / path.name).read_text() == path.read_text()
    assert hub.fetched["model.safetensors"] == 1  # which did not change


def test_the_token_goes_along(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    policy_folder(NAME)
    assert hub.tokens == {"Bearer hf_mine"}


LOAD = """
import sys
import numpy as np
import balcap_jax
from balcap_jax.models.hf.folders import policy_folder
assert "huggingface_hub" not in sys.modules, "imported before it is needed"
from balcap_jax.data.prompts.processor import Processor
policy, params = balcap_jax.load_pretrained("tiny/captioner", dtype="float32")
processor = Processor.load(policy_folder("tiny/captioner"))
print(float(sum(np.abs(x).sum(dtype=np.float64) for x in __import__("jax").tree.leaves(params))))
print(processor.tokenizer("A red circle.")["input_ids"])
"""


@pytest.mark.long
@pytest.mark.slow
def test_fresh_processes_online_and_then_offline(hub, cache, tmp_path):
    """As users do it, by the environment: HF_ENDPOINT, the cache's place, HF_HUB_OFFLINE."""
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": hub.url}

    def load(**changes):
        return subprocess.run(
            [sys.executable, "-c", LOAD], env=environment | changes, cwd=tmp_path,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    online = load(HF_HUB_OFFLINE="0")
    assert online.returncode == 0, online.stderr
    assert "model.safetensors" in hub.fetched
    assert "Fetching" in online.stderr  # the library's own progress
    hub.close()
    again = load(HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    _, params = balcap_jax.load_pretrained(BASE, dtype="float32")
    total = sum(np.abs(leaf).sum(dtype=np.float64) for leaf in jax.tree.leaves(params))
    tokens = Processor.load(BASE).tokenizer("A red circle.")["input_ids"]
    for done in (online, again):
        printed, ids = done.stdout.splitlines()
        assert float(printed) == pytest.approx(float(total), rel=1e-12)
        assert json.loads(ids) == tokens


def test_processes_that_ask_at_once_share_one_whole_snapshot(hub, cache, tmp_path):
    code = "from balcap_jax.models.hf.hub import snapshot; print(snapshot('tiny/captioner'))"
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    printed = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        printed.append(out.strip())
    (folder,) = set(printed)
    for name in names(BASE):
        assert (Path(folder) / name).read_bytes() == (BASE / name).read_bytes()


# ---- a download that broke off


@pytest.mark.parametrize("how", ["short", "half"])
def test_a_broken_download_is_not_used(hub, monkeypatch, how):
    hub.broken["model.safetensors"] = how
    message = refusal()
    assert f"could not be fetched from {hub.url}" in message
    offline(monkeypatch)
    assert "nor whole in the cache" in refusal()
    with pytest.raises(UserError, match="nor whole in the cache"):
        balcap_jax.load_pretrained(NAME)


def test_a_broken_download_goes_on_when_the_hub_does(hub):
    hub.broken["model.safetensors"] = "short"
    refusal()
    before = hub.fetched.copy()
    hub.broken.clear()
    folder = policy_folder(NAME)
    assert (folder / "model.safetensors").read_bytes() == (BASE / "model.safetensors").read_bytes()
    assert hub.fetched - before == {"model.safetensors": 1}


def test_a_cache_without_its_listing_does_not_give_half_a_policy(hub, cache, monkeypatch):
    """As older versions of huggingface_hub left it; they returned any snapshot that was there."""
    from huggingface_hub import _tree_cache

    folder = policy_folder(NAME)
    (folder / "model.safetensors").unlink()
    for listing in cache.rglob("trees/*.json"):
        listing.unlink()
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    offline(monkeypatch)
    assert "has no model.safetensors at commit" in refusal()


def test_a_full_disk(hub, cache, monkeypatch):
    from huggingface_hub import file_download

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", full)
        message = refusal()
    assert f"The disk of the cache {cache} is full" in message
    assert "set HF_HOME" in message
    assert not list(cache.rglob("*.incomplete"))
    assert names(BASE) < names(policy_folder(NAME))


def test_a_cache_that_cannot_be_written(hub, cache):
    cache.write_text("a file where the folder should be")
    assert f"Cannot write model path 'tiny/captioner' to the cache {cache}" in refusal()


# ---- what the hub refuses


def test_no_such_repository(hub):
    message = refusal("tiny/other")
    assert f"'tiny/other' is neither a folder here nor a repository on {hub.url}" in message
    assert "HF_TOKEN" in message


def test_no_such_revision(hub):
    message = refusal(revision="v9")
    assert f"'tiny/captioner' on {hub.url} has no revision 'v9'" in message


def test_a_gated_repository(hub):
    hub.gated.add(NAME)
    message = refusal()
    assert f"accept the licence on its page {hub.url}/{NAME}" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("status", [401, 403])
def test_no_access(hub, status):
    hub.refused[NAME] = status
    message = refusal()
    assert "HF_TOKEN" in message
    assert hub.url in message


def test_a_hub_that_is_out_of_order_leaves_the_cache_usable(hub):
    hub.refused[NAME] = 500
    assert f"could not be fetched from {hub.url}" in refusal()
    del hub.refused[NAME]
    folder = policy_folder(NAME)
    hub.refused[NAME] = 500
    assert policy_folder(NAME) == folder


def test_something_that_is_no_hub(hub, repository, monkeypatch):
    monkeypatch.setattr("hub_server._Handler._info", lambda *_: ["hello"])
    monkeypatch.setattr(
        "hub_server._Handler._json", lambda self, value: self._send(200, b"<html>hello</html>")
    )
    assert "could not be fetched from" in refusal()


def test_nobody_there(hub):
    hub.close()
    message = refusal()
    assert f"could not be fetched from {hub.url}" in message
    assert "HF_ENDPOINT" in message


def test_offline_and_not_in_the_cache(hub, cache, monkeypatch):
    offline(monkeypatch)
    message = refusal()
    assert f"nor whole in the cache {cache}, and HF_HUB_OFFLINE forbids" in message
    assert not hub.tokens


def test_a_repository_without_safetensors(hub, repository):
    (repository / "model.safetensors").unlink()
    message = refusal()
    assert "has no model.safetensors at commit" in message
    assert "pickles" in message
    assert "pytorch_model.bin" not in hub.fetched


def test_a_repository_without_a_config(hub, repository):
    (repository / "config.json").unlink()
    assert "has no config.json at commit" in refusal()


def test_an_index_without_its_shard(hub, repository):
    shard(repository)
    (repository / "b.safetensors").unlink()
    assert "has no b.safetensors at commit" in refusal()


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}'])
def test_an_index_of_nothing(hub, repository, index):
    (repository / "model.safetensors").unlink()
    (repository / "model.safetensors.index.json").write_text(index)
    assert "names no files in its weight_map" in refusal()


@pytest.mark.parametrize("name", ["../b.safetensors", "/b.safetensors", "*", "*.safetensors", 1])
def test_an_index_cannot_name_what_is_no_shard(hub, repository, name):
    """As a pattern it would fetch what else is there."""
    (repository / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": name}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "a shard must be a .safetensors file in its folder" in refusal()
    assert "pytorch_model.bin" not in hub.fetched


def test_the_single_file_is_fetched_where_shards_are_too(hub, repository):
    """The choice of transformers."""
    whole = (repository / "model.safetensors").read_bytes()
    shard(repository)
    (repository / "model.safetensors").write_bytes(whole)
    folder = policy_folder(NAME)
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.glob("[ab].safetensors"))


@pytest.mark.parametrize("name", ["adapter_config.json", "quantize_config.json"])
def test_what_a_repository_says_of_its_weights_is_seen(hub, repository, name):
    (repository / name).write_text("{}")
    with pytest.raises(UserError, match=name):
        balcap_jax.load_pretrained(NAME)


# ---- adapters


ADAPTER = "someone/adapter"
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
LORA = Lora(alpha=8.0)


@pytest.fixture
def merged(hub, tmp_path):
    """What the base on the hub is with the adapter, which is put there, too."""
    policy, base = balcap_jax.load_pretrained(BASE, dtype="float32")
    policy = dataclasses.replace(policy, lora=LORA)
    shapes = adapter_shapes(policy, adapted_paths(policy, ("q_proj", "down_proj")), rank=2)
    rng = np.random.default_rng(3)
    adapters = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    folder = tmp_path / "someones"
    save_adapter(folder, policy, adapters, base=NAME)
    (folder / "README.md").write_text("An adapter.")
    (folder / "optimizer.pt").write_bytes(b"not wanted")
    hub.repositories[ADAPTER] = folder
    return merge_adapters(overlaid(base, adapters), LORA)


def assert_close_trees(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def says(hub, **entries):
    """Changes what adapter_config.json of the adapter on the hub says."""
    path = hub.repositories[ADAPTER] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def open_(mesh, **model):
    return open_policy(TrainConfig(model=ModelConfig(**model)), mesh)


def test_an_adapter_by_its_name_brings_its_base(hub, cache, merged, monkeypatch):
    """As `model.path` of a run; nothing else is fetched, all of it once, and it works offline."""
    mesh = make_mesh(devices=jax.devices()[:1])
    opened = open_(mesh, path=ADAPTER)
    assert opened.model.revision == hub.commit(ADAPTER)
    assert opened.policy.lora is None
    assert_close_trees(opened.params, merged)
    assert opened.processor.tokenizer("A red circle.")["input_ids"]
    assert names(policy_folder(ADAPTER)) == ADAPTER_FILES
    assert set(hub.fetched) == ADAPTER_FILES | names(BASE)
    assert hub.fetched.pop("README.md") == 2  # of both
    assert set(hub.fetched.values()) == {1}
    hub.close()
    offline(monkeypatch)
    tiny.assert_equal_trees(open_(mesh, path=ADAPTER).params, opened.params)


def test_a_run_starts_from_an_adapter_by_its_name(hub, merged):
    mesh = make_mesh(devices=jax.devices()[:1])
    opened = open_(mesh, path=NAME, lora=LoraConfig(start=ADAPTER))
    assert opened.policy.lora == LORA
    _, base = balcap_jax.load_pretrained(BASE, dtype="float32")
    tiny.assert_equal_trees(take_adapters(opened.params)[0], base)
    assert_close_trees(merge_adapters(opened.params, LORA), merged)
    # What such a run writes names its base as on the hub, at the commit that it was trained on.
    assert base_of(opened.model, opened.folder) == (NAME, hub.commit(NAME))


def test_the_revision_of_the_base_is_the_one_that_the_adapter_names(hub, merged):
    """Never silently another state of the base than the adapter was trained on."""
    says(hub, revision=hub.commit(NAME))
    balcap_jax.load_pretrained(ADAPTER)
    says(hub, revision="v9")
    with pytest.raises(UserError, match=f"'tiny/captioner' on {hub.url} has no revision 'v9'"):
        balcap_jax.load_pretrained(ADAPTER)


def test_offline_with_the_adapter_but_not_its_base(hub, cache, merged, monkeypatch):
    assert policy_folder(ADAPTER)
    offline(monkeypatch)
    with pytest.raises(UserError, match="'tiny/captioner' is neither a folder here nor whole in"):
        balcap_jax.load_pretrained(ADAPTER)


def test_an_adapter_whose_base_is_nowhere(hub, merged):
    says(hub, base_model_name_or_path="someone/gone")
    with pytest.raises(UserError, match="'someone/gone' is neither a folder here nor a repository"):
        balcap_jax.load_pretrained(ADAPTER)


def test_an_adapter_as_a_pickle(hub, merged):
    folder = hub.repositories[ADAPTER]
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message = refusal(ADAPTER)
    assert "has no adapter_model.safetensors at commit" in message
    assert "an adapter is adapter_config.json and safetensors (pickles" in message
    assert "adapter_model.bin" not in hub.fetched
