"""`family.py KIND`: a process whose offspring is hard to find. It prints the pid of the last, and stays.

stubborn     a child that ignores SIGTERM
session      a child in a session of its own
daemon       the same, forked twice: its parent is gone
nameless     forked twice, in the same session, without any environment
bare         a daemon without any environment
threads      a child whose first thread has ended, while another runs
lineage      a child without any environment in its own session, whose parent ends on SIGUSR1
storm        children that fork without end
comet        one that forks, ends, and goes on in a session of its own, again and again
zombies      a thousand that have ended, and whose parent has too
"""

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

EXIT = {"x86_64": 60, "aarch64": 93}  # exit(2) ends one thread


def stay() -> None:
    while True:
        signal.pause()


def child(run: Callable[[], None]) -> int:
    if pid := os.fork():
        return pid
    run()
    os._exit(0)


def tell_and_stay() -> None:
    os.write(1, f"{os.getpid()}\n".encode())
    stay()


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell_and_stay()


def session() -> None:
    os.setsid()
    tell_and_stay()


def daemon() -> None:
    os.setsid()
    child(tell_and_stay)


def forget() -> None:
    os.execve(sys.executable, [sys.executable, "-IS", __file__, "itself"], {})


def nameless() -> None:
    child(forget)


def bare() -> None:
    os.setsid()
    child(forget)


def threads() -> None:
    def rest() -> None:
        os.write(1, f"{os.getpid()}\n".encode())
        time.sleep(600)

    threading.Thread(target=rest).start()
    ctypes.CDLL(None).syscall(EXIT[os.uname().machine], 0)


def lineage() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))

    def leave() -> None:
        os.setsid()
        forget()

    child(leave)
    stay()


def storm() -> None:
    def breed() -> None:
        while True:
            child(lambda: time.sleep(0.2))
            time.sleep(0.02)

    for _ in range(3):
        child(breed)
    tell_and_stay()


def comet() -> None:
    """Go on as another process each moment, while the lock of argv[2] is held."""
    lock = os.open(sys.argv[2], os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(1, f"{os.getpid()}\n".encode())
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()


def zombies() -> None:
    def breed() -> None:
        for _ in range(1000):
            child(lambda: None)

    os.waitpid(child(breed), 0)
    os.write(1, b"0\n")


KINDS = {
    "stubborn": stubborn, "session": session, "daemon": daemon, "nameless": nameless, "bare": bare,
    "threads": threads, "lineage": lineage, "storm": storm, "comet": comet, "itself": tell_and_stay,
    "zombies": zombies,
}  # fmt: skip

if __name__ == "__main__":
    kind = sys.argv[1]
    if kind in ("itself", "zombies"):
        KINDS[kind]()
    else:
        child(KINDS[kind])
    stay()
