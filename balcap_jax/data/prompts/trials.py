"""Trials of what a model folder brings, in a process that can be cut off.

A chat template is a program and a tokenizer's pattern may take for ever: neither can be stopped in
this process, and a panic or a lack of memory there would end it.
"""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.models.json_files import printable

SECONDS = 10.0
_WORKER = Path(__file__).with_name("trial_worker.py")
_CURRENT: ContextVar["Trials | None"] = ContextVar("trials", default=None)


class Trials:
    """One worker process, started when it is first asked and again after it was cut off.

    Args:
      seconds: that a trial may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting: list[str] = []

    def tokenizer(self, path: Path, text: str) -> None:
        """Begins the trial of a tokenizer.json; `check` says how it ended."""
        self._start({"kind": "tokenizer", "path": str(path), "text": text}, str(path))

    def template(
        self, name: str, template: str, conversations: list, tokens: Mapping[str, Any]
    ) -> None:
        """Begins the trial of a chat template; `check` says how it ended.

        Args:
          name: of its file.
          conversations: lists of messages that it is rendered with, with and without the prompt of
            an answer.
          tokens: what else it reads, such as bos_token.
        """
        self._start(
            {
                "kind": "template",
                "template": template,
                "conversations": conversations,
                "tokens": dict(tokens),
            },
            f"The chat template in {name}",
        )

    def check(self) -> None:
        """Waits for the trials that were begun.

        Raises:
          UserError: one took too long or too much memory, or would have ended the process.
        """
        while self._waiting:
            what = self._waiting.pop(0)
            try:
                line = self._answers.get(timeout=self.seconds)
            except queue.Empty:
                self.close()
                raise UserError(
                    f"{what} does not end within {self.seconds:g} s; take the one that was "
                    "published with the weights."
                ) from None
            wrong = json.loads(line) if line else "it ends the process"
            if not line:
                self.close()
            if wrong:
                raise UserError(
                    f"{what} cannot be used ({printable(wrong)}); take the one that was published "
                    "with the weights."
                )

    def close(self) -> None:
        """Ends the worker, whatever it does."""
        process, self._process = self._process, None
        self._waiting.clear()
        if process is not None:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):  # what it was not sent goes with it
                process.stdin.close()

    def _start(self, job: Mapping[str, Any], what: str) -> None:
        if self._process is None:
            self._begin()
        self._waiting.append(what)
        self._send(job)

    def _begin(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answers = queue.SimpleQueue()
        threading.Thread(
            target=_pass_on, args=(self._process.stdout, self._answers), daemon=True
        ).start()
        self._send(sys.path)

    def _send(self, content: Any) -> None:
        assert self._process is not None
        # Where it has ended `check` finds no answer.
        with suppress(BrokenPipeError):
            print(json.dumps(content), file=self._process.stdin, flush=True)


@contextmanager
def trials() -> Iterator[Trials]:
    """The trials of the block around, else new ones that end with this block."""
    current = _CURRENT.get()
    if current is not None:
        yield current
        return
    current = Trials()
    token = _CURRENT.set(current)
    try:
        yield current
    finally:
        _CURRENT.reset(token)
        current.close()


def _pass_on(lines: Any, answers: "queue.SimpleQueue[str]") -> None:
    with lines:
        for line in lines:
            answers.put(line)
    answers.put("")
