"""What README and docs show is what happens: every command is run, and its output compared.

Its ```console blocks are run as story/pages.py of the sandbox says. A ```yaml or ```dotenv block whose first
line names a file is that file. The commands of a page run one after the other in one folder, against the
sandbox.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from click import Option

from vllmjobs.cli import EXIT_CODES, main
from vllmjobs.environment.load import load_file
from vllmjobs.render.model_cache import MODULES, cache_context
from vllmjobs.render.monitoring import prometheus_context
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.story.pages import BLOCK, commands, is_shown, run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs/ci/README.md",
    *sorted((ROOT / "docs/runbooks").glob("*.md")),
]
# Run by something else: what runs this test, what made the virtual environment that it runs in, and the help
# of each command, which tests/scripts/test_generate.py compares.
NOT_HERE = re.compile(r"scripts/test|pip install \.|vllmjobs [a-z]+ --help")


@pytest.fixture
def registered(sandbox: Sandbox) -> Iterator[None]:
    """Takes away the jobs that a page has run."""
    before = {job["ID"] for job in sandbox.nomad.jobs.get_jobs()}
    yield
    sandbox.purge(*({job["ID"] for job in sandbox.nomad.jobs.get_jobs()} - before))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("registered")
def test_every_command_of_a_page_prints_what_the_page_shows(
    page: Path, sandbox: Sandbox, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, env = tmp_path, sandbox.env | {"COLUMNS": "100", "VLLMJOBS_PROJECT": "."}
    text = page.read_text()
    for kind, block in BLOCK.findall(text):
        if kind in ("yaml", "dotenv") and (named := re.match(r"# (envs/\S+\.yaml|\.env\S*)\n", block)):
            (folder / named[1]).write_text(block)
        if kind != "console":
            continue
        for command, shown in commands(block):
            if NOT_HERE.fullmatch(command):
                continue
            if command.startswith("cd "):
                folder /= command.removeprefix("cd ")
                continue
            printed = run(command, ROOT if command.startswith("scripts/") else folder, env)
            if request.config.getoption("--rewrite") and "..." not in shown:
                text = text.replace(f"$ {command}\n{shown}", f"$ {command}\n{printed}", 1)
                page.write_text(text)
                continue
            assert is_shown(shown, printed), f"{page.name}: $ {command}\nshows:\n{shown}\nprints:\n{printed}"


def test_the_readme_lists_every_command_and_exit_code() -> None:
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"^\| `vllmjobs (\w+)", readme, re.MULTILINE) == [
        "check", "explain", "size", "gpus", "import", "render", "diff", "plan", "deploy", "status", "promote",
        "abort", "rollback", "history", "logs", "approve", "up", "reload", "restart", "down", "schema",
        "init",
    ]  # fmt: skip
    assert set(main.commands) == set(re.findall(r"^\| `vllmjobs (\w+)", readme, re.MULTILINE))
    for code, meaning in re.findall(r"^  (\d)  (.+)$", EXIT_CODES, re.MULTILINE):
        assert f"| {code} | {meaning} |" in readme


def test_the_page_of_templates_has_every_template_and_what_it_sees() -> None:
    page = (ROOT / "docs/templates.md").read_text()
    environment = load_file(ROOT / "envs/prod.yaml").environment
    assert environment
    seen = {f"`{path.name}`" for path in (ROOT / "jobs").glob("*.j2")}
    caches = cache_context(environment, "cache-backup")
    for names in (prometheus_context(environment), caches, [one.name for one in fields(caches["groups"][0])]):
        seen |= {f"`{name}`" for name in names}
    assert {name for name in seen if name not in page} == set()


def test_help_and_readme_name_the_jobs_that_a_command_takes() -> None:
    """Their templates are jobs/NAME.nomad.hcl.j2; what is run by hand is neither planned nor deployed."""
    known = {path.name.removesuffix(".nomad.hcl.j2") for path in (ROOT / "jobs").glob("*.nomad.hcl.j2")}
    by_hand = set(MODULES)
    for command, jobs in (("render", known), ("plan", known - by_hand), ("deploy", known - by_hand)):
        (option,) = (one for one in main.commands[command].params if one.name == "job")
        assert isinstance(option, Option)
        assert option.help
        assert known & set(re.findall(r"[a-z-]+", option.help)) == jobs, command
    readme = (ROOT / "README.md").read_text()
    (row,) = re.findall(r"^\| `vllmjobs render ENV` .*$", readme, re.MULTILINE)
    assert {name for name in known - {"vllm"} if f"`{name}`" not in row} == set()


def test_the_settings_that_the_cluster_page_shows_are_valid(tmp_path: Path, sandbox: Sandbox) -> None:
    for number, (kind, block) in enumerate(BLOCK.findall((ROOT / "docs/cluster.md").read_text())):
        if kind == "hcl":
            (tmp_path / f"{number}.hcl").write_text(
                block.replace("client {", f'data_dir = "{tmp_path}"\nclient {{\n  enabled = true')
            )
            done = sandbox.nomad_cli("config", "validate", str(tmp_path / f"{number}.hcl"))
            assert done.returncode == 0, done.stderr


def test_every_link_of_a_page_leads_somewhere() -> None:
    for page in [*PAGES, *LINKED]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
