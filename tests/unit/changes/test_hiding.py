"""A value that may be a secret is shown on no side of a change; any other is."""

import pytest

from vllmjobs.changes.compare import compare
from vllmjobs.changes.hiding import HIDDEN, named, shown
from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.model import Field
from vllmjobs.vllm.arguments.tables import table
from vllmjobs.vllm.releases import VERSIONS

ARGS = ("task", "vllm", "config", "args")
DATA = ("task", "vllm", "template", "secrets/vllm.env", "data")


def differing(before: str, after: str) -> list[Field]:
    """Return what differs in one task, of which two states are given."""
    old, new = (
        read(f'job "j" {{\ngroup "g" {{\ntask "t" {{\n{body}\n}}\n}}\n}}', "job") for body in (before, after)
    )
    (job,) = compare("vllm", old, new)
    (group,) = job.groups
    return list(group.fields)


@pytest.mark.parametrize(
    "path",
    [
        ("task", "vllm", "env", "HF_TOKEN"),
        ("task", "vllm", "env", "VLLM_API_KEY"),
        ("task", "vllm", "env", "AWS_SECRET_ACCESS_KEY"),
        ("task", "vllm", "env", "db_password"),
        ("task", "vllm", "config", "auth", "password"),
        ("task", "vllm", "config", "logging", "config", "splunk-token"),
        ("task", "vllm", "config", "labels", "com.example.api-key"),
        ("task", "vllm", "artifact", "git::x", "options", "sshkey"),
        ("task", "vllm", "artifact", "https://x", "headers", "X-Auth-Token"),
        ("service", "chat", "check", "ready", "header", "Authorization"),
        ("service", "chat", "check", "ready", "header", "Cookie"),
        ("service", "chat", "meta", "token"),
        ("meta", "deploy_secret"),
    ],
)
def test_a_value_under_the_name_of_a_secret_is_hidden_whole(path: tuple[str, ...]) -> None:
    assert shown(path, "s3cret") == (HIDDEN, True)


@pytest.mark.parametrize(
    "path",
    [
        ("task", "vllm", "env", "HOME"),
        ("task", "vllm", "env", "TOKENIZERS_PARALLELISM"),
        ("task", "vllm", "env", "VLLM_USE_V1"),
        ("task", "vllm", "env", "HF_HUB_OFFLINE"),
        ("task", "vllm", "config", "auth", "username"),
        ("task", "vllm", "config", "image"),
        ("task", "vllm", "template", "x", "error_on_missing_key"),
        ("task", "vllm", "template", "x", "destination"),
        ("service", "chat", "check", "ready", "header", "Host"),
        ("service", "chat", "tags"),
        ("task", "token", "kill_timeout"),
    ],
)
def test_other_values_are_shown(path: tuple[str, ...]) -> None:
    assert shown(path, "plain") == ("plain", False)


@pytest.mark.parametrize(
    "value", ["${NOMAD_SECRETS_DIR}/key", "${VLLM_API_KEY}", "${NOMAD_SECRETS_DIR}/${NOMAD_TASK_NAME}", ""]
)
def test_where_a_secret_is_kept_is_shown(value: str) -> None:
    assert shown(("task", "vllm", "env", "HF_TOKEN"), value) == (value, False)


@pytest.mark.parametrize("value", ["${NOMAD_META_x}s3cret", '${upper("s3cret")}', "s3cret${x}"])
def test_a_reference_beside_a_literal_is_none(value: str) -> None:
    assert shown(("task", "vllm", "env", "HF_TOKEN"), value) == (HIDDEN, True)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--api-key=s3cret", "--api-key=(hidden)"),
        ("--hf-token=s3cret", "--hf-token=(hidden)"),
        ("--api-key=${VLLM_API_KEY}", "--api-key=${VLLM_API_KEY}"),
        ("vllm serve --api-key s3cret --port 1", "vllm serve --api-key (hidden) --port 1"),
        ("vllm serve --api-key=s3cret --port 1", "vllm serve --api-key=(hidden) --port 1"),
        ("vllm serve --api-key 's3 cret' --port 1", "vllm serve --api-key '(hidden)' --port 1"),
        ("exec env VLLM_API_KEY=s3cret vllm serve", "exec env VLLM_API_KEY=(hidden) vllm serve"),
        ('--kv-transfer-config={"api_key": "s3cret", "port": 1}',
         '--kv-transfer-config={"api_key": "(hidden)", "port": 1}'),
        ("curl -H 'Authorization: Bearer s3cret' x", "curl -H 'Authorization: Bearer (hidden)' x"),
        ("https://someone:s3cret@example.com/x", "https://(hidden)@example.com/x"),
        ("hf_abcdefghijklmnopqrstuv", "(hidden)"),
    ],
)  # fmt: skip
def test_of_an_argument_only_the_secret_is_hidden(argument: str, expected: str) -> None:
    assert shown(ARGS, argument) == (expected, expected != argument)


@pytest.mark.parametrize("option", ["--api-key", "--hf-token", "-password", "--client-secret"])
def test_the_argument_after_such_an_option_is_hidden(option: str) -> None:
    assert shown(ARGS, "s3cret", previous=option) == (HIDDEN, True)
    assert shown(ARGS, option) == (option, False)


@pytest.mark.parametrize("version", VERSIONS)
def test_of_vllms_own_arguments_two_are_secrets(version: str) -> None:
    """`--max-num-batched-tokens`, `--tokenizer`, `--ssl-keyfile` and their like are not."""
    hidden = {
        option
        for option in table(version).table.by_name
        for text, previous in ((f"{option}=7", None), ("7", option))
        if shown(ARGS, text, previous)[1]
    }
    assert hidden <= {"--api-key", "--hf-token"}
    assert "--api-key" in hidden


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("HF_TOKEN=s3cret", "HF_TOKEN=(hidden)"),
        ("export HF_TOKEN = 's3cret'", "export HF_TOKEN = '(hidden)'"),
        ("api_key: s3cret", "api_key: (hidden)"),
        (
            'proxy_set_header Authorization "Bearer s3cret";',
            'proxy_set_header Authorization "Bearer (hidden)";',
        ),
        ("HF_TOKEN={{ .hf_token | toJSON }}", None),
        ('{{- with nomadVar "nomad/jobs/vllm" }}HF_TOKEN={{ .hf_token }}{{ end }}', None),
        ('{{ key "vllm/weight" }}', None),
        ('{{- with secret "kv/data/vllm" }}', None),
        ("HF_TOKEN=${OTHER}", None),
        ("HF_TOKEN=", None),
        ("max_tokens: 5", None),
        ("# Basic settings", None),
    ],
)
def test_of_a_template_only_the_secret_is_hidden(line: str, expected: str | None) -> None:
    text = f"PORT=1\n{line}\nNEXT=2\n"
    assert shown(DATA, text) == (text.replace(line, expected or line), expected is not None)


def test_what_an_artifact_is_called_by_is_shown_less_its_secrets() -> None:
    assert (
        named("https://me:s3cret@example.com/x?archive=zip") == "https://(hidden)@example.com/x?archive=zip"
    )
    assert named("s3::https://b/x?aws_access_key_secret=s3cret&version=2") == (
        "s3::https://b/x?aws_access_key_secret=(hidden)&version=2"
    )
    (field, *_) = differing("", 'artifact {\nsource = "https://b/x?token=s3cret"\n}')
    assert field.path == ("task", "t", "artifact", "https://b/x?token=(hidden)", "mode")


def test_a_change_from_one_secret_to_another_is_a_change() -> None:
    (field,) = differing('env {\nHF_TOKEN = "one"\n}', 'env {\nHF_TOKEN = "two"\n}')
    assert (field.before, field.after, field.hidden, field.replaces) == (HIDDEN, HIDDEN, True, True)


def test_a_secret_that_comes_is_told_from_one_that_changes() -> None:
    (field,) = differing("env {}", 'env {\nHF_TOKEN = "two"\n}')
    assert (field.before, field.after, field.hidden) == (None, HIDDEN, True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('args = ["--verbose", "x"]', 'args = ["--api-key", "s3cret"]'),
        ('args = ["--api-key", "s3cret"]', 'args = ["--verbose", "x"]'),
        ('args = ["--api-key", "s3cret"]', 'args = "vllm"'),
        ("args = []", 'args = ["--api-key", "s3cret"]'),
        ("args = [1]", 'args = [["--api-key", "s3cret"]]'),
        ('args = ["a"]', 'logging = [{ config = { "splunk-token" = "s3cret" } }]'),
    ],
)
def test_no_side_of_a_list_shows_it(before: str, after: str) -> None:
    found = differing(f"config {{\n{before}\n}}", f"config {{\n{after}\n}}")
    assert any(field.hidden for field in found)
    assert "s3cret" not in repr(found)
