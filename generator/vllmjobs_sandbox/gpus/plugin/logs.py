"""Log lines in the JSON that go-plugin reads from a plugin's stderr and repeats in Nomad's own log."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

_LEVELS = {logging.CRITICAL: "error", logging.WARNING: "warn"}


class HclogFormatter(logging.Formatter):
    """Format a record as hclog does (go-plugin log_entry.go): one line, every value a string."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record as a line of JSON."""
        line = {
            "@level": _LEVELS.get(record.levelno, record.levelname.lower()),
            "@message": record.getMessage(),
            # go-plugin drops the line's structure when the fraction has not six digits.
            "@timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "@module": "simgpu",
        }
        if record.exc_info and record.exc_info[1]:
            # The words, not the traceback: every further line would reach Nomad's log as one of its own.
            line["error"] = repr(record.exc_info[1])
        return json.dumps(line)


def log_to_stderr() -> None:
    """Send every record of this process to stderr, libraries' included."""
    # When Nomad has gone nobody reads stderr; failing to say so is no reason to fail.
    logging.raiseExceptions = False
    handler = logging.StreamHandler()
    handler.setFormatter(HclogFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
