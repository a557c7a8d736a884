"""How many processors a process has, by its affinity and by its container's share of time."""

import os

import pytest

from balcap_jax.runs import cores
from balcap_jax.runs.cores import even_shares, usable_cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 64 cores, whose control groups a test writes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "_OWN_GROUP", tmp_path / "own")

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"own": "0::/\n", "groups/cpu.max": "max 100000\n"}, 64),
        ({"own": "0::/\n", "groups/cpu.max": "250000 100000\n"}, 3),
        ({"own": "0::/\n", "groups/cpu.max": "10000 100000\n"}, 1),
        # The tightest of the groups around the process.
        (
            {
                "own": "0::/pods/one\n",
                "groups/pods/one/cpu.max": "800000 100000\n",
                "groups/pods/cpu.max": "400000 100000\n",
            },
            4,
        ),
        ({"own": "0::/pods/one\n", "groups/pods/cpu.max": "nonsense\n"}, 64),
        (
            {
                "own": "1:cpu:/\n",
                "groups/cpu/cpu.cfs_quota_us": "200000\n",
                "groups/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "own": "1:cpu:/\n",
                "groups/cpu/cpu.cfs_quota_us": "-1\n",
                "groups/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_a_container_has_no_more_cores_than_its_time_fills(machine, files, expected):
    machine(files)
    assert usable_cores() == expected


def test_without_affinity_all_cores_count(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6


@pytest.mark.parametrize(("parts", "most", "shares"), [(8, 2, 2), (8, 6, 4), (7, 6, 1), (6, 9, 6)])
def test_even_shares(parts, most, shares):
    assert even_shares(parts, most) == shares
