"""From the body of a reply to the text of an answer, in the forms that servers and gateways have.

By hand and not with pydantic: what is read here breaks the schema that a model would state.
"""

import json
import math
import re
from typing import Any, NamedTuple

from balcap_jax.rewards.llm import causes
from balcap_jax.rewards.llm.causes import Trouble
from balcap_jax.rewards.llm.server_words import ServerError, error_in, shown
from balcap_jax.runs import safe_json

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # which cannot be stored or sent
_MOST_TOKENS = 10**9  # of one call; more is no count
_CUT = ("length", "max_tokens", "model_length")
_FILTERED = ("content_filter", "safety", "recitation", "prohibited_content", "blocklist")
_TOOLS = ("tool_calls", "function_call", "tool_use")
_THOUGHTS = ("reasoning_content", "reasoning")


class Reply(NamedTuple):
    """An answer and what it took.

    Attributes:
      tokens: of the prompt and of the answer; 0 where the server does not tell.
      doubt: why the text may be no answer, to be raised where it turns out to be none.
    """

    text: str
    tokens: tuple[int, int]
    doubt: Trouble | None = None


class ErrorReply(Exception):  # noqa: N818
    """An error came with the status 200.

    Attributes:
      error: the server's.
      tokens: as in Reply.
    """

    def __init__(self, error: ServerError, tokens: tuple[int, int]):
        super().__init__(error.words)
        self.error, self.tokens = error, tokens


def read(body: str, *, key: str) -> Reply:
    """The answer in the body of a chat completion.

    Args:
      key: the secret, which is struck out of what is said of the body.

    Raises:
      ErrorReply: it holds an error.
      Trouble: it is no chat completion.
    """
    body = body.removeprefix("\ufeff").strip()
    try:
        completion = _streamed(body) if body.startswith(("data:", "event:", ":")) else _json(body)
        if isinstance(completion, list) and len(completion) == 1:
            completion = completion[0]
        if (error := error_in(completion)) is not None:
            raise ErrorReply(error, _tokens(completion.get("usage")))
        choice = completion["choices"][0]
        # Completions without chat have a text alone.
        message = choice.get("message", choice.get("delta", choice))
        if not isinstance(message, dict):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        start = shown(body[:200], key=key)[:60]
        raise Trouble(causes.NO_COMPLETION, f": {start!r}" if start else ": it is empty") from None
    tokens = _tokens(completion.get("usage"))
    return _answer(message, str(choice.get("finish_reason") or "").lower(), tokens, key=key)


def _answer(message: dict, ended: str, tokens: tuple[int, int], *, key: str) -> Reply:
    text, declined = _texts(message.get("content", message.get("text")))
    declined = message.get("refusal") or declined
    if not text.strip() and not declined:
        text = next((found for n in _THOUGHTS if (found := _texts(message.get(n))[0])), "")
        doubt = causes.NO_TEXT, " but thoughts" if text else ""
    else:
        doubt = None
    if ended in _CUT:
        text = "" if doubt else text  # a draft in thoughts that were cut is no answer
        doubt = causes.CUT, ""
    elif declined:
        doubt = causes.DECLINED, f": {shown(_texts(declined)[0], key=key)[:80]!r}"
    elif ended in _FILTERED:
        doubt = causes.FILTERED, ""
    elif message.get("tool_calls") or message.get("function_call") or ended in _TOOLS:
        doubt = causes.CALLED_TOOL, ""
    text = _HALF_CHARACTER.sub("\ufffd", text)
    return Reply(text, tokens, None if doubt is None else Trouble(*doubt, tokens=tokens))


def _texts(content: Any) -> tuple[str, Any]:
    """The text of a content and the refusal in it: a text, parts of one, or JSON itself."""
    if content is None or isinstance(content, str):
        return content or "", None
    if isinstance(content, dict) and not {"text", "type", "refusal"} & content.keys():
        return json.dumps(content, ensure_ascii=False), None  # read by the server already
    texts, declined = [], None
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            declined = part.get("refusal") or declined
            if part.get("type") in (None, "text", "output_text"):
                text = part.get("text")
                text = text.get("value") if isinstance(text, dict) else text
                texts.append(text if isinstance(text, str) else "")
    return "".join(texts), declined


def _tokens(usage: Any) -> tuple[int, int]:
    if not isinstance(usage, dict):
        return 0, 0
    prompt, answer, total = (
        next((count for name in names if (count := _count(usage.get(name)))), 0)
        for names in (
            ("prompt_tokens", "input_tokens"),
            ("completion_tokens", "output_tokens"),
            ("total_tokens",),
        )
    )
    return prompt, answer or (max(0, total - prompt) if prompt else 0)


def _count(value: Any) -> int:
    """A count of tokens, also as a fraction or a text; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        number = float(value[:30] if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return 0
    return int(number) if math.isfinite(number) and 0 <= number <= _MOST_TOKENS else 0


def _json(text: str) -> Any:
    return safe_json.loads(text, strict=False)


def _streamed(body: str) -> dict[str, Any]:
    """A stream of pieces, sent although none was asked for, as one completion."""
    whole: dict[str, Any] = {"choices": [], "usage": None}
    message: dict[str, Any] = {}
    ended = None
    for line in re.split(r"[\r\n]+", body):  # splitlines knows more ends than a stream has
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data in ("", "[DONE]"):
            continue
        piece = _json(data)
        if error_in(piece) is not None:
            return piece
        whole["usage"] = piece.get("usage") or whole["usage"]
        for choice in piece.get("choices") or ():
            if choice.get("index"):
                continue  # another answer
            delta = choice.get("delta") or choice.get("message") or {}
            for name in ("content", "refusal", *_THOUGHTS):
                if delta.get(name):
                    message[name] = message.get(name, "") + _texts(delta[name])[0]
            for name in ("tool_calls", "function_call"):
                message[name] = delta.get(name) or message.get(name)
            ended = choice.get("finish_reason") or ended
            whole["choices"] = [{"message": message, "finish_reason": ended}]
    if ended is None and not body.endswith("[DONE]"):
        raise ValueError("a stream that is cut")
    return whole
