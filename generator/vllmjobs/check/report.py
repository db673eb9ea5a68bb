"""Findings as people, editors and forges read them."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from vllmjobs.check.check import NAMES, SEVERITIES
from vllmjobs.environment.problems import Problem, dotted
from vllmjobs.environment.secrets import follows_option, hidden
from vllmjobs.text.english import counted
from vllmjobs.text.visible import visible

JSON_VERSION = 1
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MAX_LINE = 200
ABOUT_SECRETS = ("VJ113", "VJ501", "VJ502")  # what they are about is never quoted
_ITEM = r"""\s*-\s+["']?([^\s"']+)"""
# Values in a line that is about something else: `env: {A: b}`, `api-key: x`, or `API_KEY: x` gone astray.
_HIDDEN = re.compile(
    r"(?i)(\b(?:env|secrets):|(?:token|key|secret|passw(?:or)?d|pass|pw|credentials?)s?[\"']?\s*[:=])"
    r"(?!\s*(?:[\d.]+|true|false|null)\b)\s*\S.*"
)


def as_text(problems: Iterable[Problem], texts: dict[str, str]) -> str:
    """Return each finding with its line of the file, and a caret below the place."""
    lines = {source: text.splitlines() for source, text in texts.items()}
    return "".join(f"{problem}\n{_excerpt(problem, lines)}" for problem in problems)


def summary(problems: list[Problem], files: int) -> str:
    """Return a summary such as `2 errors, 1 warning in 3 environments`."""
    counts = Counter(problem.severity for problem in problems)
    parts = [counted(counts[one], one) for one in ("error", "warning", "note") if counts[one]]
    return f"{', '.join(parts) or 'nothing found'} in {counted(files, 'environment')}"


def rules() -> str:
    """Return every rule, a line each: id, severity, name."""
    return "".join(f"{rule}  {SEVERITIES[rule]:<7}  {NAMES[rule]}\n" for rule in sorted(NAMES))


def as_json(problems: Iterable[Problem], environments: list[str]) -> str:
    """Return `{version, environments: [file], findings: [finding]}`, the keys of a finding as written below.

    `line` and `column` are null for what was given by `--set` and for a file as a whole.
    """
    findings = [
        {
            "rule": problem.rule,
            "name": NAMES[problem.rule],
            "severity": problem.severity,
            "file": problem.mark.source,
            "line": problem.mark.line or None,
            "column": problem.mark.column or None,
            "path": dotted(problem.path),
            "message": problem.message,
        }
        for problem in problems
    ]
    return _json({"version": JSON_VERSION, "environments": environments, "findings": findings})


def as_sarif(problems: Iterable[Problem], version: str) -> str:
    """Return SARIF 2.1.0, as GitHub's code scanning and other viewers take it."""
    rules = sorted(NAMES)
    driver = {
        "name": "vllmjobs",
        "version": version,
        "rules": [
            {
                "id": rule,
                "name": NAMES[rule],
                "shortDescription": {"text": NAMES[rule].replace("-", " ")},
                "defaultConfiguration": {"level": SEVERITIES[rule]},
            }
            for rule in rules
        ],
    }
    results = [
        {
            "ruleId": problem.rule,
            "ruleIndex": rules.index(problem.rule),
            "level": problem.severity,
            "message": {"text": _sentence(problem)},
            "locations": [_location(problem)],
        }
        for problem in problems
    ]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return _json({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})


def as_github(problems: Iterable[Problem]) -> str:
    """Return workflow commands, which GitHub shows as annotations of the lines of a pull request.

    https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    lines = []
    for problem in problems:
        mark, level = problem.mark, {"note": "notice"}.get(problem.severity, problem.severity)
        places: dict[str, object] = {} if mark.source.startswith("--set") else {"file": mark.source}
        places |= {"line": mark.line, "col": mark.column} if mark.line else {}
        places["title"] = f"{problem.rule} {NAMES[problem.rule]}"
        properties = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in places.items())
        lines.append(f"::{level} {properties}::{_escaped(_sentence(problem))}\n")
    return "".join(lines)


def _excerpt(problem: Problem, texts: dict[str, list[str]]) -> str:
    mark, lines = problem.mark, texts.get(problem.mark.source, [])
    if not 0 < mark.line <= len(lines):
        return ""
    line = _shown(lines[mark.line - 1], problem, lines[mark.line - 2] if mark.line > 1 else "")[:MAX_LINE]
    before = " " * len(visible(line[: mark.column - 1]))
    return f"{mark.line:>6} | {visible(line)}\n{'':>6} | {before}^\n"


def _shown(line: str, problem: Problem, above: str) -> str:
    """Return the line, less what may be a secret: values of variables, and whatever looks like one.

    `above` is the line before it: of a list, an option that takes a secret may stand there.
    """
    item, option = (one[1] if (one := re.match(_ITEM, text)) else "" for text in (line, above))
    if item and follows_option(option, item):
        return line[: line.index("-") + 1] + " …"
    if {"env", "secrets"} & set(problem.path) or problem.rule in ABOUT_SECRETS:
        key = re.match(r"[\w\"'-]+(?=\s*:)", line[problem.mark.column - 1 :])
        return " " * (problem.mark.column - 1) + (f"{key[0]}: …" if key else "…")
    return hidden(_HIDDEN.sub(r"\1 …", line), "…")


def _location(problem: Problem) -> dict[str, Any]:
    mark = problem.mark
    if not mark.line and mark.source.startswith("--set"):
        return {"logicalLocations": [{"fullyQualifiedName": mark.source}]}
    uri = ("file://" if mark.source.startswith("/") else "") + quote(mark.source)
    region = {"startLine": mark.line or 1, "startColumn": mark.column or 1}  # forges need one
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}


def _sentence(problem: Problem) -> str:
    path = dotted(problem.path)
    return f"{path}: {problem.message}" if path else problem.message


def _escaped(text: str, also: str = "") -> str:
    for character in f"%\r\n{also}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
