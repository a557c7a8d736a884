"""A connection that carries one short JSON object per line, from whoever may have connected.

Nothing is believed of the other side: a line that is too long, or no object, ends the connection,
and what it says is made printable before it is shown.
"""

import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

GREETING_BYTES = 1 << 18  # of a process that introduces itself, with all that it is compared in
MESSAGE_BYTES = 1 << 16  # of all that is said later: signs of life, and why a process ends
_SHOWN_CHARACTERS = 4000  # of a sentence; escaped they fit into a message
_CHUNK = 1 << 14
STRANGER = "what answers there is not balcap"
# Seconds without an answer from a machine whose power or network is gone, and between questions.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Line:
    """One end of it; may be written by several threads, and is read by one.

    Args:
      limit: bytes of a line of the other side; more end the connection.
    """

    def __init__(self, connection: socket.socket, *, limit: int):
        self.socket, self.limit = connection, limit
        self._received = bytearray()
        self._sending = threading.Lock()
        with suppress(OSError):  # it may have left already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Mapping[str, Any], *, wait: float = -1) -> None:
        """Sends the message, or nothing where another thread has been sending for `wait` s."""
        if self._sending.acquire(timeout=wait):
            try:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
            finally:
                self._sending.release()

    def read(self) -> bool:
        """Takes what has come, or waits for it as the socket's timeout says; False at the end.

        Raises:
          OSError: the connection broke, or nothing came in its time.
        """
        data = self.socket.recv(_CHUNK)
        self._received += data
        return bool(data)

    def message(self) -> dict[str, Any] | None:
        """The first message that `read` has completed, None where there is none.

        Raises:
          ConnectionError: what has come is no message.
        """
        end = self._received.find(b"\n", 0, self.limit + 1)
        if end < 0:
            if len(self._received) > self.limit:
                raise ConnectionError(STRANGER)
            return None
        text = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConnectionError(STRANGER) from error
        if not isinstance(message, dict):
            raise ConnectionError(STRANGER)
        return message

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None when the other has ended the connection.

        Raises:
          OSError: the connection broke, or TimeoutError: no message was complete in its time.
        """
        deadline = time.monotonic() + seconds
        while (message := self.message()) is None:
            if time.monotonic() > deadline:  # it sends, but no line comes to its end
                raise TimeoutError
            if not self.read():
                return None
        return message

    def is_empty(self) -> bool:
        """Whether nothing has come beyond the messages that were taken."""
        return not self._received

    def has_left(self) -> bool:
        """Whether the other side has ended the connection, as far as the machine knows."""
        self.socket.setblocking(False)  # noqa: FBT003
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def finish(self) -> None:
        """Nothing more will be sent."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends the connection at once."""
        with suppress(OSError):
            self.socket.close()


def printable(text: Any, *, characters: int = _SHOWN_CHARACTERS) -> str:
    """What another side said, cut, without line breaks and what terminals act on."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:characters])


def reason_of(error: BaseException) -> str:
    """What the machine says of a failed connection."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
