"""What is said of a file that cannot be an environment. Wrong values: tests/cases/errors."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmjobs.cli import main
from vllmjobs.environment.load import load
from vllmjobs.environment.problems import InvalidEnvironmentError

SOUND = b"models:\n  chat:\n    model: facebook/opt-125m\n"


def refused(path: Path) -> list[str]:
    with pytest.raises(InvalidEnvironmentError) as error:
        load(path)
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
            b"models:\n" + b"".join(b" " * depth + b"a:\n" for depth in range(1, 10_000)),
            "case.yaml:65:65: is nested deeper than 64 levels",
        ),
        (
            b"a: &a [x, x, x, x, x, x, x, x, x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9)) for c in range(97, 106)
            ),
            "its aliases expand to more than 1,000,000 values",
        ),
    ],
    ids=["empty", "comment", "bom", "crlf", "utf8", "control", "flow depth", "block depth", "aliases"],
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


def test_yaml_1_2_is_read_so_no_and_on_stay_words(file: Path) -> None:
    file.write_text(
        "models: {chat: {model: a, env: {A: no, B: on, C: 12:30, D: 0o17, E: 010, F: '', G: 1_000, H: .inf}}}"
    )
    assert load(file).models["chat"].env == {
        "A": "no", "B": "on", "C": "12:30", "D": 15, "E": 10, "F": "", "G": "1_000", "H": ".inf",
    }  # fmt: skip


def test_a_number_too_long_for_a_machine_stays_a_word(file: Path) -> None:
    file.write_text(f"models: {{chat: {{model: a, env: {{A: {'9' * 5000}}}}}}}")
    assert load(file).models["chat"].env["A"] == "9" * 5000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text("{}[]:&*!|>-?,'\"#%@`<~ \n\tabc01\\", max_size=60).map(str.encode))
def test_no_file_whatever_it_holds_ends_in_a_traceback(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "case.yaml")
        path.write_bytes(content)
        done = CliRunner().invoke(main, ["render", str(path)])
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{path}:")
