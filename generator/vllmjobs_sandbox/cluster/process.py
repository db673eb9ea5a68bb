"""Processes with a log file, and waiting for a condition instead of for a time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vllmjobs_sandbox.cluster.errors import SandboxError

T = TypeVar("T")
LINES = 20  # of a log, as evidence
GRACE = 10.0  # seconds from TERM to KILL


class TimedOutError(SandboxError):
    """A condition that did not come true in time."""


@dataclass(frozen=True)
class Process:
    """An agent that runs in a session of its own, so that Ctrl-C does not reach it before its jobs."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes]
    command: Sequence[str | Path]
    env: Mapping[str, str]

    def kill(self) -> None:
        """End it at once, without a word to it."""
        self.popen.kill()
        self.popen.wait()

    def again(self) -> Process:
        """Start the same once more."""
        return start(self.name, self.command, self.log, self.env)

    @property
    def exit_code(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.popen.poll()

    def evidence(self) -> str:
        """Return the end of its log."""
        return f"the end of {self.log}:\n{indent(tail(self.log))}"

    def wait_until(
        self, condition: Callable[[], T | None], seconds: float, what: str, ignoring: Ignored = ()
    ) -> T:
        """Wait for a condition that this process brings about; its end is the end of the wait."""

        def or_ended() -> T | None:
            if self.exit_code is not None:
                raise SandboxError(f"{self.name} ended with exit code {self.exit_code}\n{self.evidence()}")
            return condition()

        return wait_until(or_ended, seconds, what, ignoring=ignoring, evidence=self.evidence)


Ignored = tuple[type[Exception], ...]


def start(name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> Process:
    """Start a process; both of its outputs go to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=env,
            start_new_session=True,
        )
    return Process(name, log, popen, command, env)


def stop(processes: Iterable[Process], grace: float = GRACE) -> None:
    """End them all at once: TERM, and KILL for what is left after the grace."""
    running = [process.popen for process in processes]
    for popen in running:
        popen.terminate()
    give_up = time.monotonic() + grace
    for popen in running:
        try:
            popen.wait(max(0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def end(find: Callable[[], Iterable[int]], grace: float = GRACE) -> None:
    """End processes that are not our children, by TERM and then KILL; `find` lists those still there."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        for pid in (pids := set(find())):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if not pids:
            return
        with suppress(TimedOutError):
            wait_until(lambda: not set(find()), seconds, "they are gone")


def wait_until(
    condition: Callable[[], T | None],
    seconds: float,
    what: str,
    ignoring: Ignored = (),
    evidence: Callable[[], str] | None = None,
) -> T:
    """Ask until the answer is not empty, and return it; errors in `ignoring` are answers to come."""
    give_up = time.monotonic() + seconds
    pause, last = 0.02, ""
    while True:
        try:
            if answer := condition():
                return answer
            last = ""
        except ignoring as error:
            last = f"\nlast error: {error}"
        if time.monotonic() > give_up:
            shown = f"\n{evidence()}" if evidence else ""
            raise TimedOutError(f"waited {seconds:g} s in vain until {what}{last}{shown}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def tail(log: Path, lines: int = LINES) -> str:
    """Return the end of a log."""
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        return f"({error})"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"


def indent(text: str) -> str:
    """Indent every line of a text."""
    return "\n".join(f"    {line}" for line in text.splitlines())
