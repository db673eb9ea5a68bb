"""A template is text: whoever wrote it, of whichever commit, it reads what it is given and runs nothing."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vllmjobs.cli import main
from vllmjobs.environment.load import load_file
from vllmjobs.project.shipped import shipped
from vllmjobs.project.templates import templates
from vllmjobs.render import job

TOKEN = "the-token-of-whoever-looks"
RUNS = 'os.system("touch PWNED; env >PWNED")'
# Known ways out of Jinja: of its globals, of Python's objects, of strings' format, and into Jinja itself.
WAYS_OUT = {
    "cycler": f"[[ cycler.__init__.__globals__.{RUNS} ]]",
    "joiner": f"[[ joiner.__init__.__globals__.{RUNS} ]]",
    "namespace": f"[[ namespace.__init__.__globals__.{RUNS} ]]",
    "lipsum": f"[[ lipsum.__globals__.{RUNS} ]]",
    "lipsum, by item": f"[[ lipsum['__globals__']['os']{RUNS[2:]} ]]",
    "dict's subclasses": "[[ dict.mro()[-1].__subclasses__() ]]",
    "a string's class": "[[ ''.__class__.__mro__[1].__subclasses__() ]]",
    "a string's class, spelt": "[[ ''['\\x5f\\x5fclass\\x5f\\x5f'].mro() ]]",
    "an attribute by filter": "[[ ''|attr('__class__')|attr('__mro__') ]]",
    "an attribute by filter, spelt": "[[ ''|attr('\\x5f_class_\\x5f') ]]",
    "an attribute by map": "[[ ['']|map(attribute='__class__')|first ]]",
    "an attribute by map, deeper": "[[ [environment]|map(attribute='job.__class__.__mro__')|list ]]",
    "an attribute by sum": "[[ [cycler]|sum(attribute='__init__.__globals__') ]]",
    "an attribute by select": "[[ [cycler]|selectattr('__init__.__globals__')|list ]]",
    "an attribute by sort": "[[ ['', '']|sort(attribute='__class__.__name__.__doc__') ]]",
    "an attribute by group": "[[ (['']|groupby('__class__')|first).grouper ]]",
    "an attribute by unique": "[[ ['']|unique(attribute='__class__')|list ]]",
    "format": "[[ '{0.__class__}'.format(environment) ]]",
    "format by filter": "[[ ('{0.__class__}'|attr('format'))(environment) ]]",
    "format by map": "[[ ['{0.__class__}']|map('attr', 'format')|first(environment) ]]",
    "format, handed on": "[% set f = '{0.__class__}'.format %][[ f(environment) ]]",
    "format_map": "[[ '{a.__class__}'.format_map({'a': environment}) ]]",
    "the environment's class": "[[ environment.__class__.__init__ ]]",
    "a value's class": "[[ groups[0].model.__struct_config__ ]]",
    "a named tuple's maker": "[[ groups[0].deadlines._replace(pull=1) ]]",
    "the template itself": f"[[ self._TemplateReference__context.environment.{RUNS} ]]",
    "the template's function": f"[[ self.__init__.__globals__.{RUNS} ]]",
    "a macro": f"[% macro m() %][% endmacro %][[ m.__init__.__globals__.{RUNS} ]]",
    "a macro's function": "[% macro m() %][% endmacro %][[ m._func ]]",
    "a macro's environment": "[% macro m() %][% endmacro %][[ m._environment.loader ]]",
    "a macro's arguments": "[% macro m() %][[ varargs.__class__ ]][% endmacro %][[ m(1) ]]",
    "a caller": "[% macro m() %][[ caller.__globals__ ]][% endmacro %][% call m() %][% endcall %]",
    "a loop": f"[% for x in [1] %][[ loop.__init__.__globals__.{RUNS} ]][% endfor %]",
    "a loop's iterator": "[% for x in [1] %][[ loop._iterator ]][% endfor %]",
    "an undefined name": f"[[ nothing.__init__.__globals__.{RUNS} ]]",
    "an undefined name's message": "[[ nothing._fail_with_undefined_error() ]]",
    "a generator": "[[ ([1]|map('string')).gi_frame.f_builtins ]]",
    "a generator's code": "[[ ([1]|map('string')).gi_code ]]",
    "a module of templates": '[% import "placement.hcl.j2" as p %][[ p._body_stream ]]',
    "a module's macro": '[% from "placement.hcl.j2" import placement %][[ placement.__call__.__globals__ ]]',
    "a method of a string": "[[ ''.join.__self__.__class__ ]]",
    "a builtin": "[[ range.__init__.__objclass__ ]]",
    "a list that is changed": "[[ groups.clear() ]]",
    "a map that is changed": "[[ environment.models.update({}) ]]",
    "a field that is set": "[% set environment.job = 'another' %]",
    "a line statement of Python": f"[[ __import__('os').{RUNS[3:]} ]]",
    "an include from above": '[% include "../envs/dev.yaml" %]',
    "an include from the root": '[% include "/etc/passwd" %]',
    "an include of a computed name": '[% include "x/" ~ ".." ~ "/../envs/dev.yaml" %]',
    "an import from above": '[% import "../envs/dev.yaml" as x %]',
    "a parent from above": '[% extends "../envs/dev.yaml" %]',
}  # fmt: skip


class Project:
    """A repository whose branch `evil` has a template that somebody else wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-qb", "main")
        (folder / "envs").mkdir()
        (folder / "envs/dev.yaml").write_text("models: {chat: {model: a, image: 'b:1'}}\n")
        self.commit()

    def git(self, *arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        subprocess.run(["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "one", "--allow-empty")

    def template(self, text: str, name: str = "vllm.nomad.hcl.j2") -> None:
        (self.folder / "jobs").mkdir(exist_ok=True)
        (self.folder / "jobs" / name).write_text(text)

    def run(self, *arguments: str) -> Result:
        done = CliRunner().invoke(main, [*arguments, "--project", str(self.folder)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("NOMAD_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.mark.parametrize("way", WAYS_OUT)
def test_no_way_leads_out_of_a_template(way: str, project: Project) -> None:
    """It is the same for what is rendered, and for a commit that is only looked at."""
    project.git("switch", "-qc", "evil")
    project.template(WAYS_OUT[way] + "\n")
    project.commit()
    rendered = project.run("render", "dev")
    project.git("switch", "-q", "main")
    seen = [rendered, project.run("diff", "--against", "evil"), project.run("check", "--against", "evil")]
    assert [one.exit_code for one in seen[:2]] == [1, 1]
    for one in seen[:2]:
        assert "jobs/vllm.nomad.hcl.j2:1: " in one.stderr
    for one in seen:
        assert not (project.folder / "PWNED").exists()
        assert TOKEN not in one.output
        assert "root:x:0" not in one.output


def test_a_template_that_leaves_its_sandbox_is_told_what_it_may_do(project: Project) -> None:
    project.template("job {\n[[ cycler.__init__ ]]\n}\n")
    assert project.run("render", "dev").stderr == (
        f"{project.folder}/jobs/vllm.nomad.hcl.j2:2: access to attribute '__init__' of 'type' object is "
        "unsafe: a template reads values, runs nothing and changes nothing\n"
    )


@pytest.mark.parametrize("target", ["/etc/passwd", "../.env", "../envs/dev.yaml"])
def test_a_link_in_jobs_does_not_lead_out_of_it(target: str, project: Project) -> None:
    (project.folder / ".env").write_text(f"NOMAD_TOKEN={TOKEN}\n")
    project.template('[% include "more.j2" %]')
    (project.folder / "jobs/more.j2").symlink_to(target)
    done = project.run("render", "dev")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "jobs/more.j2 is a link that leads out of jobs/; put the file itself there" in done.stderr


def test_a_folder_of_templates_that_is_a_link_out_of_the_project_is_refused(project: Project) -> None:
    (project.folder / "jobs").symlink_to("/etc")
    (project.folder / "envs/dev.yaml").write_text("models: {chat: {model: a}}\n")
    assert project.run("render", "dev").exit_code == 0  # /etc has no template, so the shipped one is taken
    other = project.folder / "other"
    other.mkdir()
    (other / "vllm.nomad.hcl.j2").write_text("job {}\n")
    (project.folder / "jobs").unlink()
    (project.folder / "jobs").symlink_to(other)
    assert "leads out of jobs/" in project.run("render", "dev").stderr


def values(of: Any) -> Iterator[Any]:
    """Everything that a template gets hold of by public attributes and items."""
    yield of
    if isinstance(of, dict):
        inner = [*of, *of.values()]
    elif isinstance(of, list | tuple):
        inner = list(of)
    elif isinstance(of, str):
        return
    else:
        inner = [getattr(of, name) for name in dir(of) if not name.startswith("_")]
        inner = [one for one in inner if not callable(one)] if isinstance(of, int | float) else inner
    for one in inner:
        yield from values(one) if not isinstance(of, int | float) else ()


def test_what_a_template_is_given_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """No function stands among the values, so that nothing of ours is called but filters."""
    given: list[Any] = []

    def filled(_name: str, context: dict[str, Any], _templates: job.Templates) -> str:
        given.append(context)
        return ""

    monkeypatch.setattr(job, "_filled", filled)
    for kind in ("fabio", "nginx"):
        path, settings = shipped("envs") / "every-key.yaml", [f"balancer.kind={kind}"]
        environment = load_file(path, settings).environment
        assert environment
        for name in (*job.jobs(environment), *job.jobs_on_demand(environment)):
            job.render(environment, name, templates(Path("nowhere")))
    every = [value for context in given for value in values(context)]
    assert [value for value in every if callable(value)] == []
    assert len({type(value) for value in every}) > 20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/vllmjobs/sandboxed"


def test_a_compiled_template_is_kept_in_a_folder_of_its_owner(project: Project, cache: Path) -> None:
    assert project.run("render", "dev").exit_code == 0
    assert {oct(path.stat().st_mode & 0o777) for path in cache.iterdir()} == {"0o600"}
    assert oct(cache.stat().st_mode & 0o777) == "0o700"
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert project.run("render", "dev").exit_code == 0
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def shared(cache: Path) -> None:
    cache.chmod(0o777)


def somebody_elses(cache: Path) -> None:
    os.chown(cache, 65534, 65534)


def link(cache: Path) -> None:
    cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to(cache.with_name("elsewhere"))


def shared_files(cache: Path) -> None:
    for path in cache.iterdir():
        path.chmod(0o666)


def files_of_somebody_else(cache: Path) -> None:
    for path in cache.iterdir():
        os.chown(path, 65534, 65534)


def links(cache: Path) -> None:
    for path in list(cache.iterdir()):
        path.rename(cache.parent / path.name)
        path.symlink_to(cache.parent / path.name)


def pipes(cache: Path) -> None:
    for path in list(cache.iterdir()):
        path.unlink()
        os.mkfifo(path, 0o600)


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.mark.parametrize(
    "spoilt",
    [
        shared, pytest.param(somebody_elses, marks=AS_ROOT), link, shared_files,
        pytest.param(files_of_somebody_else, marks=AS_ROOT), links, pipes,
    ],
)  # fmt: skip
def test_what_somebody_else_may_have_compiled_is_not_run(
    spoilt: Callable[[Path], None], project: Project, cache: Path
) -> None:
    """The cache is made useless byte by byte, so that to load from it would be seen."""
    expected = project.run("render", "dev").stdout
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes().replace(b"service", b"hostile"))
    assert project.run("render", "dev").stdout != expected  # an own cache is believed
    spoilt(cache)
    done = project.run("render", "dev")
    assert (done.exit_code, done.stdout) == (0, expected)
