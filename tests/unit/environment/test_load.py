"""What is said of a file that cannot be an environment. Wrong values: tests/cases/errors."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.cli import main
from vllmjobs.cli.common import Selection
from vllmjobs.environment.load import MAX_BYTES
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import InvalidEnvironmentError
from vllmjobs.environment.schema import json_schema

SOUND = b"models:\n  chat:\n    model: facebook/opt-125m\n"


def read(path: Path, *settings: str) -> Environment:
    return Selection(str(path), settings).environment


def refused(path: Path) -> list[str]:
    with pytest.raises(InvalidEnvironmentError) as error:
        read(path)
    return [str(problem).replace(f"{path.parent}/", "") for problem in error.value.problems]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "case.yaml"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "case.yaml:1:1: is empty; an environment needs at least `models:`"),
        (b"# only a comment\n", "case.yaml:1:1: is empty; an environment needs at least `models:`"),
        (
            b"\xef\xbb\xbf" + SOUND,
            "case.yaml:1:1: starts with a byte order mark; save the file as UTF-8 without BOM",
        ),
        (
            SOUND.replace(b"\n", b"\r\n"),
            "case.yaml:1:8: has CRLF line ends; save the file with LF "
            "(git: `*.yaml text eol=lf` in .gitattributes)",
        ),
        (
            SOUND + b"# \xff\n",
            "case.yaml:4:3: byte 0xff is not valid UTF-8; save the file as UTF-8",
        ),
        (SOUND + b"# \x07\n", "case.yaml:4:3: holds the character U+0007; YAML does not allow it"),
        (
            b"models: " + b"[" * 10_000,
            "case.yaml:1:72: is nested deeper than 64 levels",
        ),
        (
            b"models:\n" + b"".join(b" " * depth + b"a:\n" for depth in range(1, 100)),
            "case.yaml:65:65: is nested deeper than 64 levels",
        ),
        (
            b"a: &a [x, x, x, x, x, x, x, x, x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9)) for c in range(97, 106)
            ),
            "its aliases expand to more than 1,000,000 values",
        ),
        (
            b"a0: &a0 " + b"[" * 50 + b"]" * 50 + b"\na1: &a1 " + b"[" * 50 + b"*a0" + b"]" * 50 + b"\n",
            "case.yaml:2:59: its aliases are nested deeper than 64 levels",
        ),
    ],
    ids=[
        "empty",
        "comment",
        "bom",
        "crlf",
        "utf8",
        "control",
        "flow depth",
        "block depth",
        "aliases",
        "deep aliases",
    ],
)
def test_a_file_that_is_no_environment_is_refused_with_its_place(
    file: Path, content: bytes, message: str
) -> None:
    file.write_bytes(content)
    (problem,) = refused(file)
    assert message in problem


def test_a_byte_order_mark_and_crlf_do_not_hide_the_other_errors(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfmodels:\r\n  chat: {model: 1}\r\n")
    assert [problem.split(" ")[0] for problem in refused(file)] == [
        "case.yaml:1:1:",
        "case.yaml:1:9:",
        "case.yaml:2:10:",
    ]


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    assert refused(tmp_path / "envs") == ["envs: is a directory; name a file, such as envs/prod.yaml"]


def test_a_file_without_permission_or_with_a_file_above_it_is_refused(file: Path) -> None:
    file.write_bytes(SOUND)
    assert refused(file / "prod.yaml") == ["prod.yaml: cannot be read: Not a directory"]


@pytest.mark.parametrize(
    "setting", [".".join("a" * 3000) + "=1", "models.chat.\udcff=1", "debug=\udcff", "=", "a", ""]
)
def test_a_setting_that_is_none_is_refused(file: Path, setting: str) -> None:
    file.write_bytes(SOUND)
    with pytest.raises(InvalidEnvironmentError):
        read(file, setting)


@pytest.mark.parametrize("name", ["loop.yaml", '"a\\0b"', "case.yaml", "../gone/x.yaml", "."])
def test_a_file_that_cannot_be_extended_is_named(file: Path, name: str) -> None:
    (file.parent / "loop.yaml").symlink_to("loop.yaml")
    file.write_bytes(f"extends: {name}\n".encode() + SOUND)
    assert any(problem.startswith("case.yaml:1:1: extends: ") for problem in refused(file))


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    (file.parent / "zero.yaml").touch()
    os.truncate(file.parent / "zero.yaml", MAX_BYTES + 1)
    assert refused(file.parent / "zero.yaml") == ["zero.yaml: cannot be read: it is larger than 32 MiB"]
    file.write_bytes(b"extends: zero.yaml\n" + SOUND)
    assert refused(file) == ["case.yaml:1:1: extends: zero.yaml cannot be read: it is larger than 32 MiB"]


def test_the_configuration_of_a_model_has_an_end(file: Path) -> None:
    file.write_bytes(SOUND + b"    config: /dev/zero\n")
    assert refused(file) == [
        "case.yaml:4:5: models.chat.config: /dev/zero cannot be read: it is larger than 32 MiB [VJ201]"
    ]


def test_a_job_that_is_null_is_named_after_the_file(file: Path) -> None:
    file.write_bytes(b"job: null\n" + SOUND)
    assert read(file).job == "vllm-case"
    assert read(file, "job=null").job == "vllm-case"


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("models.chat.drain.kill_timeout=3427790h36m", "must be a duration"),  # 391 years: Go has 292
        ("models.chat.replicas=50001", "must be at most 50000"),
        ("balancer.count=50001", "must be at most 50000"),
        ("models.chat.resources.cpu=1000000001", "must be at most 1000000000"),
    ],
)
def test_a_number_that_nomad_cannot_hold_is_refused(file: Path, setting: str, rule: str) -> None:
    file.write_bytes(SOUND)
    with pytest.raises(InvalidEnvironmentError, match=rule):
        read(file, setting)


def test_every_whole_number_has_a_highest() -> None:
    """But in `args` and `env`, which are written as words."""
    found = [path for path in unbounded(json_schema()) if ".args." not in path and ".env." not in path]
    assert found == []


def unbounded(schema: object, path: str = "") -> Iterator[str]:
    """The path of each whole number of a schema that may be of any size."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer" and not {"maximum", "exclusiveMaximum"} & schema.keys():
            yield path
        for key, value in schema.items():
            yield from unbounded(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for value in schema:
            yield from unbounded(value, path)


def test_a_chain_of_extends_has_an_end(tmp_path: Path) -> None:
    for number in range(1100):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (problem,) = [line for line in refused(tmp_path / "0.yaml") if "extends" in line]
    assert "is a circle, or too long a chain" in problem


def test_an_empty_file_can_be_extended(file: Path) -> None:
    (file.parent / "base.yaml").write_text("# nothing yet\n")
    file.write_bytes(b"extends: base.yaml\n" + SOUND)
    assert read(file).job == "vllm-case"


@pytest.mark.parametrize(
    ("name", "job"), [("_", "vllm"), ("x" * 50, "vllm-" + "x" * 50), ("My Env", "vllm-my-env")]
)
def test_a_jobs_name_is_made_from_any_files_name(tmp_path: Path, name: str, job: str) -> None:
    (tmp_path / f"{name}.yaml").write_bytes(SOUND)
    assert read(tmp_path / f"{name}.yaml", "balancer.kind=none", "models.chat.route.path=/").job == job


def test_yaml_1_2_is_read_so_no_and_on_stay_words(file: Path) -> None:
    file.write_text(
        "models: {chat: {model: a, env: {A: no, B: on, C: 12:30, D: 0o17, E: 010, F: '', G: 1_000, H: .inf}}}"
    )
    assert read(file).models["chat"].env == {
        "A": "no", "B": "on", "C": "12:30", "D": 15, "E": 10, "F": "", "G": "1_000", "H": ".inf",
    }  # fmt: skip


def test_an_alias_as_a_key_is_the_word_that_was_anchored(file: Path) -> None:
    file.write_text("models: {chat: {model: a, env: {A: &key null, B: 1, *key : 2}}}")
    assert read(file).models["chat"].env == {"A": None, "B": 1, "null": 2}


def test_a_number_too_long_for_a_machine_stays_a_word(file: Path) -> None:
    file.write_text(f"models: {{chat: {{model: a, env: {{A: {'9' * 5000}}}}}}}")
    assert read(file).models["chat"].env["A"] == "9" * 5000


@given(st.binary(max_size=60) | st.text("{}[]:&*!|>-?,'\"#%@`<~ \n\tabc01\\", max_size=60).map(str.encode))
def test_no_file_whatever_it_holds_ends_in_a_traceback(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "case.yaml")
        path.write_bytes(content)
        done = CliRunner().invoke(main, ["render", str(path)])
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{path}:")


FOREIGN_YAML = (
    'root-hash: correct-horse\nmodels: {correct-horse: {model: 1, secret-key-name: x}}\n"correct-horse'
)


@pytest.mark.parametrize("envs", ["envs", "."])
@pytest.mark.parametrize("form", ["text", "json", "sarif", "github"])
@pytest.mark.parametrize(
    "name", ["shadow", "config.yaml", "linked.yaml", "link-to-yaml.yaml", "chained.yaml"]
)
@pytest.mark.parametrize("closed", ["", '": 1'])
def test_a_file_outside_of_the_project_is_not_quoted(
    tmp_path: Path, envs: str, form: str, name: str, closed: str
) -> None:
    project, outside = tmp_path / "project", tmp_path / "outside"
    (project / envs).mkdir(parents=True)
    outside.mkdir()
    (outside / "shadow").write_text(FOREIGN_YAML + closed)
    (outside / "config.yaml").write_text(FOREIGN_YAML + closed)
    (project / envs / "linked.yaml").symlink_to(outside / "shadow")
    (project / envs / "link-to-yaml.yaml").symlink_to(outside / "config.yaml")
    (outside / "chained.yaml").write_text("extends: shadow\n")
    base = name if "link" in name else outside / name
    (project / envs / "case.yaml").write_text(f"extends: {base}\n{SOUND.decode()}")
    arguments = ["check", "--project", str(project), str(project / envs / "case.yaml"), "--format", form]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "outside of the project" in done.stdout
    for word in ("correct-horse", "root-hash", "secret-key-name"):
        assert word not in done.output


def test_a_link_that_leads_out_of_the_project_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text(FOREIGN_YAML)
    (tmp_path / "config.yaml").write_text(FOREIGN_YAML)
    (tmp_path / "project/envs").mkdir(parents=True)
    (tmp_path / "project/envs/a.yaml").symlink_to(tmp_path / "shadow")
    (tmp_path / "project/envs/b.yaml").symlink_to(tmp_path / "config.yaml")
    done = CliRunner().invoke(main, ["check", "--project", str(tmp_path / "project")])
    assert done.stdout.count("outside of the project") == 2
    assert "correct-horse" not in done.output


@pytest.mark.parametrize("name", ["/proc/self/environ", "/dev/zero", "/etc/passwd", "../../../../etc/passwd"])
def test_what_is_no_yaml_outside_of_the_project_is_not_read(file: Path, name: str) -> None:
    file.write_bytes(f"extends: {name}\n".encode() + SOUND)
    (problem,) = refused(file)
    assert problem.startswith("case.yaml:1:1: extends: ")
    assert problem.endswith(" stands outside of the project, and is no .yaml file; it is not read")


def test_a_sound_file_outside_of_the_project_can_be_extended(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("debug: true\n")
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/x").mkdir()
    own = tmp_path / "envs/x/case.yaml"
    own.write_bytes(f"extends: {tmp_path}/base.yaml\n".encode() + SOUND)
    assert read(own).debug
