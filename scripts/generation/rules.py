"""The index of the rules of check, from what each rule says that it finds."""

from itertools import groupby
from pathlib import Path

from generation.page import with_part
from vllmjobs.check.check import OTHERS, RULES

PAGE = "docs/rules/README.md"
SECTIONS = {
    "VJ0": "The file",
    "VJ1": "Arguments",
    "VJ2": "Memory and shape",
    "VJ3": "Nomad",
    "VJ4": "Balancing",
    "VJ5": "Security",
}
"""The heading of each hundred of rules."""


def files(root: Path) -> dict[str, str]:
    """Return the page of the rules, with a table for each hundred of them."""
    rules = sorted((*OTHERS, *RULES), key=lambda rule: rule.id)
    parts = []
    for hundred, group in groupby(rules, key=lambda rule: rule.id[:3]):
        rows = [
            f"| [{rule.id}]({rule.id}.md) {rule.name} | {rule.severity} | {rule.finds} |" for rule in group
        ]
        head = ["| rule | severity | finds |", "|---|---|---|"]
        parts.append("\n".join([f"## {SECTIONS[hundred]}", "", *head, *rows]))
    return {PAGE: with_part(root / PAGE, "rules", "\n\n".join(parts))}
