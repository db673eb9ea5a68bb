"""docs/environment.md: every key of an environment, from the schema."""

from typing import Any

_INTRO = """\
# The environment file

One file per environment, `envs/NAME.yaml`. This page is made from the types
(`vllmjobs schema --format markdown`); `vllmjobs schema` prints the same as a JSON Schema for editors.

- `envs/every-key.yaml` of the project's repository has every key in one file, each below its description.
- `extends: base.yaml` lays this file over another: maps merge deeply, lists and values replace.
- `defaults:` holds what every model starts from; a model merges over it in the same way.
- `--set models.chat.replicas=3` lays one value over all of that.
- YAML 1.2: `no`, `on` and `12:30` are strings. Anchors, aliases and `<<` work; a key given twice, or one
  that is not on this page, is an error.
"""


def reference(schema: dict[str, Any]) -> str:
    """Return the reference as a Markdown page: a table for each block, in the order in which they are met."""
    definitions = schema["$defs"]
    order, queue = [], ["Environment"]
    while queue:
        name = queue.pop(0)
        if name not in order:
            order.append(name)
            queue += _mentioned(definitions[name])
    inherited = set(definitions["ModelDefaults"]["properties"])
    sections = []
    for name in order:
        rows = [
            _row(key, described, key in definitions[name].get("required", []))
            for key, described in definitions[name]["properties"].items()
            if name != "Model" or key not in inherited
        ]
        note = "Every key of [defaults](#modeldefaults), and:\n\n" if name == "Model" else ""
        head = "| key | type | default | |\n|---|---|---|---|\n"
        sections.append(f"## {name}\n\n{definitions[name]['description']}\n\n{note}{head}{''.join(rows)}")
    return "\n".join([_INTRO, *sections])


def _row(key: str, described: dict[str, Any], required: bool) -> str:
    default = described.get("default")
    plain = isinstance(default, str | int | float) and not isinstance(default, bool)
    shown = "**required**" if required else f"`{default}`" if plain and default != "" else ""
    shown = f"`{str(default).lower()}`" if isinstance(default, bool) else shown
    text = described.get("description", "")
    examples = "; ".join(f"`{_code(example)}`" for example in described.get("examples", []))
    text += f" Example: {examples}" if examples else ""
    return f"| `{key}` | {_type(described)} | {shown} | {text.replace('|', chr(92) + '|')} |\n"


def _type(described: dict[str, Any]) -> str:
    if "$ref" in described:
        name = described["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "allOf" in described:
        return _type(described["allOf"][0])
    if "anyOf" in described:
        kinds = [_type(kind) for kind in described["anyOf"] if kind.get("type") != "null"]
        return "any" if len(kinds) > 3 else " or ".join(kinds)
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in described["enum"])
    kind = described.get("title") or described.get("type", "any")
    if kind == "array":
        return f"list of {_type(described['items'])}" if "items" in described else "list"
    if kind == "object":
        values = described.get("additionalProperties")
        return f"map of {_type(values)}" if values else "map"
    low, high = described.get("minimum"), described.get("maximum")
    if low is not None:
        kind += f", {low} to {high}" if high is not None else f", from {low}"
    return str(kind)


def _mentioned(described: Any) -> list[str]:
    """Return the names of the blocks that a schema refers to, in order."""
    if isinstance(described, dict):
        own = [described["$ref"].rpartition("/")[2]] if "$ref" in described else []
        return own + [name for value in described.values() for name in _mentioned(value)]
    return [name for item in described for name in _mentioned(item)] if isinstance(described, list) else []


def _code(example: object) -> str:
    if isinstance(example, dict):
        return "{" + ", ".join(f"{key}: {_code(value)}" for key, value in example.items()) + "}"
    if isinstance(example, list):
        return "[" + ", ".join(map(_code, example)) + "]"
    return str(example).lower() if isinstance(example, bool) else str(example)
