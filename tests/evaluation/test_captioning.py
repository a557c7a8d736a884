"""Captions of a benchmark's images: made once, whatever stops the process."""

import json
import shutil
from pathlib import Path

import pytest
from benchmark_world import make_world
from hub_server import HubServer

from balcap_jax.cli.main import main
from balcap_jax.config.evaluation import DCScoreConfig
from balcap_jax.errors import UserError
from balcap_jax.evaluation import captioning
from balcap_jax.evaluation.captioning import MADE, Wanted, make_captions
from balcap_jax.models.hf.folders import policy_folder


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path / "w", 5)


def wanted(world) -> list[Wanted]:
    return [Wanted(name, world.images / name) for name in world.names]


@pytest.fixture
def sampled(monkeypatch):
    """The places that a fake sampler was asked for; it stops after `sampled.stop` of them."""

    class Sampler(list):
        stop = None

        def __call__(self, config, images, missing, source):
            for count, place in enumerate(missing):
                if count == self.stop:
                    raise KeyboardInterrupt
                self.append(place)
                yield place, f"Caption of {images[place].name}.", place < 3

    sampler = Sampler()
    monkeypatch.setattr(captioning, "_sampled", sampler)
    return sampler


def test_captions_are_made_once(world, sampled, tmp_path):
    config, out = DCScoreConfig(model="base"), tmp_path / "out"
    sampled.stop = 2
    with pytest.raises(KeyboardInterrupt):
        make_captions(config, wanted(world), out)
    # Killed within a row.
    with (out / MADE).open("a") as file:
        file.write('{"id": "test_00002.jpg", "capt')
    sampled.stop = None
    found = make_captions(config, wanted(world), out)
    assert sampled == [0, 1, 2, 3, 4]  # each once
    assert list(found) == world.names
    assert found["test_00003.jpg"] == "Caption of test_00003.jpg."
    assert len((out / MADE).read_text().splitlines()) == 5
    assert make_captions(config, wanted(world), out) == found
    assert len(sampled) == 5
    assert captioning.cut_captions(config, out) == {"cut": 2}  # by both starts


def test_captions_of_other_settings_are_not_mixed(world, sampled, tmp_path):
    out = tmp_path / "out"
    make_captions(DCScoreConfig(model="base"), wanted(world), out)
    before = (out / MADE).read_bytes()
    for other, names in (
        ({"model": "base", "prompt": "Tell."}, "other prompt;"),
        ({"model": "base", "seed": 1, "temperature": 1.0}, "other temperature, seed;"),
    ):
        with pytest.raises(UserError, match=names):
            make_captions(DCScoreConfig(**other), wanted(world), out)
    with pytest.raises(UserError, match="other images;"):
        make_captions(DCScoreConfig(model="base"), wanted(world)[1:], out)
    assert (out / MADE).read_bytes() == before
    # How many at once changes nothing.
    make_captions(DCScoreConfig(model="base", batch_size=2), wanted(world), out)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that has the package's policy as `tiny/captioner`."""
    repository = shutil.copytree(policy_folder("base"), tmp_path / "repository")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # of retries
    with HubServer({"tiny/captioner": repository}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_a_hub_branch_that_moved_is_told(world, sampled, hub, tmp_path):
    config, out = DCScoreConfig(model="tiny/captioner"), tmp_path / "out"
    sampled.stop = 2
    with pytest.raises(KeyboardInterrupt):
        make_captions(config, wanted(world), out)
    told = json.loads((out / captioning.SETTINGS).read_text())
    assert told["commit"] == hub.commit("tiny/captioner")
    sampled.stop = None
    (tmp_path / "repository" / "config.json").write_bytes(
        (tmp_path / "repository" / "config.json").read_bytes() + b"\n"
    )
    with pytest.raises(UserError, match="captions that were made with other commit; give"):
        make_captions(config, wanted(world), out)
    # As long as it has the old one, the same command goes on, and needs no hub when all is there.
    (tmp_path / "repository" / "config.json").write_bytes(
        (tmp_path / "repository" / "config.json").read_bytes()[:-1]
    )
    assert list(make_captions(config, wanted(world), out)) == world.names
    hub.close()
    assert list(make_captions(config, wanted(world), out)) == world.names
    assert sampled == [0, 1, 2, 3, 4]


@pytest.mark.slow  # the policy of the package, compiled
def test_a_hub_name_and_its_folder_give_the_same_captions(world, hub, tmp_path):
    found = []
    for model in ("base", "tiny/captioner"):
        out = tmp_path / Path(model).name
        arguments = ["eval", "bcapscore", "--model", model, "--out", out, "--max-new-tokens", "6",
                     "--data", world.folder / "photos.jsonl"]  # fmt: skip
        assert main(list(map(str, arguments))) == 0
        found.append([json.loads(line) for line in (out / "bcapscore" / MADE).open()])
        told = json.loads((out / "bcapscore" / "result.json").read_text())
        assert told["model"] == Path(model).name
        assert told["counts"]["cut"] == sum(row["cut"] for row in found[-1])
    assert found[0] == found[1]
    assert all(row["caption"].strip() for row in found[0])
    assert hub.fetched["model.safetensors"] == 1


@pytest.mark.slow  # the policy of the package, compiled
def test_captions_by_the_sampler_do_not_depend_on_where_it_stopped(world, tmp_path):
    given = {"model": "base", "max_new_tokens": 12, "temperature": 0.7, "batch_size": 2}
    config = DCScoreConfig(**given)
    whole = make_captions(config, wanted(world), tmp_path / "a")
    assert all(text.strip() for text in whole.values())
    lines = (tmp_path / "a" / MADE).read_text().splitlines(keepends=True)
    part = tmp_path / "b"
    part.mkdir()
    for name in (captioning.SETTINGS,):
        (part / name).write_bytes((tmp_path / "a" / name).read_bytes())
    (part / MADE).write_text("".join(lines[:2]))
    assert make_captions(config, wanted(world), part) == whole
    assert [json.loads(line)["id"] for line in (part / MADE).open()] == world.names


@pytest.mark.slow  # the policy of the package, compiled for two sizes of prompts
def test_related_images_have_one_caption(world, tmp_path):
    files = [world.images / name for name in world.names]
    config = DCScoreConfig(model="base", max_new_tokens=8)
    one, two = Wanted("a", files[0]), Wanted("a", files[0], more=(files[1],))
    captions = [make_captions(config, [w], tmp_path / str(len(w.more))) for w in (one, two)]
    assert all(found["a"].strip() for found in captions)


def test_related_images_are_all_shown(world):
    files = [world.images / name for name in world.names]
    pixels = captioning.Pixels()
    example = captioning._example(DCScoreConfig(), Wanted("a", files[0], more=(files[1],)), pixels)
    assert [image.size for image in example.all_images] == [(48, 40), (49, 40)]
    (message,) = example.messages
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image", "image", "text"]
    assert example.prompt == "These are 2 related images. Describe this image in detail."
    assert captioning._example(DCScoreConfig(), Wanted("a", files[0]), pixels).messages == ()


@pytest.mark.parametrize("which", ["best", "7"])
def test_a_checkpoint_of_a_run_is_captioned(which, world, tmp_path, monkeypatch):
    from balcap_jax.training import saved_policy as module

    def opened(run, checkpoint):
        raise UserError(f"{run} {checkpoint}")

    monkeypatch.setattr(module, "saved_policy", opened)
    with pytest.raises(UserError, match=f"^runs/a {which}$"):
        make_captions(DCScoreConfig(model="runs/a", checkpoint=which), wanted(world), tmp_path)


def test_a_checkpoint_that_no_run_has(world, tmp_path):
    (tmp_path / "run").mkdir()
    for model in ("base", str(tmp_path / "run")):
        config = DCScoreConfig(model=model, checkpoint="best")
        with pytest.raises(UserError) as error:
            make_captions(config, wanted(world), tmp_path / "out")
        assert "\n" not in str(error.value)


def test_no_captions_are_named():
    with pytest.raises(UserError, match="name no captions to evaluate; give a policy with --model"):
        captioning.captions_of(DCScoreConfig(), [], Path("out"), data=Path("facts"))
