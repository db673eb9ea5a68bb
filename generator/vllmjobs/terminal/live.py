"""Text that is kept on the terminal, and drawn again as it changes."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vllmjobs.environment.problems import UserError
from vllmjobs.terminal.printing import readable
from vllmjobs.text.visible import one_line


class LiveTable:
    """A table below the lines that are printed meanwhile; it is gone when it ends."""

    def __init__(self) -> None:
        self._live = Live(console=Console(), refresh_per_second=4, transient=True)

    @property
    def is_shown(self) -> bool:
        """Tell whether the table has been drawn, and not yet ended."""
        return self._live.is_started

    def update(self, title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Draw the table with these rows."""
        table = Table(title=_text(title), title_justify="left", box=None, pad_edge=False)
        for head in heads:
            table.add_column(head)
        for row in rows:
            table.add_row(*map(_text, row))
        if not self._live.is_started:
            self._live.start()
        self._live.update(table)

    def print(self, line: str, style: str = "") -> None:
        """Print a line above the table."""
        self._live.console.print(Text(readable(one_line(line)), style))

    def stop(self) -> None:
        """Take the table away."""
        self._live.stop()


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
            shown = f"{readable(text)}\n{at}, every {interval:g} s; Ctrl-C ends"
            live.update(Text(shown), refresh=True)
            time.sleep(interval)


def _text(cell: str) -> Text:
    return Text(readable(one_line(cell)))
