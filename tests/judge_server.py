"""A chat-completions server on this machine that judges by arithmetic, and misbehaves on demand.

Its verdict is a pure function of what a request says, so that a run with faults can be compared
with one without. It speaks HTTP itself, because it must be able to break the protocol.
"""

import asyncio
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

STALL = 1.0  # seconds
PAUSE = 0.05  # seconds, of Retry-After

Fault = str | None


class Sent(NamedTuple):
    """A reply in place of the one that the server would make.

    Attributes:
      body: JSON unless it is a text or bytes, which are sent as they are.
      headers: whole lines, such as "Retry-After: 1\\r\\n".
    """

    body: Any
    status: int = 200
    headers: str = ""


def schedule(number: int) -> Fault:
    """What goes wrong with call `number` (from 0): of 20 calls, two 500s and five other faults."""
    return {
        3: "500", 5: "429", 7: "drop", 9: "half", 13: "500", 15: "schema", 17: "half_body",
    }.get(number % 20) or ("stall" if number % 100 == 19 else None)  # fmt: skip


def outage(after: int, *, until: float = float("inf")) -> Callable[[int], Fault]:
    """Nobody is there from call `after` to call `until`."""
    return lambda number: "drop" if after <= number < until else None


class JudgeServer:
    """Serves 127.0.0.1 in a thread: `with JudgeServer() as server: ... server.url`.

    Attributes:
      requests: the body of every call, images shortened to their hash.
      faults: how often each fault was made.
      fault: call number -> fault; may be exchanged while the server runs.
      reply: request, the completion for it -> what is sent in its place, or None to send it.
      answer: request -> the text of the completion for it.
    """

    def __init__(
        self,
        *,
        fault: Callable[[int], Fault] = lambda _: None,
        latency: float = 0.0,
        reply: Callable[[dict[str, Any], dict[str, Any]], Sent | None] = lambda *_: None,
        answer: Callable[[dict[str, Any]], str] = lambda body: json.dumps(judge(body)),
    ):
        self.fault, self.latency, self.reply, self.answer = fault, latency, reply, answer
        self.requests: list[dict[str, Any]] = []
        self.faults: Counter[str] = Counter()
        self.most_at_once = 0
        self.authorization: set[str] = set()
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def calls(self) -> int:
        return len(self.requests)

    def __enter__(self) -> "JudgeServer":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24)
        )
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one_call(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one_call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        assert head.startswith("POST /v1/chat/completions "), head
        number = len(self.requests)
        self.requests.append(_shortened(body))
        self.authorization.add(headers.get("authorization", ""))
        fault = self.fault(number)
        if fault is not None:
            self.faults[fault] += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(self.latency + (STALL if fault == "stall" else 0))
        finally:
            self._at_once -= 1
        content = self.answer(body)
        if fault is None:
            made = completion(content, body)
            if (sent := self.reply(body, made)) is not None:
                return await _send(writer, sent)
        return await _respond(writer, body, content, fault, headers)


async def _send(writer: asyncio.StreamWriter, sent: Sent) -> bool:
    payload = sent.body
    if not isinstance(payload, bytes):
        text = payload if isinstance(payload, str) else json.dumps(payload)
        payload = text.encode("utf-8", "surrogatepass")
    kind = "" if "content-type" in sent.headers.lower() else "Content-Type: application/json\r\n"
    writer.write(
        f"HTTP/1.1 {sent.status} X\r\n{kind}{sent.headers}"
        f"Content-Length: {len(payload)}\r\n\r\n".encode()
        + payload
    )
    await writer.drain()
    return True


async def _respond(
    writer: asyncio.StreamWriter,
    body: dict[str, Any],
    content: str,
    fault: Fault,
    headers: dict[str, str],
) -> bool:
    if fault == "drop":
        return False
    status, extra = 200, ""
    if fault == "500":
        status, answer = 500, {"error": {"message": "out of memory"}}
    elif fault == "429":
        status, answer = 429, {"error": {"message": "slow down"}}
        extra = f"Retry-After: {PAUSE}\r\n"
    elif fault in ("400", "401"):  # as some servers do, with what they were sent
        status, answer = int(fault), {"error": {"message": f"bad {headers['authorization']}"}}
    else:
        if fault == "half":
            content = content[: len(content) // 2]
        if fault == "schema":
            content = json.dumps({"verdict": "fine"})
        answer = completion(content, body)
    payload = json.dumps(answer).encode()
    sent = payload[: len(payload) // 2] if fault == "half_body" else payload
    writer.write(
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{extra}"
        f"Content-Length: {len(payload)}\r\n\r\n".encode()
        + sent
    )
    await writer.drain()
    return fault != "half_body"


def completion(content: str, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
        "choices": [{
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": content},
        }],
        "usage": {"prompt_tokens": 1000, "completion_tokens": len(content) // 4},
    }  # fmt: skip


def judge(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, by its content alone."""
    parts = body["messages"][1]["content"]
    data = json.loads(next(part["text"] for part in parts if part.get("text", "")[:1] == "{"))
    image = "".join(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    if "description" in data:
        return {"units": _sentences(data["description"])}
    if "draft" in data:
        return {"caption": f"{data['draft']} Seen {_number(image) % 10} times."}
    caption = data["caption"]
    listed = [part["text"] for part in parts if part.get("text", "").startswith("Reference units")]
    units = json.loads(listed[0].partition(": ")[2]) if listed else []
    said = set(_words(caption))
    found = {
        "assertions": [
            {
                "quote": sentence,
                "verified": _number(image, sentence) % 4 > 0,
                "pointable": _number(sentence) % 5 > 0,
            }
            for sentence in _sentences(caption)
        ],
        "covered": [
            unit["id"]
            for unit in units
            if 2 * sum(word in said for word in _words(unit["unit"])) > len(_words(unit["unit"]))
        ],
        "clarity": _number(caption, "clarity") % 11,
        "fluency": _number(caption, "fluency") % 11,
        "coherency": _number(caption, "coherency") % 11,
    }
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    return {name: found[name] for name in schema["properties"]} if schema else found


def _sentences(text: str) -> list[str]:
    parts = (part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text))
    return [part for part in parts if re.search(r"\w", part)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _number(*texts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:8], "big")


def _shortened(body: dict[str, Any]) -> dict[str, Any]:
    copy = json.loads(json.dumps(body))
    for message in copy["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                part["image_url"]["url"] = str(_number(part["image_url"]["url"]))
    return copy
