"""A report for programs, and the JSON Schema that it keeps."""

from typing import Any

import msgspec

from vllmjobs.changes.hiding import without_tokens
from vllmjobs.changes.model import VERSION, EnvironmentChange, GroupChange, JobChange, JobPlan, Report
from vllmjobs.changes.room.sentences import reasons, ways_out

# Names in the schema that version 1 promised, of types that have another name in the code.
_PROMISED = {EnvironmentChange: "Environment", JobChange: "Job", GroupChange: "Group", JobPlan: "Plan"}

_SENTENCES = {
    "why": "The reasons in words: 4 nodes have nvidia/gpu, 3 GPUs are free, each canary needs 4.",
    "way_out": "The remedies in words: set rollout.canaries: 1.",
}


def as_json(report: Report) -> str:
    """Return the report as JSON: every name always there, in the order of the types, and a newline last."""
    printed = msgspec.json.encode(_printed(without_tokens(report)))
    return msgspec.json.format(printed, indent=2).decode() + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of what `as_json` writes.

    Names may be added without a new version, so the schema allows more names than it lists.
    """
    text = msgspec.json.encode(msgspec.json.schema(Report)).decode()
    for type_, name in _PROMISED.items():
        text = text.replace(f'{type_.__name__}"', f'{name}"')
    described = msgspec.json.decode(text)
    described["$defs"]["Unplaced"]["properties"] |= {
        name: {"description": description, "type": "array", "items": {"type": "string"}}
        for name, description in _SENTENCES.items()
    }
    for block in described["$defs"].values():
        block["required"] = list(block["properties"])
        for field in block["properties"].values():
            field.pop("default", None)
    described["$defs"]["Report"]["properties"]["version"] = {"const": VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vllmjobs diff and plan, version {VERSION}",
        **described,
    }


def _printed(report: Report) -> Any:
    printed = msgspec.to_builtins(report)
    groups = (group for job in report.jobs for group in job.groups)
    maps = (group for side in printed["environments"] for job in side["jobs"] for group in job["groups"])
    for group, values in zip(groups, maps, strict=True):
        if group.unplaced:
            values["unplaced"] |= {"why": reasons(group.unplaced), "way_out": ways_out(group.unplaced)}
    return printed
