"""How much of a reply is read: a server may send without end, or pack gigabytes into a few bytes.

A hook of httpx, which calls it before it reads a body: so the client keeps its proxies and pools.
"""

import importlib
import zlib
from typing import Any

MOST_BYTES = 8 * 2**20  # of a reply, unpacked; an answer has thousands of them
ENCODINGS = "gzip, deflate"  # those that can be unpacked in part


class TooLargeError(Exception):
    """A reply is larger than `MOST_BYTES`."""


async def read_in_bounds(response: Any) -> None:
    """Reads and unpacks the body of a Response of httpx, and puts it in the place of its stream.

    What is packed in another way, or is broken, stays as it came: it is no chat completion.

    Raises:
      TooLargeError: there is too much of it; no more than that was read.
    """
    stream, body = response.stream, bytearray()
    try:
        async for piece in stream:
            body += piece
            if len(body) > MOST_BYTES:
                raise TooLargeError
    finally:
        await stream.aclose()
    # The client of `openai` brings httpx or, later, httpx2.
    httpx = importlib.import_module(type(response).__module__.partition(".")[0])
    response.stream = httpx.ByteStream(_unpacked(bytes(body), response.headers))
    response.headers.pop("content-encoding", None)


def _unpacked(body: bytes, headers: Any) -> bytes:
    for encoding in reversed(headers.get("content-encoding", "").lower().split(",")):
        body = _inflated(body, encoding.strip())
    return body


def _inflated(body: bytes, encoding: str) -> bytes:
    """`body` without one encoding, as it is where it does not have it."""
    forms = {
        "gzip": (zlib.MAX_WBITS | 16,),
        "x-gzip": (zlib.MAX_WBITS | 16,),
        "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),  # with a header, and as some servers send it
    }
    for bits in forms.get(encoding, ()):
        try:
            found = zlib.decompressobj(bits).decompress(body, MOST_BYTES + 1)
        except zlib.error:
            continue
        if len(found) > MOST_BYTES:
            raise TooLargeError
        return found
    return body
