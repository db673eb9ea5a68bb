"""The schemas of what people write and of what programs read, and the reference of an environment's keys."""

import json
from pathlib import Path
from typing import Any

from vllmjobs.changes.report import json as report_json
from vllmjobs.environment.reference import reference
from vllmjobs.environment.schema import json_schema


def files(_: Path) -> dict[str, str]:
    """Return both schemas, and the page that is made from the first."""
    return {
        "envs/schema.json": _as_text(json_schema()),
        "docs/environment.md": reference(json_schema(whole=True)),
        "docs/changes.schema.json": _as_text(report_json.schema()),
    }


def _as_text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2) + "\n"
