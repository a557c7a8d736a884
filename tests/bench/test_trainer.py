"""`balcap bench trainer`: both sides make the same steps, and what is reported of them."""

import json

import pytest
import tiny_llava

from balcap_jax.bench import free_rewards, trainer
from balcap_jax.bench.trainer import Sizes, lines, work_of
from balcap_jax.cli import main as cli
from balcap_jax.data.scene_source import export
from balcap_jax.errors import UserError

TINY = ["--images", "2", "--captions", "2", "--tokens", "4", "--rounds", "2"]


@pytest.mark.torch
@pytest.mark.slow  # TRL takes long to import
def test_steps_beside_those_of_trl(capsys, monkeypatch):
    pytest.importorskip("trl", reason="the test extra has trl")
    calls = {"letters": [], "brevity": []}
    for name in calls:
        reward = getattr(free_rewards, name)

        def counting(completions, _name=name, _reward=reward, **columns):
            calls[_name].append(len(completions))
            return _reward(completions, **columns)

        counting.__name__ = name
        monkeypatch.setattr(free_rewards, name, counting)
    monkeypatch.setattr(trainer, "_memory_of", lambda side, sizes: 10**9)
    assert cli.main(["bench", "trainer", "--against", "trl", *TINY, "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert calls == {"letters": [4] * 6, "brevity": [4] * 6}  # three steps by each of two sides
    assert report["aggregation"] == "normalize_then_sum"
    for side in report["sides"].values():
        assert side["first"] > 0
        assert len(side["rounds"]) == 2
        assert side["peak_bytes"] == 10**9
    medians = {name: side["median"] for name, side in report["sides"].items()}
    assert report["ratio"] == pytest.approx(medians["trl"] / medians["balcap"])
    cpu = {name: side["cpu_median"] for name, side in report["sides"].items()}
    assert report["cpu_ratio"] == pytest.approx(cpu["trl"] / cpu["balcap"])
    assert {"trl", "torch", "transformers", "jax"} < set(report["versions"])
    assert report["vllm"].startswith("not run: it needs vllm")


def test_both_sides_get_the_same_photos(tmp_path):
    work = work_of(Sizes(images=2, captions=2, tokens=4))
    assert len(work.photos) == 2 * 2 + 1
    assert work.rewards == ("letters", "brevity")
    data = export(tmp_path / "data", split="train", count=4)
    work = work_of(Sizes(images=3, data=str(data)))
    assert len(work.photos) == 3 + 1  # all there are, one of them held out
    with pytest.raises(UserError, match="has 3 images to train on, fewer than --images 4"):
        work_of(Sizes(images=4, data=str(data)))


def test_rewards_differ_within_a_group_and_read_what_trl_gives():
    texts = ["a cat", "a black cat on a mat"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert free_rewards.brevity(texts) == [1 / 3, 1 / 7]
    for reward in (free_rewards.letters, free_rewards.brevity):
        assert reward(texts) == reward(messages)
        assert reward(texts)[0] != reward(texts)[1]


def test_steps_that_compile_are_told_apart():
    cpu = [10.0, 1.5, 9.0, 2.5, 7.5]
    side = trainer._side([9.0, 1.0, 5.0, 2.0, 3.0], [True, False, True, False, False], cpu=cpu)
    assert (side["median"], side["compiled_rounds"], side["compile"]) == (2.0, 1, 7.0)
    assert side["cpu_median"] == 2.5
    assert trainer._side([9.0, 4.0, 6.0], cpu=cpu)["median"] == 5.0
    assert trainer._side([9.0, 4.0], [True, True], cpu=cpu)["median"] == 4.0


def test_a_side_that_vllm_fails_costs_nothing_else(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(trainer, "has_vllm", lambda: True)
    monkeypatch.setattr(trainer, "in_turns", fails)
    told = trainer._with_vllm(Sizes(images=1), lambda line: None)
    assert told == "failed: RuntimeError: no such kernel"
    one = trainer._side([3.0, 1.0], cpu=[3.0, 2.0])
    report = {
        **vars(Sizes()), "aggregation": "normalize_then_sum", "sides": {"trl": one}, "ratio": 4.5,
        "cpu_ratio": 3.5,
        "vllm": told, "versions": {"jax": "1"},
    }  # fmt: skip
    printed = lines(report)
    assert "TRL takes 4.50 times our step, 3.50 times its seconds of processors." in printed
    assert "1.000 s a step (1.000 ... 1.000), 2.000 s of processors, first 3.0 s" in printed[1]
    assert "TRL with vLLM: failed: RuntimeError: no such kernel." in printed
    measured = lines(report | {"vllm": {"sides": {"trl": one}, "ratio": 2.0}})
    assert "TRL with vLLM takes 2.00 times our step." in measured


def test_mistakes_are_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("balcap_jax.bench.step_hf.find_spec", lambda name: name != "trl" or None)
    assert cli.main(["bench", "trainer", *TINY]) == 2
    assert "--against trl runs on torch, and trl is not installed" in capsys.readouterr().err
    assert cli.main(["bench", "trainer", "--captions", "1"]) == 2
    assert "captions=1 must be at least 2" in capsys.readouterr().err
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text(json.dumps(tiny_llava.CONFIG.to_hf()))
    with pytest.raises(UserError, match="is no Qwen2.5-VL, which alone TRL's side is set up for"):
        work_of(Sizes(model=str(tmp_path / "llava")))
    with pytest.raises(UserError, match="leave memory out with --no-memory"):
        trainer._memory_of("balcap", Sizes(model=str(tmp_path / "nowhere")))


@pytest.mark.slow  # compiles the packaged policy's step
def test_our_side_says_its_memory(capsys):
    sizes = Sizes(images=1, captions=2, tokens=4)
    trainer.measure("balcap", json.dumps(vars(sizes)))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["peak_bytes"] > 10_000_000
