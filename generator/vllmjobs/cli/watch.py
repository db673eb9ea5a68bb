"""A text that is kept on the terminal."""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from rich.live import Live
from rich.text import Text

from vllmjobs.environment.problems import UserError


def watch(screen: Callable[[], str], interval: float) -> None:
    """Show a text until Ctrl-C; while it cannot be had, the reason above the last one."""
    last = ""
    with suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False) as live:
        while True:
            try:
                text = last = screen()
            except UserError as error:
                text = f"{error}\n\n{last}"
            at = datetime.now(UTC).astimezone().strftime("%H:%M:%S")
            live.update(Text(f"{text}\n{at}, every {interval:g} s; Ctrl-C ends"), refresh=True)
            time.sleep(interval)
