"""Golden cases: one text file each, an environment and what comes of it. To add one, add a file.

    $ render case --set models.chat.replicas=3      the command; the environment's name is `case`
    models: ...                                     envs/case.yaml
    --- other.yaml                                  any further file of envs/, or jobs/NAME
    ...
    === 0                                           the exit code, then stdout and stderr

`scripts/test cases --rewrite` writes the last part anew; read the diff before you commit it.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllmjobs.cli import main

CASES = sorted(Path(__file__).parent.glob("*/*.txt"))
RESULT = re.compile(r"^=== (\d)\n", re.MULTILINE)
NOTE = re.compile(r"^.+: note: .*\n\Z", re.MULTILINE)  # what render says on stderr


def split(case: str) -> tuple[list[str], dict[str, str], str]:
    """A case's command, its files by name, and its result."""
    *given, result = re.split(r"^(?==== \d\n)", case, maxsplit=1, flags=re.MULTILINE)
    if not given:
        given, result = [result], ""
    command, _, rest = given[0].partition("\n")
    first, *more = re.split(r"^--- (\S+)\n", rest, flags=re.MULTILINE)
    files = {"envs/case.yaml": first}
    for name, text in zip(more[::2], more[1::2], strict=True):
        files[name if "/" in name else f"envs/{name}"] = text
    return shlex.split(command.removeprefix("$ ")), files, result


def run(command: list[str], files: dict[str, str], project: Path) -> str:
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = CliRunner().invoke(main, [command[0], "--project", str(project), *command[1:]])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    text = f"=== {done.exit_code}\n{done.stdout}{done.stderr}"
    return text.replace(f"{project}/", "").replace(str(project), ".")


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_case(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    command, files, expected = split(path.read_text())
    result = run(command, files, tmp_path)
    if request.config.getoption("--rewrite"):
        path.write_text(path.read_text().removesuffix(expected) + result)
    else:
        assert result == expected


def test_what_the_cases_render_is_laid_out_as_nomad_fmt_would(tmp_path: Path) -> None:
    nomad = shutil.which("nomad")
    assert nomad, "nomad is not on PATH; run scripts/test cases"
    for path in CASES:
        result = split(path.read_text())[2]
        if path.parent.name == "render" and result.startswith("=== 0\n"):
            (tmp_path / f"{path.stem}.nomad.hcl").write_text(NOTE.sub("", result.removeprefix("=== 0\n")))
    done = subprocess.run(
        [nomad, "fmt", "-check", "-recursive", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
