"""A report for programs, and the JSON Schema that it keeps."""

from typing import Any

import msgspec

from vllmjobs.changes.model import VERSION, Report
from vllmjobs.changes.report.words import without_tokens


def as_json(report: Report) -> str:
    """The report as JSON: every name always there, in the order of the types, a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(without_tokens(report)), indent=2).decode() + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of what `as_json` writes.

    Names may be added without a new version, so more of them than it tells are allowed.
    """
    found = msgspec.json.schema(Report)
    for block in found["$defs"].values():
        block["required"] = list(block["properties"])
        for described in block["properties"].values():
            described.pop("default", None)
    found["$defs"]["Report"]["properties"]["version"] = {"const": VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vllmjobs diff and plan, version {VERSION}",
        **found,
    }
