"""`# vllmjobs: ignore VJ104 REASON`: findings that the file itself says are to be passed over."""

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

import yaml

from vllmjobs.environment.problems import INVALID, Mark, Problem
from vllmjobs.environment.tree import LOADER

IGNORED = "VJ002"
_COMMENT = re.compile(r"#\s*vllmjobs:\s*ignore\b[ \t]*((?:VJ\d+\b[,\s]*)*)(.*)$", re.IGNORECASE)


class _Comment(NamedTuple):
    """A comment that asks to ignore rules, and the line that it is about."""

    mark: Mark
    line: int  # the line that it is for: its own, or the next one with something on it
    rules: list[str]
    reason: str


def without_ignored(problems: list[Problem], texts: dict[str, str], known: Collection[str]) -> list[Problem]:
    """Return the problems without those that a comment on their line, or alone above it, passes over.

    Without a reason it passes over nothing, and is itself a problem, as is a rule that is not `known`. No
    comment passes over what cannot be read as an environment (VJ001).
    """
    comments = [comment for source, text in texts.items() for comment in _comments(source, text)]
    ignored = {
        (comment.mark.source, comment.line, rule)
        for comment in comments
        if comment.reason
        for rule in comment.rules
    }
    complaints = [problem for comment in comments for problem in _complaints(comment, known)]
    return complaints + [
        problem
        for problem in problems
        if problem.rule == INVALID or (problem.mark.source, problem.mark.line, problem.rule) not in ignored
    ]


def _comments(source: str, text: str) -> Iterator[_Comment]:
    if "vllmjobs:" not in text.lower():
        return
    strings = list(_strings(text))
    lines = text.split("\n")
    start = 0
    for number, line in enumerate(lines, 1):
        comment = _COMMENT.search(line)
        at, start = start + (comment.start() if comment else 0), start + len(line) + 1
        if not comment or any(begin <= at < end for begin, end in strings):
            continue
        rules = re.findall(r"VJ\d+", comment[1].upper())
        mark = Mark(source, number, comment.start() + 1)
        yield _Comment(mark, _about(lines, number), rules, comment[2].strip())


def _about(lines: list[str], number: int) -> int:
    """Return the line that a comment is for: the next that holds something, where it stands alone."""
    if not _is_remark(lines[number - 1]):
        return number
    below = (after for after, line in enumerate(lines[number:], number + 1) if not _is_remark(line))
    return next(below, number)


def _is_remark(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _strings(text: str) -> Iterator[tuple[int, int]]:
    """Return the beginning and end of each scalar of a YAML text, in which nothing is a comment."""
    try:
        for token in yaml.scan(text, Loader=LOADER):
            if isinstance(token, yaml.ScalarToken):
                yield token.start_mark.index, token.end_mark.index
    except yaml.YAMLError:  # said by who reads it
        return


def _complaints(comment: _Comment, known: Collection[str]) -> Iterator[Problem]:
    def problem(message: str) -> Problem:
        return Problem(comment.mark, (), message, IGNORED, "warning")

    for unknown in [rule for rule in comment.rules if rule not in known]:
        yield problem(f"{unknown} is no rule that can be ignored; `vllmjobs explain` lists them")
    if not comment.rules:
        yield problem("the comment names no rule; write `# vllmjobs: ignore VJ104 REASON`")
    elif not comment.reason:
        rules = ", ".join(comment.rules)
        yield problem(f"the comment gives no reason; write `# vllmjobs: ignore {rules} REASON`")
