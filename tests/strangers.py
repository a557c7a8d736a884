"""What may come to an open port that is not of this run: by mistake, by a scanner, on purpose."""

import json
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

TLS_HELLO = bytes.fromhex("16030100c4010000c00303") + bytes(range(185))
HTTP = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)  # how JAX's own clients begin
HELLO = {"process": 1, "processes": 3, "host": "h", "facts": {}}

# Values of every kind, where another kind belongs.
ODD: list[str] = [
    "null", "true", "-1", "0", "3", "1.5", "1e999", "-1e999", "NaN", "Infinity", "9" * 400,
    "9" * 5000, '""', '"1"', '"\\ud83d"', '"\\u0000\\u001b[31m"', '"' + "x" * 3000 + '"', "[]",
    "[1]", "[[[[[[[[1]]]]]]]]", "{}", '{"a": {"a": 1}}', '{"": null}', "[" * 20000 + "]" * 20000,
    '{"a":' * 20000 + "1" + "}" * 20000,
]  # fmt: skip


def greeting(**fields: str) -> bytes:
    """A greeting with these fields as JSON texts in place of its own; "" leaves one out."""
    texts = {name: json.dumps(value) for name, value in HELLO.items()} | fields
    inside = ", ".join(f'"{name}": {text}' for name, text in texts.items() if text)
    return f"{{{inside}}}\n".encode()


def fixed() -> list[bytes]:
    """Noise that nobody may take for a process of a run of three."""
    odd_numbers = [t for t in ODD if t not in ("1.5",)] + ["1.5", "7", "1e0", "2.0"]
    return [
        b"", b"\n", b"\n" * 100, b"{}\n", b"[1]\n", b"null\n", b"1\n", b'"a"\n', b"\xff\xfe\n",
        b"\x00" * 1000, HTTP, HTTP2, TLS_HELLO, greeting()[:-1], greeting()[:20],
        greeting() + greeting(), greeting() + b"more",
        b"[" * 100_000 + b"\n", b'{"process":' * 50_000 + b"\n", b"x" * 2_000_000,
        b"x" * 2_000_000 + b"\n", "{\u2028}\n".encode("utf-16"), b'\xef\xbb\xbf{"a": 1}\n',
        *(greeting(process=odd) for odd in odd_numbers),
        *(greeting(processes=odd) for odd in ODD if not odd.lstrip("-").isdigit()),
        *(greeting(host=odd) for odd in ODD if not odd.startswith('"')),
        *(greeting(facts=odd) for odd in ODD if not odd.startswith("{")),
        greeting(facts='{"a": {"a": 1}}'), greeting(facts='{"a": [[[[[[[[1]]]]]]]]}'),
        *(greeting(**{name: ""}) for name in HELLO),
    ]  # fmt: skip


def drawn(random_: random.Random) -> bytes:
    """Bytes, or a greeting in which some are others; never one that is whole."""
    if random_.random() < 0.3:
        return random_.randbytes(random_.randrange(2000)).replace(b"\n", b" ") + b"\n"
    text = bytearray(greeting(process=random_.choice(ODD)[:1000]))
    for _ in range(random_.randrange(1, 6)):
        text[random_.randrange(len(text))] = random_.randrange(256)
    if random_.random() < 0.5:
        text = text[: random_.randrange(len(text))]
    return bytes(text)


def call(address: str, noise: bytes, *, leave: str = "close") -> socket.socket | None:
    """Connects, sends, and leaves as said: "close", "reset", "half" (reads on), or "stay".

    Returns:
      The connection where it stays.
    """
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    try:
        connection.sendall(noise)
    except (ConnectionError, TimeoutError):  # it was turned away before all was said
        connection.close()
        return None
    if leave in ("half", "stay"):
        if leave == "half":
            try:
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                connection.close()
                return None
        return connection
    if leave == "reset":
        reset(connection)
    connection.close()
    return None


def reset(connection: socket.socket) -> None:
    """Makes its close a break, as of a process that dies with something unread."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def talk(answer: Callable[[], bytes]) -> tuple[str, socket.socket]:
    """A server whose every caller is sent what `answer` gives: (its address, to be closed)."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with suppress(OSError):
                connection.sendall(answer())
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}", server
