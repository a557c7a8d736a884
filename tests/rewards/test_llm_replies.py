"""What servers and gateways send: read where there is an answer in it, else told apart."""

import json

import pytest

from balcap_jax.rewards.llm import causes
from balcap_jax.rewards.llm.causes import BAD_ANSWER, ERROR, Cause, Retry, Trouble, of_error
from balcap_jax.rewards.llm.replies import ErrorReply, read
from balcap_jax.rewards.llm.server_words import error_of, shown

TEXT = '{"caption": "A red car."}'


def body(message=None, *, ended="stop", usage=None, **more) -> str:
    choice = {"index": 0, "finish_reason": ended, "message": message or {"content": TEXT}}
    used = {"prompt_tokens": 10, "completion_tokens": 3} if usage is None else usage
    return json.dumps({"choices": [choice], "usage": used} | more)


def stream(*pieces, end="data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + end


def delta(text, ended=None, **more):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": ended}]} | more


@pytest.mark.parametrize(
    "sent",
    [
        body(),
        "\ufeff\n" + body(),
        f"[{body()}]",
        body({"content": [{"type": "text", "text": TEXT}]}),
        body({"content": [{"type": "text", "text": TEXT[:9]}, {"type": "text", "text": TEXT[9:]}]}),
        body({"content": [{"type": "thinking", "thinking": "{"}, {"type": "text", "text": TEXT}]}),
        body({"content": [TEXT]}),
        body({"content": {"type": "text", "text": TEXT}}),
        body({"content": [{"type": "output_text", "text": {"value": TEXT}}]}),
        body({"content": json.loads(TEXT)}),
        body({"content": None, "reasoning_content": TEXT}),
        body({"content": " \n", "reasoning": TEXT}),
        body({"content": TEXT, "reasoning_content": "Is it { red }?"}),
        body({"content": TEXT, "refusal": None, "tool_calls": [], "function_call": None}),
        body(error=None),
        body(error={}),
        body(error={"code": 0, "message": "success"}),
        body(ended=None),
        json.dumps(
            {"choices": [{"text": TEXT}], "usage": {"input_tokens": 10, "output_tokens": 3}}
        ),
        stream(
            {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
            delta(TEXT[:7]),
            delta(TEXT[7:], "stop"),
            {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 3}},
        ),
        ": ping\r\n\r\n"
        + stream(delta(TEXT, "stop", usage={"prompt_tokens": 10, "total_tokens": 13})),
    ],
)
def test_an_answer_is_found_in_every_form(sent):
    reply = read(sent, key="")
    assert json.loads(reply.text) == {"caption": "A red car."}
    assert reply.tokens == (10, 3)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10.0, "completion_tokens": "3"}, (10, 3)),
        ({"prompt_tokens": " 10 ", "completion_tokens": "3.0"}, (10, 3)),
        ({"prompt_tokens": 10, "total_tokens": 13}, (10, 3)),
        ({"prompt_tokens": 10, "completion_tokens": None}, (10, 0)),
        ({"prompt_tokens": "many", "completion_tokens": {"text": 3}}, (0, 0)),
        ({"prompt_tokens": -5, "completion_tokens": 1e300}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": [3]}, (0, 0)),
        ({"prompt_tokens": 10**30, "completion_tokens": "9" * 5000}, (0, 0)),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, (0, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 3, "details": {"x": {}}}, (10, 3)),
        ([10, 3], (0, 0)),
        ("13", (0, 0)),
    ],
)
def test_usage_never_costs_an_answer(usage, tokens):
    reply = read(body(usage=usage), key="")
    assert (reply.text, reply.tokens) == (TEXT, tokens)


def test_half_a_character_does_not_get_through():
    reply = read(body({"content": "\ud83d " + TEXT}), key="")
    assert reply.text == "\ufffd " + TEXT
    reply.text.encode()


@pytest.mark.parametrize(
    ("message", "ended", "cause", "said"),
    [
        ({"content": None, "refusal": "I am sorry."}, "stop", causes.DECLINED, "I am sorry."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "stop", causes.DECLINED, "No."),
        ({"content": None, "tool_calls": [{"id": 1}]}, "tool_calls", causes.CALLED_TOOL, "tool"),
        ({"content": None, "function_call": {"name": "f"}}, "stop", causes.CALLED_TOOL, "tool"),
        ({"content": ""}, "content_filter", causes.FILTERED, "content filter"),
        ({"content": "{"}, "SAFETY", causes.FILTERED, "content filter"),
        ({"content": None}, "stop", causes.NO_TEXT, "without a text"),
        ({"content": 3}, "stop", causes.NO_TEXT, "without a text"),
        ({"content": "", "reasoning": "Hm."}, "stop", causes.NO_TEXT, "but thoughts"),
        ({"content": "{"}, "length", causes.CUT, "judge.max_tokens"),
        ({"content": "{"}, "MAX_TOKENS", causes.CUT, "judge.max_tokens"),
        ({"content": None, "reasoning": TEXT}, "length", causes.CUT, "judge.max_tokens"),
    ],
)
def test_what_is_no_answer_is_told_apart_and_what_it_took_is_known(message, ended, cause, said):
    reply = read(body(message, ended=ended), key="")
    assert reply.tokens == (10, 3)
    assert reply.doubt.cause is cause
    assert said in str(reply.doubt)
    if ended == "length":
        assert reply.text in ("", "{")  # a draft in thoughts that were cut is none


@pytest.mark.parametrize(
    "sent",
    [
        "", "null", "3", "[]", "{}", "[" * 100_000, '{"a":' * 100_000, "<html>Bad gateway</html>",
        '{"choices": []}', '{"choices": null}', '{"choices": {}}', '{"choices": [null]}',
        '{"choices": [3]}', '{"choices": [{"message": null}]}', '{"choices": [{"message": "x"}]}',
        body()[:-20], "\x1f\x8b\x08junk", "9" * 5000, "data: {\n\n",
        stream(delta(TEXT[:7]), end=""), "data: [DONE]\n\n", "data: 3\n\n",
    ],
)  # fmt: skip
def test_what_is_no_completion_is_asked_for_again_later(sent):
    with pytest.raises(Trouble) as caught:
        read(sent, key="")
    assert caught.value.cause is causes.NO_COMPLETION
    assert caught.value.cause.retry is Retry.LATER


@pytest.mark.parametrize(
    ("sent", "words", "status"),
    [
        ({"error": {"message": "model is loading", "code": 503}}, "model is loading", 503),
        ({"error": {"message": "slow down", "code": "429"}}, "slow down", 429),
        ({"error": "out of memory"}, "out of memory", None),
        ({"object": "error", "message": "too long", "code": 400}, "too long", 400),
        ({"detail": "Not authenticated"}, "Not authenticated", None),
        ({"errors": [{"message": "broken"}]}, "broken", None),
        ({"choices": [{"error": {"code": 502, "message": "upstream"}}]}, "upstream", 502),
        ({"error": {"error": {"message": "inner"}}}, "inner", None),
        ({"error": {"code": None, "type": {"a": [1]}, "message": "odd"}}, "odd", None),
    ],
)
def test_an_error_object_is_an_error_whatever_the_status(sent, words, status):
    sent["usage"] = {"prompt_tokens": 7}
    with pytest.raises(ErrorReply) as caught:
        read(json.dumps(sent), key="")
    assert words in caught.value.error.words
    assert caught.value.error.status == status
    assert caught.value.tokens == (7, 0)
    assert words in error_of(json.dumps(sent)).words


def test_a_stream_with_an_error_in_it_is_an_error():
    with pytest.raises(ErrorReply, match="overloaded"):
        read(stream(delta("{"), {"error": {"message": "overloaded"}}), key="")


def test_one_table_says_what_follows_from_a_cause():
    table = [value for value in vars(causes).values() if isinstance(value, Cause)]
    assert len(table) == 14
    assert {cause.counted for cause in table} == {ERROR, BAD_ANSWER}
    assert {cause.retry for cause in table} == set(Retry)
    assert of_error(500, "") is of_error(429, "rate_limit_exceeded") is causes.BUSY
    assert of_error(200, "") is of_error(200, "server_error") is causes.BUSY
    assert of_error(400, "") is of_error(401, "") is of_error(302, "") is causes.REFUSED
    assert of_error(429, "insufficient_quota") is causes.REFUSED
    assert of_error(200, "invalid_request_error") is causes.REFUSED


KEY = "sk-ab/CD+ef=gh&ij<kl>mn-0123456789"


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        KEY.replace("/", "\\/"),
        json.dumps(KEY).replace("/", "\\/"),
        json.dumps(json.dumps({"k": KEY.replace("/", "\\/")})),
        "".join(f"\\u{ord(c):04x}" for c in KEY),
        "".join(f"\\\\u{ord(c):04X}" for c in KEY),
        "".join(f"%{ord(c):02x}" for c in KEY),
        "".join(f"&#{ord(c)};" for c in KEY),
        "".join(f"&#x{ord(c):x};" for c in KEY),
        KEY.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
        KEY.upper(),
        KEY[:20] + "...",
        f"{KEY[:12]}\x00{KEY[12:]}",
        KEY + KEY,
    ],
)
def test_the_key_is_struck_out_however_it_is_written(echo):
    text = shown(f"bad key {echo}, ask the admin", key=KEY)
    assert text.startswith("bad key ")
    assert text.endswith("ask the admin")
    assert not any(KEY[i : i + 8].lower() in text.lower() for i in range(len(KEY) - 7))
    with pytest.raises(Trouble) as caught:
        read(f"<html>{echo}</html>", key=KEY)
    assert KEY[:12].lower() not in str(caught.value).lower()
    assert echo[:30] not in str(caught.value)


def test_words_of_a_server_are_one_short_printable_line():
    text = shown("a\n\x1b[2J\u202eb" + "x" * 50_000, key="k")
    assert text.startswith("a [2J b")
    assert text.isprintable()
    assert len(text) == 200
