"""Processes that are one run, as on as many hosts."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import strangers
from addresses import free_port


class Hosts:
    """Processes of one run, one CPU device each, gloo between them."""

    def __init__(
        self,
        folder: Path,
        count: int,
        *flags: str,
        devices: int = 1,
        slurm: bool = False,
        start: Sequence[int] | None = None,
        command: str = "train",
    ):
        self._port = str(free_port())
        self.address = f"127.0.0.1:{self._port}"
        self._flags, self._devices, self._slurm, self._count = flags, devices, slurm, count
        self._command = command
        folder.mkdir(exist_ok=True)
        self.logs = [folder / f"process{process}.log" for process in range(count)]
        self.processes: list = [None] * count
        for process in range(count) if start is None else start:
            self.start(process)

    def start(self, process: int) -> None:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(self._devices),
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        }
        if self._slurm:
            found: Sequence[str] = ()
            environment |= {
                "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1",
                "SLURM_NTASKS": str(self._count), "SLURM_PROCID": str(process),
                "SLURM_LOCALID": str(process), "JAX_COORDINATOR_PORT": self._port,
            }  # fmt: skip
        else:
            found = (
                "--dist.coordinator", self.address, "--dist.processes", str(self._count),
                "--dist.process", str(process),
            )  # fmt: skip
        with self.logs[process].open("w") as out:
            self.processes[process] = subprocess.Popen(
                [sys.executable, "-m", "balcap_jax", self._command, *found, *self._flags],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def kill(self, process: int) -> None:
        self.processes[process].kill()
        self.processes[process].wait()

    def wait_until_open(self) -> None:
        """Process 0 listens."""
        deadline = time.monotonic() + 60
        while True:
            try:
                strangers.call(self.address, b"")
                return
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.1)

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            if process is not None:
                process.kill()
                process.wait()

    def said(self) -> list[str]:
        return [log.read_text() if log.exists() else "" for log in self.logs]

    def wait(self, seconds: float = 240) -> list[int]:
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        return [process.returncode for process in self.processes]

    def wait_for_rows(self, run: Path, count: int) -> None:
        self.wait_for(run / "metrics.jsonl", lines=count)

    def wait_for(self, path: Path, *, lines: int = 0) -> None:
        """A file of so many lines."""
        deadline = time.monotonic() + 240
        while not path.exists() or path.read_text().count("\n") < lines:
            assert time.monotonic() < deadline, self.said()
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.05)
