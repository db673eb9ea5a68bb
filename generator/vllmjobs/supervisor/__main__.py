"""The command `vllmjobs-supervise`, which is also `python -m vllmjobs.supervisor`."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping

from vllmjobs import __version__
from vllmjobs.supervisor.admin import Admin, AdminError
from vllmjobs.supervisor.log.lines import event
from vllmjobs.supervisor.log.output import Output
from vllmjobs.supervisor.processes import ProcessError, Processes
from vllmjobs.supervisor.routes import routes
from vllmjobs.supervisor.settings import USAGE, Settings, SettingsError, read
from vllmjobs.supervisor.supervise import Supervisor
from vllmjobs.supervisor.tokens import take
from vllmjobs.supervisor.unforeseen import places

LAST_WORDS_S = 1.0  # for the output, when all is over


async def supervise(settings: Settings, tokens: Mapping[str, str]) -> int:
    """Supervise until all is over; return the exit code. Raises `AdminError`, `ProcessError`."""
    output = Output(1, asyncio.get_running_loop())
    try:
        supervisor = Supervisor(settings, Processes(settings.identity), output, tokens)
        admin = Admin(routes(supervisor), settings.admin_host, settings.admin_port, settings.admin_path)
        await admin.start()
        try:
            return await supervisor.run()
        finally:
            await admin.close()  # last of all: /ready answers 503 while the children end
    finally:
        output.close(LAST_WORDS_S)


def main() -> None:
    """Run `vllmjobs-supervise`."""
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--help" in options or "-h" in options:
        print(USAGE, end="")
        return
    if "--version" in options:
        print(f"vllmjobs-supervise {__version__}")
        return
    tokens = take(os.environ)
    try:
        sys.exit(asyncio.run(supervise(read(arguments, os.environ), tokens)))
    except (SettingsError, AdminError, ProcessError) as error:
        print(f"vllmjobs-supervise: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    except Exception as error:
        fields = {"reason": repr(error), "where": places(error)}
        os.write(1, event("supervisor_failed", "ERROR", time.time(), None, fields))
        sys.exit(1)


if __name__ == "__main__":
    main()
