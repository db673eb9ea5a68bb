"""Where something is wrong in an environment, and what is wrong: values, not prints."""

from collections.abc import Iterable
from typing import NamedTuple

Path = tuple[str | int, ...]


class Mark(NamedTuple):
    """A place in a source: 1-based line and column; line 0 for a source without lines (`--set`)."""

    source: str
    line: int = 0
    column: int = 0

    @classmethod
    def at(cls, source: str, text: str, offset: int) -> "Mark":
        """The place of a character of a text, by its offset."""
        return cls(source, text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Problem(NamedTuple):
    """One error: the place, the key's path (empty for the file as a whole), and a sentence."""

    mark: Mark
    path: Path
    message: str

    def __str__(self) -> str:
        place, path = str(self.mark), dotted(self.path)
        if path and not place.endswith(f" {path}"):  # `--set` has said it already
            place += f": {path}"
        return f"{place}: {self.message}"


class InvalidEnvironmentError(Exception):
    """An environment that cannot be used; carries every problem that was found, in reading order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        # What `defaults` says is wrong in every model that inherits it; one line is enough.
        once = {(problem.mark, problem.message): problem for problem in reversed(list(problems))}
        self.problems = [once[place] for place in sorted(once)]
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Path) -> str:
    """Write a path as a person types it: `models.chat.constraints[0].value`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
