"""`driver.py IDENTITY`: a supervisor's `Processes`, driven by one JSON list [method, argument, …] per line.

It is a program of its own since it reaps whatever ends, and tests have other children.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from vllmjobs.supervisor.processes import Processes, Program, StartError

SIGNALLED: list[list[int]] = []


def watch(event: str, args: tuple[Any, ...]) -> None:
    """Note each signal that Python really sends (sys.addaudithook)."""
    if event in ("os.kill", "os.killpg"):
        SIGNALLED.append([args[0], int(args[1])])


def main() -> None:
    sys.addaudithook(watch)
    supervised = Processes(sys.argv[1])
    pipes: dict[str, tuple[int, int]] = {}

    def start(name: str, command: list[str], env: dict[str, str], forks: bool = True) -> Any:
        try:
            started = supervised.start(Program(name, tuple(command), env, forks))
        except StartError as error:
            return {"error": str(error), "files": len(os.listdir("/proc/self/fd"))}  # noqa: PTH208
        pipes[name] = (started.stdout, started.stderr)
        return started.pid

    def read(name: str, which: int) -> str | None:
        """What is there; "" at the end, None while there is nothing."""
        try:
            return os.read(pipes[name][which], 65536).decode()
        except BlockingIOError:
            return None

    def reap() -> Any:
        return [[one.name, one.pid, one.status] for one in supervised.reap()]

    methods: dict[str, Callable[..., Any]] = {
        "start": start,
        "read": read,
        "reap": reap,
        "reaped": lambda: supervised.reaped,
        "signalled": lambda: SIGNALLED,
        "terminate": supervised.terminate,
        "tree": lambda name: sorted(supervised.tree(name)),
        "kill": lambda name: sorted(supervised.kill(name)),
        "leftovers": lambda: {name: sorted(pids) for name, pids in supervised.leftovers().items()},
        "kill_leftovers": lambda: sorted(supervised.kill_leftovers()),
    }
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(methods[method](*arguments)), flush=True)


if __name__ == "__main__":
    # As a careless parent may have left them.
    for ignored in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    main()
