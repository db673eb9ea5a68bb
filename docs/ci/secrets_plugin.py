"""The shapes and names of secrets that `vllmjobs check` knows, as a plugin of detect-secrets."""

from collections.abc import Generator
from pathlib import PurePath
from typing import Any

from detect_secrets.core.potential_secret import PotentialSecret
from detect_secrets.plugins.base import BasePlugin

from vllmjobs.environment.secrets import found

# The ends of names of programs, in which `token=token` is no secret: there, only the shapes count.
PROGRAMS = {
    f".{end}" for end in ("c", "cc", "cpp", "go", "h", "java", "js", "kt", "php", "py", "rb", "rs", "ts")
}


class VllmjobsDetector(BasePlugin):
    """A detector of what `vllmjobs check` refuses in an environment, for any file."""

    secret_type = "Secret known to vllmjobs"  # pragma: allowlist secret
    _by_name = True

    def analyze_line(
        self, filename: str, line: str, line_number: int = 0, context: Any = None, **kwargs: Any
    ) -> set[PotentialSecret]:
        """Return the secrets of a line; detect-secrets gives what the parameters name."""
        self._by_name = PurePath(filename).suffix not in PROGRAMS
        return super().analyze_line(filename, line, line_number, context=context, **kwargs)

    def analyze_string(self, string: str) -> Generator[str, None, None]:
        """Yield the secrets of a line."""
        yield from found(string, self._by_name)
