"""`vllmjobs deploy` as a process of its own: its events as they come, its end, and a sudden end of it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.jobs import Jobs
from vllmjobs_sandbox.cluster.process import indent, wait_until
from vllmjobs_sandbox.cluster.release import Release

END = 180.0  # seconds for a release of the sandbox's quick engines
# An analysis of seconds, and deadlines that a busy machine keeps, as keys of `models.chat`.
QUICK: dict[str, Any] = {
    "replicas": 2,
    "pull_time": "1s",
    "load_time": "4s",
    "rollout.healthy_deadline": "2m",
    "rollout.progress_deadline": "3m",
    "rollout.steps": "[0.5]",
    "rollout.analysis.interval": "1s",
    "rollout.analysis.window": "2s",
    "rollout.analysis.min_requests": 5,
    # On a busy machine, an engine that is new answers its first requests late; who tests that sets the limit.
    "rollout.analysis.limits.time_to_first_token": "null",
    "rollout.analysis.limits.inter_token_latency": "null",
    "drain.longest_stream": "3s",
    "drain.shutdown_delay": "2s",
    "rollout.placement_deadline": "5s",
}


class Command:
    """One running command of `vllmjobs` with `--json`; a context, so that it never outlives its test.

    `at` holds signals by kind of event: it gets one the moment that the first such event is read.
    """

    def __init__(
        self,
        jobs: Jobs,
        words: Sequence[str],
        at: Mapping[str, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.events: list[Json] = []
        self.errors: list[str] = []
        self._words = words
        self._at = dict(at or {})
        self._popen = subprocess.Popen(
            ["vllmjobs", *words, "--json"],
            env={**jobs.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._readers = [threading.Thread(target=target, daemon=True) for target in (self._read, self._hear)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_for(
        self, kind: str, seconds: float = END, such: Callable[[Json], bool] = lambda _: True
    ) -> Json:
        """Wait for an event of this kind, from the start on; return the first."""

        def found() -> Json | None:
            event = next((one for one in list(self.events) if one["kind"] == kind and such(one)), None)
            if not event and not any(reader.is_alive() for reader in self._readers):
                raise SandboxError(f"it ended before it said {kind}\n{self.evidence()}")
            return event

        return wait_until(found, seconds, f"it says {kind}", evidence=self.evidence)

    def kinds(self) -> list[str]:
        """List the kinds of its events, each run of the same as one."""
        kinds = [event["kind"] for event in self.events]
        return [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]

    def end(self, seconds: float = END) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise SandboxError(f"it has not ended after {seconds:g} s\n{self.evidence()}") from None
        for reader in self._readers:
            reader.join()
        return code

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._popen.kill()
        self.end()

    def evidence(self) -> str:
        """Say what it has said."""
        said = [f"{event['at'][11:23]} {event['kind']:<12} {event['text']}" for event in self.events]
        return f"vllmjobs {self._words[0]}:\n{indent(chr(10).join([*said, *self.errors]))}"

    def _read(self) -> None:
        assert self._popen.stdout
        for line in self._popen.stdout:
            event = json.loads(line)
            if number := self._at.pop(event["kind"], 0):
                self._popen.send_signal(number)
            self.events.append(event)

    def _hear(self) -> None:
        assert self._popen.stderr
        self.errors.extend(line.rstrip() for line in self._popen.stderr)


def deploying(
    release: Release,
    *words: str,
    at: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None,
    **chat: Any,
) -> Command:
    """Deploy a release with keys of `models.chat` laid over; `words` are options."""
    command = ["deploy", *release.words(**chat), "--job", "vllm", *words]
    return Command(release.sandbox, command, at, env)


def succeeded(command: Command) -> Command:
    """Wait for the end of a command, which is to be a success."""
    with command:
        if code := command.end():
            raise SandboxError(f"exit code {code}\n{command.evidence()}")
    return command


class Clock:
    """A wall clock of one process that can be set: Debian's libfaketime, which leaves the monotonic one."""

    def __init__(self, folder: Path) -> None:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        if library is None:
            raise SandboxError("libfaketime is not installed; run scripts/engine, which installs it")
        self._file = folder / "clock"
        self.jump("+0")
        self.env = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, offset: str) -> None:
        """Set it that far from the true time: `+5h`, `-3h`."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.replace(self._file)
