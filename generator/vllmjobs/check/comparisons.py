"""Values that Nomad's operators refuse, or with which a comparison can never be true."""

import re

from vllmjobs.check.rule import Findings
from vllmjobs.environment.problems import Path

WITHOUT_VALUE = ("is_set", "is_not_set")
_IDENTIFIERS = r"[0-9A-Za-z~-]+(\.[0-9A-Za-z~-]+)*"
_NUMBER = r"v?\d+(\.\d+)*"
# What hashicorp/go-version reads (VersionRegexpRaw, SemverRegexpRaw): a word may follow without a dash only
# in the first, and the second has no `~>`.
_VERSION = rf"{_NUMBER}(-\d+{_IDENTIFIERS}?|-?[A-Za-z~-]+(\.?[0-9A-Za-z~-]+)*)?(\+{_IDENTIFIERS})?"
_SEMVER = rf"{_NUMBER}(-{_IDENTIFIERS})?(\+{_IDENTIFIERS})?"
VERSIONS = {
    "version": rf"\s*(=|!=|>=|<=|>|<|~>)?\s*{_VERSION}\s*",
    "semver": rf"\s*(=|!=|>=|<=|>|<)?\s*{_SEMVER}\s*",
}
# Of Python's expressions, what Go's (RE2) do not have: lookarounds, back-references, comments, possessives.
_NOT_IN_RE2 = r"\(\?(=|!|<=|<!|>|#|P=|\(|[a-z]*x)|[*+?}]\+"
_ESCAPES_NOT_IN_RE2 = r"\\([1-9]|Z|u)"
_ESCAPE = r"(?s:\\.)"
_CLASS = r"\[\^?\]?(\[:\w+:\]|[^\]])*\]"


def compare(operator: str, value: str, at: Path) -> Findings:
    """Yield what is wrong with the right-hand side of a constraint or affinity at `at`."""
    if operator in WITHOUT_VALUE:
        if value:
            yield (*at, "value"), f"operator {operator} takes no value"
    elif operator == "distinct_property":
        if value and not re.fullmatch("0*[1-9][0-9]{0,8}", value):
            yield (*at, "value"), f"must be how many allocations may share the property (got {value!r})"
    elif operator == "distinct_hosts":
        if value.lower() not in ("", "true", "false", "t", "f", "1", "0"):
            yield (*at, "value"), f"must be true or false (got {value!r})"
    elif not value:
        yield at, f"operator {operator} needs a value"
    elif operator in VERSIONS:
        if not all(re.fullmatch(VERSIONS[operator], part) for part in value.split(",")):
            yield (*at, "value"), f'must be a {operator} constraint, such as ">= 550.54" (got {value!r})'
    elif operator == "regexp":
        yield from _regexp(value, (*at, "value"))


def weight(value: int, at: Path) -> Findings:
    """Yield a weight without effect."""
    if value == 0:
        yield at, "weight 0 has no effect; Nomad refuses it"


def _regexp(value: str, at: Path) -> Findings:
    """Return what RE2 surely refuses; on the rest Nomad has the last word."""
    escapes = "".join(re.findall(_ESCAPE, value))
    plain = re.sub(_CLASS, "c", re.sub(_ESCAPE, "e", value))
    if re.search(_NOT_IN_RE2, plain) or re.search(_ESCAPES_NOT_IN_RE2, escapes):
        yield (
            at,
            "holds what Nomad's regular expressions (RE2) lack: a lookaround, a back-reference or the like",
        )
    elif plain.count("(") != plain.count(")"):
        yield at, "is no regular expression: its parentheses do not match"
    elif re.match(r"[*+?]|.*\([*+?]", plain.replace("(?", "(")) and not plain.startswith("(?"):
        yield at, "is no regular expression: it repeats nothing"
    elif "[" in plain:
        yield at, "is no regular expression: a [ is not closed"
