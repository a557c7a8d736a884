"""What a library writes about a save that failed is dropped; what others write is heard."""

import asyncio
import gc
import logging

import pytest

from balcap_jax.training.quiet_storage import quiet_storage

FAILS = "async def fails():\n    raise ValueError('File too large')"


def forgotten_task(file: str) -> None:
    """A task of a coroutine of `file` that fails, and whose error nobody takes."""
    names: dict = {}
    exec(compile(FAILS, file, "exec"), names)

    async def forget() -> None:
        task = asyncio.ensure_future(names["fails"]())
        await asyncio.wait([task])

    asyncio.run(forget())
    gc.collect()


@pytest.mark.parametrize(
    ("file", "heard"),
    [("/x/orbax/checkpoint/_src/serialization.py", False), ("/x/balcap_jax/client.py", True)],
)
def test_errors_nobody_takes_are_dropped_of_orbax_alone(file, heard, caplog):
    quiet_storage()
    with caplog.at_level(logging.ERROR, logger="asyncio"):
        forgotten_task(file)
    assert ("never retrieved" in caplog.text) == heard
