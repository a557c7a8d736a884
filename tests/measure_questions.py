"""How long CaptionQA's 8,492 questions take where the judge answers after 200 ms.

    python tests/measure_questions.py [QUESTIONS]

The judge is a server in a process of its own that says "B" to everything; 64 questions are under
way at once. The command under measurement prints its seconds and CPU per call.
"""

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from balcap_jax.cli.main import main

QUESTIONS, AT_ONCE, LATENCY = 8492, 64, 0.2
_EACH = 13  # questions of an image
_BODY = json.dumps(
    {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{
            "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "B"},
        }],
        "usage": {"prompt_tokens": 300, "completion_tokens": 1},
    }
).encode()  # fmt: skip
_REPLY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY


async def _serve(queue) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                await asyncio.sleep(LATENCY)
                writer.write(_REPLY)
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    queue.put(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve(queue) -> None:
    asyncio.run(_serve(queue))


def write(folder: Path, count: int) -> None:
    """questions.json and captions.json of 240 words."""
    asked = [
        {"question": f"What is number {k}?", "answer": "a red kite", "category": ["x"],
         "choices": ["a red kite", "a blue one", "three of them", "none at all"]}
        for k in range(count)
    ]  # fmt: skip
    entries = [
        {"id": f"nat_{k:04d}", "domain": "natural", "questions": asked[start : start + _EACH]}
        for k, start in enumerate(range(0, count, _EACH))
    ]
    (folder / "questions.json").write_text(json.dumps(entries))
    captions = {entry["id"]: "A long caption of an image. " * 40 for entry in entries}
    (folder / "captions.json").write_text(json.dumps(captions))


if __name__ == "__main__":
    folder, count = Path(tempfile.mkdtemp()), int([*sys.argv, QUESTIONS][1])
    write(folder, count)
    queue = multiprocessing.Queue()
    multiprocessing.Process(target=serve, args=(queue,), daemon=True).start()
    url, began = f"http://127.0.0.1:{queue.get()}/v1", time.monotonic()
    code = main(
        [
            "eval", "captionqa", "--captions", str(folder / "captions.json"),
            "--data", str(folder / "questions.json"), "--out", str(folder / "out"),
            "--judge.base-url", url, "--judge.model", "m", "--judge.concurrency", str(AT_ONCE),
            "--judge.cache", str(folder / "cache.sqlite"),
        ]
    )  # fmt: skip
    least = count / AT_ONCE * LATENCY
    took = time.monotonic() - began
    print(f"{took:.1f} s with the start of the command; at least {least:.1f} s at this latency")
    sys.exit(code)
