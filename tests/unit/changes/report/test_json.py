"""Reports as programs read them, and the schema that they keep."""

import json
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from jsonschema import Draft202012Validator

from unit.changes.report.reports import PLANNED, group, job, report, reports
from vllmjobs.changes.hiding import without_tokens
from vllmjobs.changes.model import Field, Report
from vllmjobs.changes.report.json import as_json, schema

PAGE = Path(__file__).parents[4] / "docs/changes.schema.json"
# The names that version 1 promises. Names may come; what is here stays, until VERSION is raised.
NAMES = {
    "Report": ["command", "environments", "version"],
    "Environment": ["against", "findings", "jobs", "name"],
    "Job": ["action", "fields", "groups", "id", "job", "namespace", "notes", "plan", "region"],
    "Group": [
        "actions", "canaries", "count_after", "count_before", "fields", "gpus_after", "gpus_before", "name",
        "unplaced", "updates",
    ],
    "Field": ["after", "before", "hidden", "path", "replaces"],
    "Updates": [
        "canary", "destructive_update", "ignore", "in_place_update", "migrate", "place", "preemptions",
        "stop",
    ],
    "Unplaced": ["canaries", "failed", "reasons", "remedies", "wanted", "way_out", "why"],
    "Reason": [
        "counts", "datacenters", "free", "holders", "kind", "largest", "most_free", "needed", "node",
        "node_pool", "nodes", "port", "resource", "text", "unit",
    ],
    "Remedy": ["command", "datacenter", "gpus", "kind", "node", "node_pool", "settings"],
    "Holder": ["count", "job", "own"],
    "Amount": ["count", "name"],
    "Setting": ["key", "value"],
    "Plan": ["deployment", "modify_index", "preempted", "run", "warnings"],
    "Deployment": ["description", "groups", "id", "job_version", "status"],
    "Preempted": ["count", "group", "job", "namespace", "node"],
    "Finding": ["column", "file", "line", "message", "path", "rule", "severity"],
}  # fmt: skip
WORDS = {
    ("Report", "command"): ["diff", "plan"],
    ("Job", "action"): ["changed", "gone", "new", "none"],
    ("Group", "actions"): ["destructive", "gone", "in-place", "new", "scale-down", "scale-up"],
    ("Finding", "severity"): ["error", "note", "warning"],
}


def test_the_schema_in_the_docs_is_made_from_the_types() -> None:
    made = json.dumps(schema(), indent=2) + "\n"
    assert PAGE.read_text() == made, "write docs/changes.schema.json anew: it is no longer what is printed"


def test_what_version_1_promised_is_kept() -> None:
    blocks = schema()["$defs"]
    lost = [
        f"{block}.{name}"
        for block, names in NAMES.items()
        for name in names
        if name not in blocks.get(block, {}).get("properties", {})
    ]
    assert not lost, f"{lost} is gone: programs read it; raise VERSION in changes/model.py and say so"
    for (block, name), words in WORDS.items():
        described: dict[str, Any] = blocks[block]["properties"][name]
        found = described.get("enum") or described["items"]["enum"]
        assert set(words) <= set(found), f"a word of {block}.{name} is gone: raise VERSION"


def test_every_block_says_what_it_is() -> None:
    assert all(block["description"] for block in schema()["$defs"].values())


def test_a_report_has_its_version_and_every_name() -> None:
    found = json.loads(as_json(report(job(group()))))
    assert found["version"] == 1
    assert found["environments"][0]["jobs"][0]["plan"] is None
    assert found["environments"][0]["jobs"][0]["groups"][0] == {
        "name": "chat",
        "actions": [],
        "count_before": 4,
        "count_after": 4,
        "gpus_before": 1,
        "gpus_after": 1,
        "canaries": 0,
        "fields": [],
        "updates": None,
        "unplaced": None,
    }


def test_it_is_the_same_each_time_and_ends_with_a_line() -> None:
    assert as_json(PLANNED) == as_json(PLANNED)
    assert as_json(PLANNED).endswith("}\n")
    assert '  "command": "plan",\n' in as_json(PLANNED)


def test_why_there_is_no_room_is_values_and_words() -> None:
    chat = json.loads(as_json(PLANNED))["environments"][0]["jobs"][0]["groups"][0]
    assert chat["unplaced"]["why"] == [
        "4 nodes have nvidia/gpu, 1 GPU is free, each canary needs 1",
        "train (15) holds the others",
    ]
    assert chat["unplaced"]["way_out"] == ["free 1 GPU on gpu-3", "set rollout.canaries: 1"]
    (reason,) = chat["unplaced"]["reasons"]
    assert {key: value for key, value in reason.items() if value not in (None, [])} == {
        "kind": "gpus",
        "nodes": 4,
        "resource": "nvidia/gpu",
        "needed": 1,
        "free": 1,
        "most_free": 1,
        "largest": 4,
        "holders": [{"job": "train", "count": 15, "own": False}],
    }
    free, fewer = chat["unplaced"]["remedies"]
    assert (free["kind"], free["gpus"]) == ("free-gpus-on-any", [{"name": "gpu-3", "count": 1}])
    assert (fewer["kind"], fewer["settings"]) == ("set", [{"key": "rollout.canaries", "value": "1"}])


def test_a_token_is_not_in_it_even_after_a_newline() -> None:
    token = "hf_" + "a" * 30
    found = Field(path=("data",), before=f"\n{token}", after=f"\n{token}b")
    text = as_json(report(job(group("chat", "in-place", fields=(found,)))))
    assert "aaaa" not in text
    assert json.loads(text)["environments"][0]["jobs"][0]["groups"][0]["fields"][0]["hidden"]


@given(reports)
def test_it_reads_back_as_the_same_report_and_keeps_the_schema(found: Report) -> None:
    text = as_json(found)
    assert msgspec.json.decode(text, type=Report) == without_tokens(found)
    Draft202012Validator(schema()).validate(json.loads(text))
