"""The arguments of a command line, as the rules about them see it."""

from collections.abc import Callable, Iterator
from typing import Any

from vllmjobs.vllm.arguments.parser import Mistake
from vllmjobs.vllm.arguments.tables import Table

Rule = Callable[["Arguments"], Iterator[Mistake]]


class Arguments:
    """The arguments that were given, over vLLM's defaults."""

    def __init__(self, table: Table, values: dict[str, Any]) -> None:
        self.table = table
        self.values = values

    def __getitem__(self, dest: str) -> Any:
        flag = self.table.by_dest.get(dest)
        return self.values.get(dest, flag.default if flag else None)

    def key(self, dest: str, key: str) -> Any:
        """Return a key of a JSON option; None where it was not given."""
        return (self.values.get(dest) or {}).get(key)


def conflict(flag: str, message: str) -> Mistake:
    """Return arguments that are each right, and wrong together."""
    return Mistake(flag, "conflict", message)
