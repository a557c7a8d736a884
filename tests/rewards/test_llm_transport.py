"""The LLM judge over the wire: what it asks after a failure, what that costs, what it says."""

import functools
import gzip
import json
import logging
import sqlite3
import threading
import time
import tracemalloc
import zlib
from contextlib import closing

import pytest
from judge_server import JudgeServer, Sent, completion

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm import cache as cache_module
from balcap_jax.rewards.llm.cache import Cache
from balcap_jax.rewards.llm.judge import LLMJudge

SOURCE = SceneSource("train", 8)
UNITS = ("There is a circle.", "It is red.")  # stored with the data: one call per caption
EXAMPLE = SOURCE[0]._replace(units=UNITS)
CAPTION = "There is a red circle."


def settings(server, folder, **changes) -> JudgeConfig:
    given = {"kind": "llm", "model": "m", "base_url": server.url, "cache": folder / "c.sqlite"}
    given |= {"retries": 3, "backoff": 0.01, "deadline": 120.0}
    return JudgeConfig(**(given | changes))


def ask(server, folder, *, captions=(CAPTION,), **changes):
    """Verdicts, costs and reasons of a judge with these settings."""
    judge = LLMJudge(settings(server, folder, **changes))
    try:
        return judge([EXAMPLE] * len(captions), captions), judge.lap(), judge.last_failures
    finally:
        judge.close()


@pytest.fixture
def server():
    with JudgeServer() as server:
        yield server


@pytest.fixture
def truth(server, tmp_path):
    """The verdict of a server that behaves."""
    verdict = ask(server, tmp_path / "truth")[0][0]
    assert verdict is not None
    server.requests.clear()
    return verdict


def answers_in(cache) -> int:
    """How many answers a judge under way has written down."""
    with closing(sqlite3.connect(cache)) as database:
        return database.execute("SELECT count(*) FROM answers").fetchone()[0]


def once(sent):
    """Replies with `sent` to the first request, and as it should to the others."""
    replies = iter([sent])
    return lambda *_: next(replies, None)


def refuse(words, status=400, **more):
    return Sent({"error": {"message": words} | more}, status)


# Forms of a request -----------------------------------------------------------------------------


def forms(server):
    return [r.get("response_format", {}).get("type", "none") for r in server.requests]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type')}]", 400),
        ('response_format type must be one of "text" or "json_object"', 400),
        ("This model does not support structured outputs", 422),
        ("json_schema is not implemented", 501),
        ("unknown field response_format", 200),
    ],
)
def test_the_form_of_the_answer_steps_down_once_for_all_calls(
    words, status, server, truth, tmp_path, caplog
):
    def reply(body, _):
        kind = body.get("response_format", {}).get("type")
        return refuse(words, status) if kind == "json_schema" else None

    server.reply = reply
    with caplog.at_level(logging.WARNING):
        verdicts, spent, _ = ask(server, tmp_path, retries=0)
    assert verdicts == [truth]
    assert forms(server) == ["json_schema", "json_object"]
    assert (spent["calls"], spent["errors"]) == (2, 1)
    assert "json_schema refused, json_object in its place" in caplog.text
    server.requests.clear()
    judge = LLMJudge(settings(server, tmp_path / "b"))
    for i in range(3):
        assert None not in judge([EXAMPLE], [f"{CAPTION} It is {i}."])
    judge.close()
    assert forms(server) == ["json_schema", *["json_object"] * 3]


def test_it_steps_down_to_no_form_at_all(server, truth, tmp_path):
    server.reply = lambda body, _: (
        refuse("response_format is not supported") if "response_format" in body else None
    )
    assert ask(server, tmp_path, retries=0)[0] == [truth]
    assert forms(server) == ["json_schema", "json_object", "none"]


@pytest.mark.parametrize(
    ("first", "second"), [("max_completion_tokens", "max_tokens"), ("max_tokens", "none")]
)
def test_the_limit_goes_by_the_name_that_the_server_knows(first, second, server, truth, tmp_path):
    refused = {"max_completion_tokens", first}

    def reply(body, _):
        named = next((name for name in refused if name in body), None)
        return refuse(f"Unsupported parameter: '{named}'", param=named) if named else None

    server.reply = reply
    assert ask(server, tmp_path, retries=0)[0] == [truth]
    used = [name for name in ("max_completion_tokens", "max_tokens") if name in server.requests[-1]]
    assert used == ([] if second == "none" else [second])


def test_only_the_default_temperature_and_no_seed(server, truth, tmp_path):
    calls = 0

    def reply(body, made):
        nonlocal calls
        if "temperature" in body:
            return refuse("Unsupported value: 'temperature' does not support 0.0", param="x")
        if "seed" in body:
            return refuse("unexpected keyword argument 'seed'")
        calls += 1
        return Sent(completion("no JSON", body)) if calls < 3 else None

    server.reply = reply
    verdicts, spent, _ = ask(server, tmp_path, retries=2)
    assert verdicts == [truth]
    assert spent["bad_answers"] == 2
    assert spent["errors"] == 2  # one for each field, though the seed was to be sent twice


def test_a_refusal_that_names_fields_by_chance_changes_nothing_for_others(server, tmp_path):
    """A server that repeats the request in its error names every field of it."""
    server.reply = lambda body, _: refuse(f"image too large in {body}"[:3000])
    judge = LLMJudge(settings(server, tmp_path))
    assert judge([EXAMPLE], [CAPTION]) == [None]
    assert "image too large" in judge.last_failures
    assert len(server.requests) <= 7
    server.reply = lambda *_: None
    assert None not in judge([EXAMPLE], [CAPTION])
    assert forms(server)[-1] == "json_schema"
    judge.close()


def test_a_limit_that_is_too_large_is_said_and_not_left_out(server, tmp_path):
    server.reply = lambda *_: refuse("max_tokens is too large: 4096. At most 2048 are supported")
    verdicts, spent, reasons = ask(server, tmp_path)
    assert verdicts == [None]
    assert spent["calls"] == 1
    assert "At most 2048" in reasons


# Answers that are none, and what they cost ------------------------------------------------------


def test_what_was_cut_is_asked_for_with_more_room(server, truth, tmp_path):
    def reply(body, made):
        if body["max_completion_tokens"] < 400:
            made["choices"][0]["finish_reason"] = "length"
            made["choices"][0]["message"]["content"] = "{"
            return Sent(made)
        return None

    server.reply = reply
    verdicts, spent, _ = ask(server, tmp_path, max_tokens=100, prompt_price=1.0)
    assert verdicts == [truth]
    assert [r["max_completion_tokens"] for r in server.requests] == [100, 200, 400]
    assert [r.get("seed") for r in server.requests] == [None, None, 1]
    assert spent["prompt_tokens"] == 3000
    assert spent["price"] == pytest.approx(3000 / 1e6)

    server.requests.clear()
    verdicts, spent, reasons = ask(server, tmp_path / "b", max_tokens=50, retries=9)
    assert verdicts == [None]
    assert [r["max_completion_tokens"] for r in server.requests] == [50, 100, 200]
    assert reasons == "longer than judge.max_tokens (1)"


def test_an_answer_that_is_whole_although_it_was_cut_is_taken(server, truth, tmp_path):
    def reply(_, made):
        made["choices"][0]["finish_reason"] = "length"
        made["choices"][0]["message"]["content"] += "\n" * 100
        return Sent(made)

    server.reply = reply
    assert ask(server, tmp_path)[0] == [truth]
    assert server.calls == 1


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"content": None, "refusal": "I cannot judge people."}, "I cannot judge people."),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "called a tool"),
        ({"content": ""}, "without a text"),
        ({"content": "As an AI I will not."}, "no JSON object"),
    ],
)
def test_every_try_is_paid_and_counted(message, said, server, tmp_path):
    def reply(_, made):
        made["choices"][0]["message"] = message
        made["usage"] = {"prompt_tokens": 100, "completion_tokens": "10"}
        return Sent(made)

    server.reply = reply
    verdicts, spent, reasons = ask(
        server, tmp_path, retries=3, prompt_price=10.0, completion_price=100.0
    )
    assert verdicts == [None]
    assert said in reasons
    assert (spent["calls"], spent["bad_answers"], spent["errors"]) == (4, 4, 0)
    assert (spent["prompt_tokens"], spent["completion_tokens"]) == (400, 40)
    assert spent["price"] == pytest.approx(4 * (100 * 10 + 10 * 100) / 1e6)
    assert [r.get("seed") for r in server.requests] == [None, 1, 2, 3]


def test_an_error_in_a_reply_of_status_200_waits_and_says_what_the_server_said(server, tmp_path):
    server.reply = lambda *_: Sent(
        {"error": {"message": "the GPU is on fire", "code": 503}, "usage": {"prompt_tokens": 9}}
    )
    began = time.monotonic()
    verdicts, spent, reasons = ask(server, tmp_path, backoff=0.2, retries=2)
    assert verdicts == [None]
    assert time.monotonic() - began > (0.2 + 0.4) / 2
    assert "the GPU is on fire" in reasons
    assert reasons.startswith("HTTP 503 (an error in a reply of status 200)")
    assert (spent["calls"], spent["errors"], spent["bad_answers"]) == (3, 3, 0)
    assert spent["prompt_tokens"] == 27


@pytest.mark.parametrize(
    "sent",
    [
        Sent({"error": {"message": "no such model", "code": 404}}),
        Sent({"error": {"message": "no such model", "type": "invalid_request_error"}}),
        Sent({"error": {"message": "no such model", "code": "insufficient_quota"}}, 429),
        Sent({"message": "no such model", "object": "error", "code": 400}),
    ],
)
def test_an_error_that_will_stay_is_not_repeated(sent, server, tmp_path):
    server.reply = lambda *_: sent
    verdicts, _, reasons = ask(server, tmp_path)
    assert verdicts == [None]
    assert server.calls == 1
    if sent.status == 200:
        assert "no such model" in reasons


@pytest.mark.parametrize(
    "sent",
    [
        Sent("<html>please log in</html>", headers="Content-Type: text/html\r\n"),
        Sent(b"\x1f\x8bjunk", headers="Content-Encoding: gzip\r\n"),
        Sent(b"\x1f\x8bjunk", 500, headers="Content-Encoding: gzip\r\n"),
        Sent("<h1>502</h1>", 502, headers="Content-Type: text/html\r\n"),
        Sent("[" * 100_000),
        Sent("{}" * 1000, 500),
        Sent("", 204),
        Sent(b"\xff\xfe\x00", 418),
        Sent("{}", 302, headers="Location: http://[::1\r\n"),
        Sent("{}", headers="Content-Type: application/json; charset=nonsense\r\n"),
        Sent("{}", 429, headers="Retry-After: Mon, 01 Jan 9999999999999 00:00:00 GMT\r\n"),
        Sent("{}", 503, headers="Retry-After: nan\r\n"),
        Sent("{}", 503, headers="Retry-After: inf\r\n"),
    ],
)
def test_junk_is_no_signal_and_no_traceback(sent, server, truth, tmp_path):
    server.reply = once(sent)
    verdicts, spent, _ = ask(server, tmp_path)
    assert spent["errors"] == 1
    assert verdicts == ([None] if sent.status == 418 else [truth])  # that one will stay
    server.reply = lambda *_: sent
    assert ask(server, tmp_path / "b", retries=1)[0] == [None]


def test_an_answer_packed_or_streamed_is_read(server, truth, tmp_path):
    server.reply = lambda _, made: Sent(
        gzip.compress(json.dumps(made).encode()), headers="Content-Encoding: gzip\r\n"
    )
    assert ask(server, tmp_path)[0] == [truth]

    def stream(_, made):
        choice = made["choices"][0]
        pieces = [{"choices": [{"delta": choice["message"]}]}, made | {"choices": []}]
        text = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces)
        return Sent(text + "data: [DONE]\n\n", headers="Content-Type: text/event-stream\r\n")

    server.reply = stream
    verdicts, spent, _ = ask(server, tmp_path / "b")
    assert verdicts == [truth]
    assert spent["prompt_tokens"] == 1000


@functools.cache
def packed(megabytes, wrap=None):
    """A completion with so much of nothing before it, in a thousandth of the bytes."""
    packer = zlib.compressobj(wbits=31 if wrap is None else wrap)
    parts = [packer.compress(b" " * 2**20) for _ in range(megabytes)]
    return b"".join([*parts, packer.compress(b"{}"), packer.flush()])


@pytest.mark.parametrize(
    "made",  # not before it is used: all processes that share the tests read this file
    [
        lambda: Sent(packed(64), headers="Content-Encoding: gzip\r\n"),
        lambda: Sent(packed(64, 15), headers="Content-Encoding: deflate\r\n"),
        lambda: Sent(packed(64, -15), headers="Content-Encoding: deflate\r\n"),
        lambda: Sent(gzip.compress(packed(64)), headers="Content-Encoding: gzip, gzip\r\n"),
        lambda: Sent(packed(64), 500, headers="Content-Encoding: gzip\r\n"),
        lambda: Sent(packed(64), 400, headers="Content-Encoding: gzip\r\n"),
        lambda: Sent(b" " * (8 * 2**20 + 1)),
    ],
)
def test_no_reply_is_unpacked_beyond_a_limit(made, server, truth, tmp_path):
    sent = made()
    server.reply = once(sent)
    tracemalloc.start()
    try:
        verdicts, spent, _ = ask(server, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert verdicts == [truth]
    assert (spent["calls"], spent["errors"], spent["bad_answers"]) == (2, 1, 0)
    assert peak < 40 * 2**20
    server.reply = lambda *_: sent
    verdicts, spent, reasons = ask(server, tmp_path / "b", retries=1)
    assert (verdicts, spent["errors"]) == ([None], 2)
    assert reasons == "a reply of more than 8 MB (1)"


def test_a_large_answer_within_the_limit_is_read(server, truth, tmp_path):
    server.reply = lambda _, made: Sent(" " * 7 * 2**20 + json.dumps(made))
    assert ask(server, tmp_path)[0] == [truth]


@pytest.mark.parametrize("status", [200, 400])
def test_no_echo_of_the_key_is_shown(status, server, tmp_path, monkeypatch, caplog):
    key = "sk-ab/cd/ef+0123456789"
    monkeypatch.setenv("BALCAP_JUDGE_KEY", key)
    text = json.dumps({"error": {"message": f"bad key {key}"}}).replace("/", "\\/")
    server.reply = lambda *_: Sent(text, status)
    with caplog.at_level(logging.DEBUG, logger="balcap_jax"):
        reasons = ask(server, tmp_path, retries=0)[2]
    assert "bad key ***" in reasons
    for said in (reasons, caplog.text):
        assert "0123456789" not in said
        assert "sk-ab" not in said


# Closing ----------------------------------------------------------------------------------------


def test_closing_wakes_who_waits_with_what_is_there(server, tmp_path):
    judge = LLMJudge(settings(server, tmp_path, retries=50, backoff=30.0))
    slow = "There is a blue star."
    server.reply = lambda body, _: (
        Sent({}, 500) if "blue star" in json.dumps(body["messages"]) else None
    )
    got = []
    waiting = threading.Thread(target=lambda: got.append(judge([EXAMPLE] * 2, [CAPTION, slow])))
    waiting.start()
    while server.calls < 2 or not answers_in(tmp_path / "c.sqlite"):
        time.sleep(0.01)
    judge.close()  # the other is asked for again in 15 s at the soonest
    waiting.join(10)
    assert not waiting.is_alive()
    assert got[0][0] is not None
    assert got[0][1] is None
    assert judge.last_failures == "the judge was closed (1)"
    # Who asks later gets no signal, and no error.
    assert judge([EXAMPLE], [CAPTION]) == [None]
    with pytest.raises(UserError, match="the judge was closed"):
        judge.reference_units(SOURCE[1])
    judge.close()


@pytest.mark.parametrize("wait", ["gate", "stall", "pace"])
def test_closing_wakes_every_kind_of_wait(wait, server, tmp_path):
    changes = {"requests_per_minute": 1} if wait == "pace" else {}
    judge = LLMJudge(settings(server, tmp_path, **changes))
    if wait == "gate":
        server.reply = lambda *_: Sent({}, 429, "Retry-After: 600\r\n")
    server.latency = 30.0 if wait == "stall" else 0.0
    got = []
    captions = [f"There are {i} circles." for i in range(3)]
    threads = [
        threading.Thread(target=lambda: got.append(judge([EXAMPLE] * 3, captions)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while not server.calls:
        time.sleep(0.01)
    time.sleep(0.2)
    judge.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert [len(verdicts) for verdicts in got] == [3, 3]
    assert all(verdicts[-1] is None for verdicts in got)


# The cache --------------------------------------------------------------------------------------


def test_nobody_waits_for_a_cache_that_another_has_locked(server, tmp_path, caplog, monkeypatch):
    path = tmp_path / "c.sqlite"
    Cache(path).close()
    captions = [f"There are {i} red circles." for i in range(4)]
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(cache_module, "_OPENING_SECONDS", 60.0)
    began = time.monotonic()
    judge = LLMJudge(settings(server, tmp_path))
    with caplog.at_level(logging.WARNING):
        verdicts = judge([EXAMPLE] * 4, captions)
    assert time.monotonic() - began < 50
    assert None not in verdicts
    assert caplog.text.count("is locked by another program") == 1
    assert judge([EXAMPLE] * 4, captions) == verdicts  # from memory
    assert server.calls == 4
    other.execute("COMMIT")
    judge([EXAMPLE], ["There is a star."])
    judge.close()
    assert "was locked to the end" not in caplog.text
    assert ask(server, tmp_path, captions=captions)[0] == verdicts
    assert server.calls == 5


def test_a_cache_locked_for_readers_too_is_done_without(server, tmp_path, caplog):
    path = tmp_path / "c.sqlite"
    asked = ask(server, tmp_path)[0]
    judge = LLMJudge(settings(server, tmp_path))
    replay = LLMJudge(settings(server, tmp_path, replay=True))
    for cache in (
        judge._answers.cache,
        replay._answers.cache,
    ):  # no connection may be open while it is taken
        cache._database.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    for cache in (judge._answers.cache, replay._answers.cache):
        cache._database = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=0.1
        )
    with caplog.at_level(logging.WARNING):
        assert judge([EXAMPLE], [CAPTION]) == asked
        judge.close()
    assert server.calls == 2
    assert "was locked to the end: 1 answers are not in it" in caplog.text
    with pytest.raises(UserError, match="cannot read judge.cache=.*another program has locked"):
        replay([EXAMPLE], [CAPTION])
    replay.close()


@pytest.mark.parametrize("value", [b"\xff\x00", b"{}", 3, 2.5, "", "junk", '{"a":' * 50_000])
def test_what_is_no_answer_in_the_cache_is_asked_for_again_and_replaced(value, server, tmp_path):
    first = ask(server, tmp_path)[0]
    database = sqlite3.connect(tmp_path / "c.sqlite")
    database.execute("UPDATE answers SET answer = ?", (value,))
    database.commit()
    database.close()
    assert ask(server, tmp_path)[0] == first
    assert server.calls == 2
    assert ask(server, tmp_path)[0] == first
    assert server.calls == 2


def test_text_that_is_no_utf8_in_the_cache_is_asked_for_again(server, tmp_path):
    first = ask(server, tmp_path)[0]
    database = sqlite3.connect(tmp_path / "c.sqlite")
    database.execute("UPDATE answers SET answer = CAST(x'ff7b' AS TEXT)")
    database.commit()
    database.close()
    assert ask(server, tmp_path)[0] == first
    assert server.calls == 2


def test_answers_that_were_read_too_kindly_are_not_kept_for_ever(server, tmp_path):
    """No assertion of a caption with words: precision 0, before."""

    def empty(body, _):
        answer = {"assertions": [], "covered": [], "clarity": 9, "fluency": 9, "coherency": 9}
        return Sent(completion(json.dumps(answer), body))

    server.reply = empty
    verdicts, _, reasons = ask(server, tmp_path, retries=1)
    assert verdicts == [None]
    assert "no assertion of a caption with words" in reasons
    server.reply = lambda *_: None
    assert ask(server, tmp_path)[0] != [None]


def test_one_spelling_of_a_letter_is_one_question(server, tmp_path):
    composed, apart = "There is a café.", "There is a cafe\u0301."
    assert composed != apart
    first = ask(server, tmp_path, captions=[composed])[0]
    second, spent, _ = ask(server, tmp_path, captions=[apart])
    assert second == first
    assert spent["cache_hits"] == 1
    assert server.calls == 1


def test_half_an_emoji_costs_nobody_else_a_verdict(server, tmp_path):
    verdicts, _, _ = ask(server, tmp_path, captions=["A \ud83d star.", CAPTION])
    assert None not in verdicts
