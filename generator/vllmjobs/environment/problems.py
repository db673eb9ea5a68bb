"""Problems of an environment as values: the place, and what is wrong there."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from vllmjobs.environment.secrets import without_secrets
from vllmjobs.text.visible import visible

KeyPath = tuple[str | int, ...]
Severity = Literal["error", "warning", "note"]
INVALID = "VJ001"  # the rule that every file breaks which cannot be read as an environment


class Mark(NamedTuple):
    """A place in a source: 1-based line and column; line 0 for a source without lines (`--set`)."""

    source: str
    line: int = 0
    column: int = 0

    @classmethod
    def at(cls, source: str, text: str, offset: int) -> "Mark":
        """Return the place of a character of a text, by its offset."""
        return cls(source, text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Problem(NamedTuple):
    """One thing that is wrong: the place, the key's path (empty for the file as a whole), and a sentence."""

    mark: Mark
    path: KeyPath
    message: str
    rule: str = INVALID
    severity: Severity = "error"

    def __str__(self) -> str:
        parts = [str(self.mark)]
        if self.severity != "error":
            parts.append(self.severity)
        path = dotted(self.path)
        if path and not parts[0].endswith(f" {path}"):  # `--set` has said it already
            parts.append(path)
        rule = "" if self.rule == INVALID else f" [{self.rule}]"
        return visible(without_secrets(": ".join([*parts, self.message]) + rule))


class UserError(Exception):
    """An error that a person can mend, in words for them: the command line prints it, and no traceback.

    Each argument is one line of the text, whatever it quotes.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(visible(without_secrets(str(line))) for line in self.args)


class InvalidEnvironmentError(UserError):
    """An environment that cannot be used; carries every problem that was found, in reading order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = in_order(problems)
        super().__init__(*self.problems)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems in reading order, each once: what `defaults` says is wrong in every model."""
    once = {(problem.mark, problem.message): problem for problem in reversed(list(problems))}
    return [once[place] for place in sorted(once)]


def dotted(path: KeyPath) -> str:
    """Write a path as a person types it: `models.chat.constraints[0].value`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
