"""The other side of a comparison: a commit, another environment, or a job as HCL; and what differs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.model import EnvironmentChange
from vllmjobs.environment.load import Files, contents, load_file
from vllmjobs.environment.problems import InvalidEnvironmentError, UserError
from vllmjobs.project.differences import differences, findings
from vllmjobs.project.environments import Checked, accepted, checked, environment_file, environments
from vllmjobs.project.git import Commit, GitError
from vllmjobs.project.templates import rendered, templates
from vllmjobs.render.job import RenderError, Templates

ENVIRONMENTS = (".yaml", ".yml")
JOBS = (".hcl", ".nomad")


class Against(NamedTuple):
    """The other side: a commit, in which each environment is compared with itself, or one file for all."""

    name: str
    templates: Templates
    commit: Commit | None = None
    file: Path | None = None


def against(name: str, project: Path) -> Against:
    """Return what `--against NAME` means: the file of that name, the environment, or else the commit.

    Raises `UserError` for what is an environment and a commit, and for what is none of the three.
    """
    if Path(name).suffix in (*ENVIRONMENTS, *JOBS):
        return Against(name, templates(project), file=Path(name))
    file = environment_file(project, name)
    is_environment = file.suffix in ENVIRONMENTS and file.is_file()
    try:
        commit = Commit(name, project)
    except GitError as error:
        if is_environment:
            return Against(name, templates(project), file=file)
        raise UserError(
            f"--against {name}: {error}; it must be a commit that this clone has (a shallow one has few), an "
            f"environment of {project / 'envs'}/, or a file (.yaml, .hcl)"
        ) from error
    if is_environment:
        raise UserError(f"--against {name} names a commit and an environment; write heads/{name} or {file}")
    return Against(name, templates(project, commit.read), commit)


def environments_of_both(project: Path, other: Against) -> list[Path]:
    """Return every environment of the project, on this side or the other."""
    here = environments(project)
    there = environments(project, other.commit) if other.commit else []
    return sorted({*here, *there})


def environment_changes(
    paths: Sequence[Path], settings: Sequence[str], project: Path, other: Against
) -> list[EnvironmentChange]:
    """Return what differs in the jobs of each environment; `settings` are for this side only.

    Raises `InvalidEnvironmentError` with all errors of this side, and `UserError` for another side that
    cannot be rendered.
    """
    ours = templates(project)
    renamed = _renamed(project, other, ours)
    now = {there: path for path, there in renamed.items()}
    paths = list(dict.fromkeys(now.get(path, path) for path in paths))
    here = [path for path in paths if path.exists() or not (other.commit and other.commit.has(path))]
    results = dict(zip(here, checked(here, settings, project), strict=True))
    errors = [problem for one in results.values() for problem in one.problems if problem.severity == "error"]
    if errors:
        raise InvalidEnvironmentError(errors)
    return [_changes(path, results.get(path), ours, other, renamed.get(path, path)) for path in paths]


def _changes(
    path: Path, result: Checked | None, ours: Templates, other: Against, there: Path
) -> EnvironmentChange:
    """Return what differs in the jobs of an environment, whose file is `there` in the other commit."""
    after = rendered(accepted(result), ours) if result else {}
    before = _before(there, other)
    if other.file and other.file.suffix in JOBS:
        wanted = read(before[""], other.name).id  # else it is compared with the models' job
        name = next((name for name, text in after.items() if read(text, name).id == wanted), "vllm")
        before, after = {name: before[""]}, {name: after[name]}
    return EnvironmentChange(
        name=path.stem,
        against=other.name,
        jobs=differences(before, after, other.file is not None, f"{other.name}:"),
        findings=findings(result) if result else (),
    )


def _renamed(project: Path, other: Against, ours: Templates) -> dict[Path, Path]:
    """Return environments with another file name in the other commit, lest their job be called gone."""
    if not other.commit or all(path.exists() for path in other.commit.files(project / "envs")):
        return {}
    old = [path for path in environments(project, other.commit) if not path.exists()]
    new = [path for path in environments(project) if not other.commit.has(path)] if old else []
    before = {_job(path, other.commit.read, other.templates): path for path in old} if new else {}
    after = {path: _job(path, contents, ours) for path in new}
    return {path: before[job] for path, job in after.items() if job and job in before}


def _job(path: Path, files: Files, sources: Templates) -> tuple[str, str] | None:
    environment, _, _, problems, _ = load_file(path, (), files)
    if environment is None or problems:
        return None
    try:
        job = read(rendered(environment, sources, "vllm")["vllm"], str(path))
    except UserError:  # reported when it is compared
        return None
    return job.id, str(job.tree.get("namespace"))


def _before(path: Path, other: Against) -> dict[str, str]:
    """Return the jobs of the other side; a file with one job has no name for it."""
    if other.commit:
        is_there = other.commit.has(path)
        return _rendered(path, other, other.commit.read, f"{other.name}:") if is_there else {}
    assert other.file
    if other.file.suffix in JOBS:
        try:
            return {"": contents(other.file).decode()}
        except UnicodeDecodeError as error:
            raise UserError(f"{other.file}: byte {error.start} is not valid UTF-8") from error
    return _rendered(other.file, other, contents, "")


def _rendered(path: Path, other: Against, files: Files, name: str) -> dict[str, str]:
    """Return the jobs of the other side, whatever the rules of `check` find in them."""
    environment, _, _, problems, _ = load_file(path, (), lambda file: files(file).replace(b"\r\n", b"\n"))
    if environment is None or problems:
        errors = (f"{name}{problem}" for problem in problems)
        raise UserError(*errors, "this leaves nothing to compare with; name another side with --against")
    try:
        return rendered(environment, other.templates)
    except RenderError as error:
        raise UserError(f"{name}{error}") from error
