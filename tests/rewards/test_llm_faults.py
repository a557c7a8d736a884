"""The LLM judge against a server that misbehaves: nothing is lost, nothing becomes a zero."""

import json
import logging
import time

import pytest
from judge_server import STALL, JudgeServer, judge, outage, schedule

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.rewards.llm.answers import findings, verdict_of
from balcap_jax.rewards.llm.images import make_ready
from balcap_jax.rewards.llm.judge import LLMJudge
from balcap_jax.rewards.llm.prompts import messages
from balcap_jax.rewards.llm.questions import JOINT, UNITS

SOURCE = SceneSource("train", 64)
IMAGES = 12


def settings(server, folder, **changes) -> JudgeConfig:
    given = {
        "kind": "llm", "model": "m", "base_url": server.url, "cache": folder / "cache.sqlite",
        "timeout": 60.0, "backoff": 0.002, "retries": 12, "deadline": 60.0, "concurrency": 16,
    }  # fmt: skip
    return JudgeConfig(**(given | changes))


def batch(images: int, group: int):
    """Captions of their images: sentences of the reference, each with a number of its own."""
    examples, captions = [], []
    for i in range(images):
        sentences = SOURCE[i].reference.split(". ")
        for g in range(group):
            examples.append(SOURCE[i])
            captions.append(f"{sentences[g % len(sentences)].rstrip('.')}. There are {g} of {i}.")
    return examples, captions


def judged(asker, examples, captions):
    try:
        return asker(examples, captions)
    finally:
        asker.close()


@pytest.fixture(scope="module")
def truth():
    """600 captions and what the server says of them, asked without a network."""
    examples, captions = batch(IMAGES, 50)
    images = {example.id: make_ready(example.image, side=1024).url for example in examples}
    verdicts = []
    for example, caption in zip(examples, captions, strict=True):
        asked = messages(UNITS, text=example.reference, label="description")
        units = judge({"messages": asked})["units"]
        asked = messages(JOINT, text=caption, image_url=images[example.id], units=units)
        answer = json.dumps(judge({"messages": asked}))
        verdicts.append(verdict_of([findings(JOINT, answer, caption=caption, units=len(units))]))
    assert len(set(verdicts)) > 570
    return examples, captions, verdicts


def test_hundreds_of_captions_through_faults_are_as_without(truth, tmp_path):
    examples, captions, verdicts = truth
    with JudgeServer(fault=schedule) as server:
        asker = LLMJudge(settings(server, tmp_path, timeout=STALL / 2, deadline=600.0))
        assert judged(asker, examples, captions) == verdicts
        spent = asker.lap()
        assert server.calls >= 600
        assert server.faults["500"] > 0.09 * server.calls
        for fault in ("429", "stall", "drop", "half", "half_body", "schema"):
            assert server.faults[fault] > 4, fault
    assert spent["failures"] == 0
    assert spent["calls"] >= server.calls  # one that broke may have reached nobody
    # An answer that comes too late on a busy machine is a timeout, however bad it is.
    unusable = server.faults["half"] + server.faults["schema"]
    assert 0.5 * unusable < spent["bad_answers"] <= unusable
    assert spent["calls"] == spent["errors"] + spent["bad_answers"] + len(captions) + IMAGES


def test_an_outage_is_no_signal_and_what_came_before_it_is_kept(truth, tmp_path, caplog):
    examples, captions, verdicts = (values[:200] for values in truth)
    with JudgeServer(fault=outage(100)) as server:
        asker = LLMJudge(settings(server, tmp_path, deadline=2.0, backoff=0.2))
        with caplog.at_level(logging.WARNING):
            during = judged(asker, examples, captions)
        lost = sum(verdict is None for verdict in during)
        assert 100 <= lost < 200
        # Each is the true verdict or none, and the log says how many and why.
        assert all(a == b for a, b in zip(during, verdicts, strict=True) if a is not None)
        assert f"no verdict for {lost} of 200: " in caplog.text
        assert "no connection" in asker.last_failures or "judge.deadline" in asker.last_failures
        assert asker.lap()["failures"] == lost

        asker.close()
        before = -1
        while before != server.calls:  # what was cancelled on its way has come
            before = server.calls
            time.sleep(0.3)
        server.fault = lambda _: None
        assert judged(LLMJudge(settings(server, tmp_path)), examples, captions) == verdicts
        # Nothing is paid twice.
        assert server.calls - before == lost


def test_an_hour_of_outage_on_a_clock_of_its_own(truth, tmp_path):
    """The server is back after an hour; the retries of a patient judge outlast it."""
    examples, captions, verdicts = (values[:64] for values in truth)
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds / 2  # the units of two images are asked for at the same time

    with JudgeServer(fault=lambda _: "drop" if now < 3600 else None) as server:
        asker = LLMJudge(
            settings(server, tmp_path, backoff=30.0, retries=200),
            clock=lambda: now,
            sleep=sleep,
        )
        assert judged(asker, examples, captions) == verdicts
        assert now >= 3600
        assert server.faults["drop"] > 60


def test_a_refusal_is_not_repeated(truth, tmp_path):
    examples, captions, _ = (values[:8] for values in truth)
    with JudgeServer(fault=lambda _: "401") as server:
        asker = LLMJudge(settings(server, tmp_path))
        assert judged(asker, examples, captions) == [None] * 8
        assert server.calls == 1  # for the units of the one image: no retry helps
        assert asker.last_failures == "HTTP 401 (8)"
