"""The tokens of the supervisor alone, kept from its children, which run as the same user.

Linux shows a process's first environment in /proc/PID/environ and its memory in /proc/PID/mem, to whoever may
trace it: each process of the same user, unless it is not dumpable (prctl(2), ptrace(2)).
"""

import ctypes
from collections.abc import MutableMapping
from contextlib import suppress

OURS_ALONE = ("NOMAD_TOKEN",)  # which fences nodes; an engine has no business with it
PR_SET_DUMPABLE = 4  # linux/prctl.h


def take(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Take the tokens out of the environment of this process, and hide the process; return the tokens.

    The values are overwritten where the kernel shows them, too: root may read that of any process. Without
    prctl only the environment is cleared.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))
        libc.getenv.restype = ctypes.c_void_p
        for name in OURS_ALONE:
            if place := libc.getenv(name.encode()):
                ctypes.memset(place, ord("-"), len(ctypes.string_at(place)))
    return {name: environ.pop(name) for name in OURS_ALONE if name in environ}
