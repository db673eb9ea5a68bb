"""A real Nomad with ACLs and TLS: what a token has to be allowed, and what a certificate has to be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.failures import ForbiddenError, NomadError
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs_sandbox.cluster import ports
from vllmjobs_sandbox.cluster.nomad import NomadAgent, server_config
from vllmjobs_sandbox.cluster.process import start, stop
from vllmjobs_sandbox.cluster.programs import programs
from vllmjobs_sandbox.cluster.secured import Secured, nomad, secured_server

UNKNOWN_TOKEN = "11111111-2222-3333-4444-555555555555"
JOB = """
job "reads/plans" {
  namespace = "team"
  group "g" {
    task "t" {
      driver = "raw_exec"
      config {
        command = "sleep"
      }
    }
  }
}
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Talks only to whom its CA knows, and a client's certificate is at hand."""
    with secured_server(tmp_path_factory.mktemp("mutual"), verify_clients=True) as server:
        server.nomad("namespace", "apply", "team")
        yield server


def capable(secured: Secured, *capabilities: str) -> str:
    """A token with these capabilities in the job's namespace, and no others."""
    listed = ", ".join(f'"{capability}"' for capability in capabilities)
    name = "-".join(capabilities)
    return secured.token(name, f'namespace "team" {{ capabilities = [{listed}] }}')


def refusal(call: Callable[[], object], kind: type[NomadError] = NomadError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value).partition(f"{error.value}".split(": ")[0] + ": ")[2]


# What a token may do


ASK: dict[str, Callable[[Cluster], object]] = {
    "devices": lambda cluster: cluster.devices(),
    "parse": lambda cluster: cluster.parse(JOB, "team"),
    "plan": lambda cluster: cluster.plan({"ID": "reads/plans", "Namespace": "team", "Region": "global",
                                          "Datacenters": ["*"], "TaskGroups": [{"Name": "g", "Tasks": [
                                              {"Name": "t", "Driver": "raw_exec"}]}]}),
    "job": lambda cluster: cluster.job("reads/plans", "team"),
    "deployment": lambda cluster: cluster.deployment("reads/plans", "team"),
}  # fmt: skip
IN_TEAM = 'in namespace "team"'
NEEDS = {
    "devices": "node:read",
    "parse": f"parse-job or submit-job {IN_TEAM}",
    "plan": f"plan-job (submit-job before Nomad 1.11.2) {IN_TEAM}",
    "job": f"read-job {IN_TEAM}",
    "deployment": f"read-job {IN_TEAM}",
}


@pytest.mark.parametrize(
    ("capabilities", "may"),
    [
        (["read-job"], {"job", "deployment"}),
        (["plan-job"], {"plan"}),
        (["parse-job"], {"parse"}),
        (["submit-job"], {"parse", "plan"}),
        (["list-jobs"], set()),
    ],
    ids=["read-job", "plan-job", "parse-job", "submit-job", "list-jobs"],
)
def test_a_missing_capability_is_named_with_the_namespace(
    secured: Secured, capabilities: list[str], may: set[str]
) -> None:
    cluster = Cluster(NomadApi(secured.environ | {"NOMAD_TOKEN": capable(secured, *capabilities)}))
    for name, ask in ASK.items():
        if name in may:
            ask(cluster)
        else:
            said = f"Permission denied; NOMAD_TOKEN lacks the ACL capability {NEEDS[name]}"
            assert refusal(lambda ask=ask: ask(cluster), ForbiddenError) == said  # type: ignore[misc]


def test_three_capabilities_are_enough_for_a_plan(secured: Secured) -> None:
    cluster = Cluster(
        NomadApi(secured.environ | {"NOMAD_TOKEN": capable(secured, "parse-job", "plan-job", "read-job")})
    )
    job = cluster.parse(JOB, "team")
    assert cluster.plan(job)["Diff"]["Type"] == "Added"
    assert cluster.job(job["ID"], job["Namespace"]) is None
    assert cluster.deployment(job["ID"], job["Namespace"]) is None
    assert cluster.nomad.version() is None


def test_a_capability_in_another_namespace_is_none(secured: Secured) -> None:
    cluster = Cluster(NomadApi(secured.environ | {"NOMAD_TOKEN": capable(secured, "parse-job")}))
    assert refusal(lambda: cluster.parse(JOB), ForbiddenError).endswith(
        'lacks the ACL capability parse-job or submit-job in namespace "default"'
    )


@pytest.mark.parametrize("name", ASK)
@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "set NOMAD_TOKEN to a token with the ACL capability {}"),
        (UNKNOWN_TOKEN, "NOMAD_TOKEN is not, or no longer, a token of this cluster"),
        ("not-even-a-uuid", "NOMAD_TOKEN is not, or no longer, a token of this cluster"),
    ],
)
def test_a_token_that_is_missing_or_unknown_is_told_as_that(
    secured: Secured, name: str, token: str, said: str
) -> None:
    cluster = Cluster(NomadApi(secured.environ | {"NOMAD_TOKEN": token}))
    assert (
        refusal(lambda: ASK[name](cluster), ForbiddenError)
        == f"Permission denied; {said.format(NEEDS[name])}"
    )


def test_a_token_that_has_ended_is_told_as_unknown(secured: Secured) -> None:
    token = capable(secured, "read-job")
    cluster = Cluster(NomadApi(secured.environ | {"NOMAD_TOKEN": token}))
    assert cluster.job("reads/plans", "team") is None
    me = cluster.nomad.api.acl.get_self_token()["AccessorID"]
    secured.nomad("acl", "token", "delete", me)
    assert "is not, or no longer, a token of this cluster" in refusal(
        lambda: cluster.job("reads/plans", "team"), ForbiddenError
    )


# A server that does not serve


def test_a_server_without_a_leader_and_one_that_has_too_many_connections(tmp_path: Path) -> None:
    block = ports.take_block()
    agent = NomadAgent("lone", block.take(), block.take(), block.take())
    config = tmp_path / "server.hcl"
    config.write_text(
        server_config(agent, f"{tmp_path}/data", "127.0.0.1:1", servers=3)
        + "limits {\n  http_max_conns_per_client = 1\n}\n"
    )
    server = start("nomad", [programs()["nomad"], "agent", "-config", config], tmp_path / "log", {})
    try:
        first, second = (Cluster(NomadApi({"NOMAD_ADDR": agent.address}, pauses=())) for _ in range(2))
        server.wait_until(first.nomad.version, 60, "it answers", ignoring=(NomadError,))
        assert refusal(lambda: first.job("reads/plans")) == (
            "500: No cluster leader; do enough of its servers run, and reach each other?"
        )
        assert refusal(lambda: second.job("reads/plans")) == (
            "too many requests (429: Your IP is issuing too many concurrent connections, "
            "please rate limit your calls); try again later"
        )
    finally:
        stop([server])
        block.release()


# Whom the server trusts


def test_a_client_certificate_that_is_wanted_is_asked_for(secured: Secured) -> None:
    environ = {key: secured.environ[key] for key in ("NOMAD_ADDR", "NOMAD_CACERT")}
    cluster = Cluster(NomadApi(environ, sleep=lambda _: None))
    wanted = "it wants a client certificate; set NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY"
    assert refusal(cluster.devices) == wanted
    # So large that the server hangs up while it is still being sent, and why is not always heard.
    assert refusal(lambda: cluster.parse(JOB * 50_000)) in (
        wanted,
        "the connection was cut before the answer was complete; "
        "does it want a client certificate, NOMAD_CLIENT_CERT?",
    )


def test_a_client_certificate_of_another_ca_is_told(secured: Secured, tmp_path: Path) -> None:
    nomad(tmp_path, "tls", "ca", "create")
    nomad(tmp_path, "tls", "cert", "create", "-client", "-region", "global")
    cluster = Cluster(
        NomadApi(
            secured.environ
            | {
                "NOMAD_CLIENT_CERT": str(tmp_path / "global-client-nomad.pem"),
                "NOMAD_CLIENT_KEY": str(tmp_path / "global-client-nomad-key.pem"),
            }
        )
    )
    assert refusal(cluster.devices) == (
        "it does not accept the certificate in NOMAD_CLIENT_CERT (TLSV1_ALERT_UNKNOWN_CA)"
    )


def test_one_file_may_hold_the_certificate_and_its_key(secured: Secured, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(
        Path(secured.environ["NOMAD_CLIENT_CERT"]).read_bytes()
        + Path(secured.environ["NOMAD_CLIENT_KEY"]).read_bytes()
    )
    more = {"NOMAD_CLIENT_CERT": str(both), "NOMAD_CLIENT_KEY": "", "NOMAD_TOKEN": secured.manager}
    assert Cluster(NomadApi(secured.environ | more)).devices() == []


def test_a_certificate_that_cannot_be_used_is_told_with_its_file(secured: Secured) -> None:
    def said(**more: str) -> str:
        with pytest.raises(NomadError) as error:
            Cluster(NomadApi(secured.environ | more))
        return str(error.value).replace(str(secured.folder), "…")

    folder = secured.folder
    assert said(NOMAD_CLIENT_CERT="") == (
        "NOMAD_CLIENT_KEY is …/global-client-nomad-key.pem, but NOMAD_CLIENT_CERT, its certificate, "
        "is not set"
    )
    assert said(NOMAD_CLIENT_KEY="") == (
        "NOMAD_CLIENT_CERT is …/global-client-nomad.pem: it cannot be read as PEM, or holds no key beside "
        "the certificate; set NOMAD_CLIENT_KEY"
    )
    assert said(NOMAD_CLIENT_KEY=f"{folder}/none.pem") == (
        "NOMAD_CLIENT_KEY is …/none.pem: No such file or directory"
    )
    assert said(NOMAD_CLIENT_KEY=f"{folder}/global-server-nomad-key.pem") == (
        "NOMAD_CLIENT_CERT is …/global-client-nomad.pem: its key is not the one in NOMAD_CLIENT_KEY, "
        "…/global-server-nomad-key.pem"
    )
    shutil.copy(folder / "server.hcl", folder / "text.pem")
    assert said(NOMAD_CLIENT_KEY=f"{folder}/text.pem") == (
        "NOMAD_CLIENT_CERT is …/global-client-nomad.pem: it, or NOMAD_CLIENT_KEY, …/text.pem, cannot be read "
        "as PEM without a password"
    )
