"""The environments of a project at an earlier commit, and what a change since then does to their groups."""

from pathlib import Path

from vllmjobs.check.subject import Before
from vllmjobs.environment.load import load_file
from vllmjobs.environment.model import Environment
from vllmjobs.project.differences import differences
from vllmjobs.project.git import Commit
from vllmjobs.project.jobs import rendered
from vllmjobs.project.templates import templates


class Earlier:
    """The project as a commit has it: its environments, and its templates."""

    def __init__(self, commit: Commit, project: Path) -> None:
        self._commit = commit
        self._then, self._now = templates(project, commit.read), templates(project)

    def environment(self, path: Path) -> Environment | None:
        """Return the environment of a file as it was; None where it was not, or cannot be read."""
        return load_file(path, (), self._commit.read).environment

    def before(self, was: Environment, now: Environment) -> Before:
        """Return what the checks of a change are to know: the environment before, and its groups' changes."""
        jobs = differences(rendered(was, self._then, "vllm"), rendered(now, self._now, "vllm"))
        return Before(was, {group.name: group for job in jobs for group in job.groups})
