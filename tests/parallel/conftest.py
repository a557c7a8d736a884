"""Waits of the control line that are for people and slow networks are short in tests."""

import pytest

from balcap_jax.parallel import control, meeting


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(control, "_LAST_WORDS", 0.2)
    monkeypatch.setattr(meeting, "_LATECOMERS", 0.5)
