"""Real jobspecs, which use other words than the tool's own jobs, read as Nomad reads them."""

from typing import Any

import pytest
from msgspec import json

from vllmjobs.changes.compare import compare
from vllmjobs.changes.hiding import HIDDEN, shown
from vllmjobs.changes.jobs import registered
from vllmjobs.changes.jobs.canonical import canonicalize
from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.jobs.tree import Tree, below
from vllmjobs.changes.model import Field, JobChange
from vllmjobs.environment.problems import UserError

DATA = ("task", "web", "template", "local/x", "data")
ENV = ("task", "web", "env")


def job(body: str, beside: str = "") -> str:
    return f'{beside}\njob "shop" {{\n{body}\n}}\n'


def task(body: str, name: str = "web") -> str:
    return f'group "front" {{\ntask "{name}" {{\n{body}\n}}\n}}'


def changed(before: str, after: str) -> JobChange:
    (found,) = compare("vllm", read(before, "before"), read(after, "after"))
    return found


def fields(found: JobChange) -> list[Field]:
    return [*found.fields, *(field for group in found.groups for field in group.fields)]


# Two ways to write the same


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (
            'constraint {\nattribute = "${attr.arch}"\nregexp = "amd64|arm64"\n}',
            'constraint {\nattribute = "${attr.arch}"\noperator = "regexp"\nvalue = "amd64|arm64"\n}',
        ),
        (
            "constraint {\ndistinct_hosts = true\n}",
            'constraint {\noperator = "distinct_hosts"\nvalue = "true"\n}',
        ),
        (
            'constraint {\ndistinct_property = "${meta.rack}"\n}',
            'constraint {\noperator = "distinct_property"\nattribute = "${meta.rack}"\n}',
        ),
        ('task "web" {\ndriver = "exec"\n}', 'group "web" {\ntask "web" {\ndriver = "exec"\n}\n}'),
        ("vault {}\n" + task("vault {}"), task("vault {}")),
        ('group "front" {\nvault {}\ntask "web" {}\n}', task("vault {}")),
        (task("service {\nport = 80\n}"), task('service {\nport = 80\nname = "shop-front-web"\n}')),
        (task('service {\nname = "x"\n}'), task('service {\nname = "x"\ncheck_restart {}\n}')),
        (
            task('service {\nname = "x"\ncheck {\nname = "up"\ntask = "web"\n}\n}'),
            task('service {\nname = "x"\ncheck {\nname = "up"\n}\n}'),
        ),
        (task('csi_plugin {\nid = "x"\n}'), task('csi_plugin {\nid = "x"\nhealth_timeout = "30s"\n}')),
        ("parameterized {}", 'parameterized {\npayload = "optional"\n}'),
        (
            'group "front" {\nscaling {\nmin = 2\nmax = 4\n}\n}',
            'group "front" {\ncount = 2\nscaling {\nmin = 2\nmax = 4\n}\n}',
        ),
        (
            'spread {\nattribute = "${meta.rack}"\ntarget "r1" {\npercent = 60\n}\n}',
            'spread {\nattribute = "${meta.rack}"\ntarget "r1" {\npercent = "60"\n}\n}',
        ),
    ],
)  # fmt: skip
def test_the_short_way_and_the_long_one_are_the_same(short: str, long: str) -> None:
    assert fields(changed(job(short), job(long))) == []


def test_a_group_counts_as_many_as_its_scaling_has_at_least() -> None:
    found = changed(job('group "front" {\nscaling {\nmin = 2\n}\n}'), job('group "front" {\ncount = 3\n}'))
    assert (found.groups[0].count_before, found.groups[0].count_after) == (2, 3)


@pytest.mark.parametrize("name", ["env", "config", "meta", "policy", "task", "web"])
def test_a_task_may_be_called_like_a_block(name: str) -> None:
    assert (
        fields(changed(job(task('kill_timeout = "60s"', name)), job(task('kill_timeout = "1m"', name)))) == []
    )


# Variables and locals

VARIABLE = 'variable "tag" {\ndefault = "1"\n}'
LOCALS = 'locals {\nimage = "shop:${var.tag}"\n}'


@pytest.mark.parametrize("image", ["shop:${var.tag}", "${local.image}"])
def test_the_default_of_a_variable_stands_where_it_is_used(image: str) -> None:
    body = task(f'config {{\nimage = "{image}"\n}}')
    found = changed(
        job(body, VARIABLE + "\n" + LOCALS), job(body, VARIABLE.replace("1", "2") + "\n" + LOCALS)
    )
    (field,) = fields(found)
    assert (".".join(field.path), field.before, field.after) == ("task.web.config.image", "shop:1", "shop:2")
    assert found.groups[0].actions == ("destructive",)


def test_a_variable_that_only_nomad_works_out_is_seen_to_change() -> None:
    body = task("config {\nimage = upper(var.tag)\n}")
    (field,) = fields(changed(job(body, VARIABLE), job(body, VARIABLE.replace("1", "2"))))
    assert (field.path, field.before, field.after) == (("var", "tag"), "1", "2")


def test_a_variable_that_nothing_uses_is_no_change() -> None:
    assert changed(job(task("")), job(task(""), VARIABLE)).action == "none"


def test_what_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(UserError, match="x: is nested too deeply"):
        read(job(f"a = {'[' * 5000}{']' * 5000}"), "x")


# As a running job has it


def tree(group: dict[str, Any]) -> Tree:
    job = {"ID": "shop", "Type": "service", "TaskGroups": [{"Name": "front", "Count": 1, **group}]}
    return below(below(registered.tree(job), "group"), "front")


def told(diff: dict[str, Any], before: Tree, after: Tree) -> list[str]:
    return [".".join(field.path) for field in registered.planned_fields(diff, before, after)]


def test_false_is_said_where_the_default_is_true() -> None:
    group = tree({"Disconnect": {"Replace": False}, "Scaling": {"Enabled": False, "Min": 0, "Max": 3}})
    assert group["disconnect"] == {"replace": "false", "reconcile": "best_score"}
    assert group["scaling"] == {"enabled": "false", "min": "0", "max": "3"}


def test_a_task_has_its_own_identity_beside_others() -> None:
    of_task = {
        "Identity": {"Name": "default", "Env": True},
        "Identities": [{"Name": "vault_default", "File": True}],
    }
    group = tree({"Tasks": [{"Name": "web", **of_task}]})
    assert below(below(below(group, "task"), "web"), "identity").keys() == {"default", "vault_default"}


def test_numbers_of_a_driver_are_the_same_once_the_job_runs() -> None:
    one, other = (tree({"Tasks": [{"Name": "web", "Config": {"shm_size": size}}]}) for size in (64, 64.0))
    assert json.encode(one) == json.encode(other)


def test_a_check_without_a_name_is_the_same_once_the_job_runs() -> None:
    one, other = (
        tree({"Services": [{"Name": "web", "Checks": [{"Type": "http", "Name": name}]}]})
        for name in ("", 'service: "web" check')
    )
    assert one == other


def test_a_service_has_its_name_before_the_job_runs() -> None:
    (name,) = below(tree({"Services": [{"Name": "${BASE}-${NOMAD_JOB_NAME}"}]}), "service")
    assert name == "shop-front-group-${NOMAD_JOB_NAME}"


def test_a_check_of_a_services_task_is_the_same_once_the_job_runs() -> None:
    one, other = (
        tree({"Services": [{"Name": "web", "TaskName": "web", "Checks": [{"Name": "up", **said}]}]})
        for said in ({}, {"TaskName": "web"})
    )
    assert one == other


def test_the_proxy_that_nomad_adds_is_no_change() -> None:
    proxy = {"Name": "connect-proxy-web", "Lifecycle": {"Hook": "prestart", "Sidecar": True}}
    running, new = tree({"Tasks": [{"Name": "web"}, proxy]}), tree({"Tasks": [{"Name": "web"}]})
    assert told({}, running, new) == []


def test_the_identity_that_the_servers_give_to_a_service_is_no_change() -> None:
    running = tree({"Services": [{"Name": "web", "Identity": {"Audience": ["consul.io"]}}]})
    new = tree({"Services": [{"Name": "web", "PortLabel": "http"}]})
    service: dict[str, Any] = {"Name": "Service", "Type": "Edited"}
    assert told({"Objects": [service]}, running, new) == ["service.web.port"]
    service["Objects"] = [{"Name": "Identity", "Type": "Deleted"}]
    assert "service.web.identity.default.aud" in told({"Objects": [service]}, running, new)


def test_a_sidecar_that_says_nothing_is_there() -> None:
    group = tree({"Services": [{"Name": "web", "Connect": {"SidecarService": {"Port": ""}}}]})
    hcl = 'group "front" {\nservice {\nname = "web"\nconnect {\nsidecar_service {}\n}\n}\n}'
    written = below(below(canonicalize(read(job(hcl), "x")), "group"), "front")
    assert group["service"] == written["service"]


# Secrets by other names


@pytest.mark.parametrize(
    "name",
    ["OPENAI_KEY2", "MY_SECRET_VALUE", "PGPASS", "MYSQL_PWD", "GITHUB_PAT", "REDIS_AUTH", "SENTRY_DSN",
     "TOKENS", "SLACK_WEBHOOK_URL", "SECRET_KEY_BASE", "AZURE_STORAGE_CONNECTION_STRING", "clientSecretOld"],
)  # fmt: skip
def test_an_oddly_named_secret_is_hidden(name: str) -> None:
    assert shown((*ENV, name), "x7Kq2mPw") == (HIDDEN, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MAX_TOKENS", "4096"), ("TOKENIZERS_PARALLELISM", "false"), ("SSL_KEY_FILE", "/etc/ssl/key"),
     ("TOKENIZER_MODE", "mistral"), ("PATH", "bin"), ("KEYBOARD", "us"), ("MONKEY", "x"), ("PASSES", "3")],
)  # fmt: skip
def test_what_is_plain_is_shown(name: str, value: str) -> None:
    assert shown((*ENV, name), value) == (value, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://:s3cret@db:6379/0", "redis://(hidden)@db:6379/0"),
        ("https://abcdefghijklmnop@sentry.example.com/1", "https://(hidden)@sentry.example.com/1"),
        ("host=db user=me password=s3cret", "host=db user=me password=(hidden)"),
        ("Server=db;Password=s3cret;Port=1", "Server=db;Password=(hidden);Port=1"),
        ("AccountName=me;AccountKey=s3cret", "AccountName=me;AccountKey=(hidden)"),
        ("Bearer abcdefgh", "Bearer (hidden)"),
        ('{"auth": "s3cret", "x": 1}', '{"auth": "(hidden)", "x": 1}'),
        ("curl -u me:s3cret http://x", "curl -u me:(hidden) http://x"),
        ("docker://example.com/chat@sha256:0123456789abcdef", None),
        ("--user 1000:1000", None),
        ("git@example.com:team/x.git", None),
        ("proxy_pass http://chat:8000;", None),
    ],
)  # fmt: skip
def test_of_any_text_only_the_secret_is_hidden(text: str, expected: str | None) -> None:
    assert shown((*ENV, "X"), text) == (expected or text, expected is not None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-----BEGIN PRIVATE KEY-----\nMIIE\nqq\n-----END PRIVATE KEY-----\n",
         "(hidden)\n"),
        ("a:\n  password: |\n    s3cret\n  b: 1\n", "a:\n  password: |\n(hidden)\n  b: 1\n"),
        ("requirepass s3cret\n", "requirepass (hidden)\n"),
        ("<password>s3cret</password>", "<password>(hidden)</password>"),
        ("password = {{ .password }}\n", None),
    ],
)  # fmt: skip
def test_of_a_file_only_the_secret_is_hidden(text: str, expected: str | None) -> None:
    assert shown(DATA, text) == (expected or text, expected is not None)
