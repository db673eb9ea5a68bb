"""`vllmjobs check` as a tool: what it reads, what it passes over, what it prints, how it ends."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vllmjobs.check.check import RULES
from vllmjobs.cli import main
from vllmjobs.vllm.releases import NEWEST

Check = Callable[..., Result]
LATEST = (
    "models:\n  chat:\n    model: facebook/opt-125m\n    supervised: false\n    gpus: {memory: 7 GiB}\n"
    "    image: vllm/vllm:latest"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "envs").mkdir()
    return tmp_path


@pytest.fixture
def check(project: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Writes `envs/prod.yaml`, and checks the project."""
    monkeypatch.chdir(project)

    def run(text: str | None, *options: str) -> Result:
        if text is not None:
            (project / "envs/prod.yaml").write_text(text)
        done = CliRunner().invoke(main, ["check", *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return run


def broken(done: Result) -> list[str]:
    """The rules of the findings, in order."""
    return re.findall(r"\[(VJ\d+)\]$", done.stdout, re.MULTILINE)


def test_a_finding_shows_its_line_and_a_caret(check: Check) -> None:
    done = check(LATEST, "--select", "VJ503")
    assert done.stdout == (
        "envs/prod.yaml:6:5: models.chat.image: vllm/vllm:latest: tag 'latest' moves; name a version, such "
        f"as :v{NEWEST}, or a digest (@sha256:…) [VJ503]\n"
        "     6 |     image: vllm/vllm:latest\n"
        "       |     ^\n"
    )
    assert (done.stderr, done.exit_code) == ("1 error in 1 environment\n", 1)


def test_warnings_end_well_unless_strict(check: Check) -> None:
    warned = LATEST.replace(":latest", ":v0.33.0\n    user: root")
    assert (broken(check(warned)), check(warned).exit_code, check(warned, "--strict").exit_code) == (
        ["VJ505"], 0, 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    "comment",
    [
        f"{LATEST} # vllmjobs: ignore VJ503, VJ100 the registry keeps one only",
        LATEST.replace(
            "    image", "    # vllmjobs: ignore VJ503 VJ100 one only\n    # more words\n\n    image"
        ),
    ],
    ids=["on the line", "above it"],
)
def test_a_comment_with_a_reason_passes_over_a_finding(check: Check, comment: str) -> None:
    assert broken(check(comment)) == []


def test_a_comment_in_an_extended_file_passes_over_what_stands_there(check: Check, project: Path) -> None:
    (project / "envs/base.yaml").write_text(
        "images: {standard: vllm/vllm} # vllmjobs: ignore VJ503, VJ338 for now\n"
    )
    text = "extends: base.yaml\nmodels: {chat: {model: facebook/opt-125m, gpus: {memory: 7 GiB}}}"
    assert broken(check(text, "--ignore", "VJ100")) == []


def test_what_defaults_say_is_found_once_and_at_its_place(check: Check) -> None:
    text = "defaults: {user: root, supervised: false, gpus: {memory: 7 GiB}}\nmodels:\n"
    text += "".join(
        f"  {name}: {{model: facebook/opt-125m, route: {{path: /{name}/v1/, strip: /{name}}}}}\n"
        for name in "abc"
    )
    assert check(text).stdout.splitlines()[0].startswith("envs/prod.yaml:1:12: warning: models.a.user: runs")
    assert broken(check(text)) == ["VJ505"]


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("ignore VJ503", "gives no reason"),
        ("ignore", "names no rule"),
        ("ignore VJ999 because", "VJ999 is no rule"),
        ("ignore VJ001 because", "VJ001 is no rule that can be ignored"),
    ],
)
def test_a_comment_that_does_not_do_what_it_seems_to_is_a_warning(
    check: Check, comment: str, said: str
) -> None:
    done = check(f"{LATEST} # vllmjobs: {comment}", "--select", "VJ0,VJ503")
    assert broken(done) == ["VJ503", "VJ002"]
    assert said in done.stdout


@pytest.mark.parametrize(
    "model",
    [
        'env: {NOTE: "# vllmjobs: ignore VJ503 no comment at all"}\n    image: vllm/vllm:latest',
        "env:\n      SCRIPT: |\n        # vllmjobs: ignore VJ503 nor this\n    image: vllm/vllm:latest",
    ],
)
def test_what_looks_like_a_comment_inside_a_string_passes_over_nothing(check: Check, model: str) -> None:
    done = check(f"models:\n  chat:\n    model: facebook/opt-125m\n    {model}\n", "--select", "VJ0,VJ503")
    assert broken(done) == ["VJ503"]


def test_a_reason_may_begin_like_a_rule(check: Check) -> None:
    assert broken(check(f"{LATEST} # vllmjobs: ignore VJ503 H100 nodes have it", "--select", "VJ5,VJ0")) == []


def test_what_cannot_be_read_is_never_passed_over(check: Check) -> None:
    done = check("models: {chat: {modle: a}} # vllmjobs: ignore VJ001 no\n", "--ignore", "VJ")
    assert done.exit_code == 1
    assert "unknown key; did you mean 'model'?" in done.stdout


def test_rules_are_chosen_by_their_ids_or_beginnings(check: Check) -> None:
    assert broken(check(LATEST, "--select", "VJ5")) == ["VJ503"]
    assert broken(check(LATEST, "--select", "vj1 VJ2")) == ["VJ100"]
    assert broken(check(LATEST, "--ignore", "VJ503")) == ["VJ100"]
    done = check(LATEST, "--select", "VJ9")
    assert (done.exit_code, done.stderr) == (
        1,
        "VJ9 is no rule, nor the beginning of one; `vllmjobs explain` lists them\n",
    )


def test_every_environment_is_checked_when_none_is_named(check: Check, project: Path) -> None:
    for name, text in {
        "base.yaml": "images: {standard: vllm/vllm-openai:v0.33.0}",
        "dev.yaml": "extends: base.yaml\nmodels: {a: {model: facebook/opt-125m, user: root}}",
        "other.yaml": "models: {a: {model: facebook/opt-125m, user: root}}",
    }.items():
        (project / "envs" / name).write_text(text)
    done = check(None, "--select", "VJ5")
    assert re.findall(r"^envs/\w+", done.stdout, re.MULTILINE) == ["envs/dev", "envs/other"]
    assert done.stderr == "2 warnings in 2 environments\n"
    assert check(None, "other", "--select", "VJ5").stderr == "1 warning in 1 environment\n"


def test_files_that_are_no_environments_stop_nothing(check: Check, project: Path) -> None:
    (project / "envs/.#prod.yaml").symlink_to("nobody@nowhere")
    (project / "envs/._prod.yaml").write_bytes(b"\0\5\26\7")
    (project / "envs/folder.yaml").mkdir()
    (project / "envs/dev.yml").write_text("extends: ../envs/base.yaml\n" + LATEST)
    (project / "envs/base.yaml").write_text("debug: true")
    assert broken(check(LATEST, "--select", "VJ503")) == ["VJ503", "VJ503"]


def test_two_environments_with_one_service_between_them_are_named(check: Check, project: Path) -> None:
    model = "{model: facebook/opt-125m}"
    (project / "envs/a.yaml").write_text(f"job: vllm\nmodels: {{prod-chat: {model}}}")
    (project / "envs/b.yaml").write_text(f"job: vllm-prod\nmodels: {{chat: {model}}}")
    done = check(None, "--select", "VJ003")
    assert done.stdout.startswith(
        "envs/b.yaml:1:1: warning: models.chat: its service vllm-prod-chat is in envs/a"
    )


def test_an_environment_that_is_named_twice_is_checked_once(check: Check, project: Path) -> None:
    done = check(LATEST, "prod", str(project / "envs/prod.yaml"), "envs/prod.yaml", "--select", "VJ0,VJ5")
    assert done.stderr == "1 error in 1 environment\n"


def test_a_model_that_this_user_may_not_read_is_only_unknown(check: Check, project: Path) -> None:
    folder = project / "private"
    folder.mkdir()
    (folder / "config.json").symlink_to("x" * 200 + "/" + "x" * 255)
    done = check(LATEST.replace("facebook/opt-125m", str(folder)), "--select", "VJ2")
    assert (broken(done), done.exit_code) == (["VJ202"], 0)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("vllm/vllm-openai:v0.33.0@sha256:abc", "is not the name of an image"),
        ("https://example.com/vllm:1", "is not the name of an image"),
        ("VLLM/vllm:1.0 ", "is not the name of an image"),
        ("vllm/vllm-openai:latest-cu129", "moves"),
        ("example.com:5000/vllm", "has no tag"),
        ("vllm/vllm-openai:nightly-0123456789abcdef0123456789abcdef01234567", ""),
        (f"example.com:5000/vllm@sha256:{'a' * 64}", ""),
        ("example.com/team/vllm-openai:0.33.0-cu129", ""),
    ],
)
def test_images_are_pinned_and_named_as_registries_name_them(check: Check, image: str, said: str) -> None:
    done = check(LATEST, "--set", f"models.chat.image='{image}'", "--select", "VJ503")
    assert (said in done.stdout) if said else not done.stdout


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("max-num-seqs: false", "cannot be turned off by false; give it a value, or null to leave it out"),
        ('enable-prefix-caching: "true"', "is a switch; write true or false, without quotes"),
        ("headless: true", "leaves vLLM without a server"),
        ("pp: 2", "is the short option -pp; write pipeline-parallel-size"),
    ],
)
def test_what_is_said_of_an_argument_is_a_way_out_in_yaml(check: Check, argument: str, said: str) -> None:
    text = LATEST.replace(":latest", f"-openai:v0.33.0\n    args:\n      {argument}")
    assert said in check(text).stdout


@pytest.mark.parametrize(
    "version", ["0.33.0", "0.33rc1", "0.33.0.post1", "0.33+cu129", "0.11.2", "1.0", "99.0"]
)
def test_any_version_of_vllm_is_checked(check: Check, version: str) -> None:
    done = check(LATEST, "--set", f"models.chat.vllm='{version}'", "--select", "VJ1")
    assert done.exit_code == ("0.11" in version)  # which has no --shutdown-timeout


@pytest.mark.parametrize("version", ["0.33.0+abcdef0123456789abcdef0123 ", "nightly", "v0.33.0", "0.33.0-x_"])
def test_what_is_no_version_is_refused_at_once(check: Check, version: str) -> None:
    done = check(LATEST, "--set", f"models.chat.vllm='{version}'")
    assert f'must be a version in quotes, such as "{NEWEST}"' in done.stdout


def test_a_project_without_environments_is_told_so(check: Check) -> None:
    done = check(None)
    assert done.exit_code == 1
    assert "envs/ has no environments; vllmjobs init . writes some" in done.stderr


def test_json_has_a_version_and_the_keys_that_it_documents(check: Check) -> None:
    (finding,) = json.loads(check(LATEST, "--format", "json", "--select", "VJ503").stdout)["findings"]
    assert finding | {"message": ""} == {
        "rule": "VJ503", "name": "images-are-pinned", "severity": "error", "file": "envs/prod.yaml",
        "line": 6, "column": 5, "path": "models.chat.image", "message": "",
    }  # fmt: skip
    given = check(LATEST, "--set", "models.chat.image=a", "--format", "json", "--select", "VJ503")
    (finding,) = json.loads(given.stdout)["findings"]
    assert (finding["file"], finding["line"]) == ("--set models.chat.image", None)


def test_githubs_annotations_are_escaped(check: Check) -> None:
    done = check(
        LATEST.replace("vllm/vllm:latest", '"a%b:latest"'), "--format", "github", "--select", "VJ503"
    )
    assert done.stdout.startswith(
        "::error file=envs/prod.yaml,line=6,col=5,title=VJ503 images-are-pinned::"
        "models.chat.image: a%25b:latest"
    )


def test_the_lines_that_are_shown_hold_no_secret(check: Check) -> None:
    text = (
        "defaults: {env: {HF_TOKEN: correct-horse, B: hf_abcdefghijklmnopqrstuvwxyz}}\n"
        "models:\n  chat: {user: root, model: a, env: {API_KEY: battery-staple}, "
        "args: {x: sk-aaaaaaaaaaaaaaaaaaaaaaaa}}\n"
    )
    for form in ("text", "json", "sarif", "github"):
        output = check(text, "--format", form).output
        assert "VJ502" in output
        for secret in ("correct-horse", "hf_abc", "battery", "sk-aaa"):
            assert secret not in output, form


@pytest.mark.parametrize(
    "model",
    [
        "args: {api-key: correct-horse}",
        "args: {api_key: [correct-horse]}",
        "token: correct-horse",
        "env: {HF_TOKEN: *correct-horse}",
        "env: {HF_TOKEN: !correct-horse a}",
        "entrypoint: [vllm, serve, --api-key=correct-horse]",
        "env: {DATABASE: 'postgres://user:correct-horse@host/db'}",
        "env: {APIKEY: correct-horse}",
        "env: {hf_correcthorsecorrecthorse: a}",
    ],
)
def test_a_secret_is_found_and_not_repeated(check: Check, model: str) -> None:
    for form in ("text", "json"):
        done = check(f"models: {{chat: {{model: facebook/opt-125m, {model}}}}}", "--format", form)
        assert done.exit_code == 1
        assert "correct-horse" not in done.output
        assert "hf_correcthorse" not in done.output


def test_only_the_owners_of_a_secret_file_may_read_it(check: Check, project: Path) -> None:
    (project / ".env.prod").touch(mode=0o640)
    (project / ".env.example").touch(mode=0o644)
    done = check(LATEST, "--select", "VJ504")
    assert done.stdout == (
        ".env.prod: warning: may be read by others (mode 640); chmod 600 .env.prod [VJ504]\n"
    )


def test_a_change_that_nomad_makes_in_place_is_named(check: Check, project: Path) -> None:
    check(LATEST)
    for command in ("init", "add envs", "-c user.name=t -c user.email=t@example.com commit -m one"):
        subprocess.run(["git", *command.split()], cwd=project, check=True, capture_output=True)
    select = ("--select", "VJ3", "--against", "HEAD")
    assert broken(check(LATEST, *select)) == []
    done = check(f"{LATEST}\n    health:\n      interval: 9s", *select)
    assert done.stdout.startswith(
        "envs/prod.yaml:8:7: note: models.chat.health.interval: Nomad makes the change of health.interval "
        "in place"
    )
    assert broken(check(f"{LATEST}\n    max_model_len: 9", *select)) == []  # a canary tries it
    assert broken(check(f"{LATEST}\n    replicas: 2", *select)) == []  # only scaled
    (project / "envs/new.yaml").write_text(LATEST)
    done = check(None, "new", *select)
    note = "envs/new.yaml: HEAD does not have this environment, so nothing is compared\n"
    assert done.stderr.startswith(note)
    for ref, said in {ref: f"{ref} is no commit" for ref in ("nowhere", "--help", "")}.items():
        done = check(LATEST, "--against", ref)
        assert (done.exit_code, done.stderr) == (1, f"{said}\n")


def test_explain_lists_every_rule_and_knows_no_other() -> None:
    listed = CliRunner().invoke(main, ["explain"]).stdout
    assert {rule.id for rule in RULES} < set(re.findall(r"^VJ\d{3}", listed, re.MULTILINE))
    done = CliRunner().invoke(main, ["explain", "../README"])
    assert (done.exit_code, done.stderr) == (
        1,
        "Error: there is no rule ../README; `vllmjobs explain` lists the rules\n",
    )


def test_ids_and_names_of_rules_are_given_once() -> None:
    assert len({rule.id for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)
    assert all(re.fullmatch(r"VJ[1-5]\d\d", rule.id) for rule in RULES)
