"""Hooks of `--notify`: commands and webhooks that get each event of a release as JSON."""

import os
import queue
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import requests

from vllmjobs.cluster.answers import LITTLE, EndlessError, Session
from vllmjobs.environment.secret_names import holds_secret
from vllmjobs.environment.secrets import blotted, looks_secret, without_secrets
from vllmjobs.rollout.model import Notification
from vllmjobs.text.address import shown_address
from vllmjobs.text.visible import visible_json

HTTP_S = 10.0  # seconds until connected, and until the head of the answer is there
COMMAND_S = 30.0
PAUSES = (1.0, 4.0)  # seconds before the second and the third attempt at a webhook
OWN = "VLLMJOBS_NOTIFY_"  # how the variables begin that are for hooks alone
WAITING = 1000  # events that may wait for one hook; a long release has a few hundred
_URL = re.compile(r"https?://[^\s'\"]+", re.IGNORECASE)


class NotSentError(Exception):
    """An event did not arrive; the text says why, without a secret."""


class Notifier:
    """Passes events on to hooks, to each in their order and in a thread of its own: nothing waits for one.

    A hook that begins with http:// or https:// gets a POST, any other is a command for `sh -c`, with the
    event on its standard input, and without the variables that hold secrets. The first failure of each hook
    is reported at once, through `warn`, from the hook's thread; the count of events that did not arrive, at
    the end.
    """

    def __init__(
        self,
        hooks: Sequence[str],
        warn: Callable[[str], None],
        pauses: tuple[float, ...] = PAUSES,
        limit: float = COMMAND_S,
    ) -> None:
        """`warn` must not fail and must not wait; `limit` is for a command, in seconds."""
        self._hooks = [_Hook(hook, warn, pauses, limit) for hook in hooks]

    def send(self, event: Notification) -> None:
        """Hand an event to the hooks. Returns at once and never fails."""
        text = visible_json(msgspec.json.encode(blotted(msgspec.to_builtins(event))).decode()).encode()
        for hook in self._hooks:
            hook.put(text)

    def close(self, timeout: float) -> list[str]:
        """Wait at most so many seconds until every hook has got every event, and end what still runs.

        Returns a line for each hook that has missed some.
        """
        until = time.monotonic() + timeout
        for hook in self._hooks:
            hook.no_more()
        return [line for hook in self._hooks if (line := hook.end(until))]


class _Hook:
    """One hook, its events that wait, and the thread that sends them."""

    def __init__(
        self, hook: str, warn: Callable[[str], None], pauses: tuple[float, ...], limit: float
    ) -> None:
        self._hook, self._warn, self._pauses, self._limit = hook, warn, pauses, limit
        self._is_url = re.match(r"https?://", hook, re.IGNORECASE) is not None
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self._given = self._arrived = 0
        self._process: subprocess.Popen[bytes] | None = None
        # As a daemon, it keeps no process alive that ends without `close`.
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self._thread.start()

    def put(self, text: bytes) -> None:
        self._given += 1
        if self._waiting.qsize() < WAITING:
            self._waiting.put(text)

    def no_more(self) -> None:
        self._waiting.put(None)

    def end(self, until: float) -> str:
        self._thread.join(max(0.0, until - time.monotonic()))
        self._given_up.set()
        if process := self._process:
            _kill(process)
        missed = self._given - self._arrived
        return f"{_called(self._hook)}: {missed} of {self._given} events did not arrive" if missed else ""

    def _run(self) -> None:
        send = self._post if self._is_url else self._command
        has_failed = False
        while (text := self._waiting.get()) is not None and not self._given_up.is_set():
            try:
                send(text)
                self._arrived += 1
            except NotSentError as error:
                if not has_failed and not self._given_up.is_set():
                    has_failed = True
                    with suppress(OSError):  # a closed terminal is no reason to send nothing more
                        self._warn(f"{_called(self._hook)}: {error}; the release goes on")

    def _post(self, text: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        for pause in (*self._pauses, None):
            try:
                # The answer is not read, and no redirect followed: requests would make a GET of it.
                with Session(LITTLE) as session:
                    session.trust_env = True  # of proxies
                    with session.post(
                        self._hook, text, headers=headers, timeout=HTTP_S, stream=True
                    ) as answer:
                        status = answer.status_code
                if 200 <= status < 300:
                    return
                why, is_passing = f"answers {status} {answer.reason}".rstrip(), status >= 500
            except (requests.ReadTimeout, EndlessError):  # it may have arrived, so it is not sent again
                why, is_passing = f"no answer within {HTTP_S:g} s", False
            except requests.ConnectionError:
                why, is_passing = "cannot be reached", True
            except (requests.RequestException, ValueError) as error:  # their texts hold the URL
                why, is_passing = f"cannot be asked ({type(error).__name__})", False
            if pause is None or not is_passing or self._given_up.wait(pause):
                raise NotSentError(why)

    def _command(self, text: bytes) -> None:
        """Run a command with files, not pipes: it need not read the event, and may leave others running."""
        try:
            with tempfile.TemporaryFile() as event, tempfile.TemporaryFile() as stderr:
                event.write(text)
                event.seek(0)
                # A session of its own: Ctrl-C is for the release, and what it starts is killed with it.
                process = self._process = subprocess.Popen(
                    ["/bin/sh", "-c", self._hook],
                    stdin=event,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=_without_tokens(os.environ),
                    start_new_session=True,
                )
                if self._given_up.is_set():
                    _kill(process)
                try:
                    code = process.wait(self._limit)
                except subprocess.TimeoutExpired:
                    _kill(process)
                    process.wait()
                    raise NotSentError(f"has not ended within {self._limit:g} s, and was killed") from None
                finally:
                    self._process = None
                if code:
                    stderr.seek(0)
                    raise NotSentError(_ended(code, stderr.read(100_000).decode(errors="replace")))
        except OSError as error:
            raise NotSentError(f"cannot be run ({error.strerror})") from error


def _without_tokens(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a command of `--notify`: it has no business with the tokens of the release.

    Its own secrets come in variables that begin with `VLLMJOBS_NOTIFY_`.
    """
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(OWN)
        or not (name == OWN.rstrip("_") or holds_secret(name, value) or looks_secret(value))
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _ended(code: int, stderr: str) -> str:
    lines = stderr.split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    last = without_secrets(_URL.sub(lambda match: shown_address(match[0], path=False), last))[:200]
    return f"exit code {code}{last and f': {last}'}" if code > 0 else f"ended by signal {-code}"


def _called(hook: str) -> str:
    """Name a hook without what may be a secret: a URL by scheme and host, a command by its program."""
    if _URL.match(hook):
        return f"--notify {shown_address(hook, path=False)}"
    try:
        words = shlex.split(hook)
    except ValueError:
        words = hook.split()
    program = next((word for word in words if "=" not in word), "")
    return f"--notify {without_secrets(Path(program).name)}".rstrip()
