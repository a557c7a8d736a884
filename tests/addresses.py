"""Addresses of this machine for what listens later."""

import secrets
import socket
from pathlib import Path

_DRAWN_BY_THE_MACHINE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000


def free_port() -> int:
    """A free port of those that the machine gives to nobody by itself.

    A port that it has drawn (bind to 0) is free to be drawn again before it is listened at: by
    another test for a server of its own, or for a connection, which even reaches itself where it
    is to that port.
    """
    highest = 32_768
    if _DRAWN_BY_THE_MACHINE.exists():
        highest = int(_DRAWN_BY_THE_MACHINE.read_text().split()[0])
    for _ in range(100):
        port = _LOWEST + secrets.randbelow(highest - _LOWEST)
        try:
            socket.create_server(("", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError(f"no port is free between {_LOWEST} and {highest}")


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"
