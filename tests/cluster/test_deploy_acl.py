"""`deploy` where Nomad and Consul have ACLs, by people whose tokens may do what docs/ says and no more."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from vllmjobs_sandbox.cluster.deploying import QUICK, Command, deploying, succeeded
from vllmjobs_sandbox.cluster.release import Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.cluster.secured import Secured, made, published
from vllmjobs_sandbox.traffic.requests import Trickle, versions

OLD, NEW = 1024, 2048
REFUSED = 4
# What Fabio reads; it has no token of its own here.
ANONYMOUS = """
agent_prefix "" { policy = "read" }
key_prefix "fabio/config/" { policy = "read" }
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
"""
POLICIES = {
    "approver": ("approvals.md", "approver.policy.hcl"),
    "deployer": ("approvals.md", "deployer.policy.hcl"),
    "deploys": ("deploy.md", "Nomad"),
}


@pytest.fixture(scope="module")
def secured() -> Iterator[Sandbox]:
    """One node with simulated GPUs, and a Fabio."""
    with Sandbox(clients=1, balancers=False, acls=True) as sandbox:
        consul(sandbox, "policy", "create", "-name=anonymous", "-rules=-", text=ANONYMOUS)
        consul(sandbox, "token", "update", "-accessor-id=anonymous", "-policy-name=anonymous")
        rules = published("deploy.md", "Consul")
        consul(sandbox, "policy", "create", "-name=deploys", "-rules=-", text=rules)
        for name, (page, title) in POLICIES.items():
            manager(sandbox).nomad("acl", "policy", "apply", name, "-", text=published(page, title))
        sandbox.run(sandbox.render("dev", "--job", "fabio"))
        yield sandbox


def manager(sandbox: Sandbox) -> Secured:
    return Secured({"NOMAD_ADDR": sandbox.nomad_address}, sandbox.folder, sandbox.token)


def consul(sandbox: Sandbox, kind: str, *words: str, text: str | None = None) -> str:
    return sandbox._run(["consul", "acl", kind, *words], text)


class Person:
    """Somebody with a token of Nomad, and one of Consul where they need it."""

    def __init__(self, sandbox: Sandbox, name: str, policy: str, consul_policy: str = "") -> None:
        self.env = {"NOMAD_TOKEN": manager(sandbox).person(name, policy), "CONSUL_HTTP_TOKEN": ""}
        if consul_policy:
            words = ("create", f"-description={name}", f"-policy-name={consul_policy}", "-format=json")
            self.env["CONSUL_HTTP_TOKEN"] = made(consul(sandbox, "token", *words))

    def deploys(self, release: Release, **chat: Any) -> Command:
        return deploying(release, env=self.env, **chat)

    def is_refused(self, release: Release, **chat: Any) -> str:
        """Why."""
        with self.deploys(release, **chat) as command:
            assert command.end() == REFUSED, command.evidence()
            assert "registered" not in command.kinds()
            return command.evidence()

    def approves(self, release: Release, **chat: Any) -> None:
        subprocess.run(
            ["vllmjobs", "approve", *release.words(**chat)],
            env=release.sandbox.env | self.env,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def test_only_what_two_others_have_approved_is_deployed(secured: Sandbox) -> None:
    quick = QUICK | {"replicas": 1}
    release = Release(secured, "vllm-dev", {f"models.chat.{key}": value for key, value in quick.items()})
    release.settings["approvals"] = "2"
    ann, ben = (Person(secured, name, "approver") for name in ("ann", "ben"))
    dan = Person(secured, "dan", "deployer", "deploys")

    assert "version 0" in dan.is_refused(release)
    ann.approves(release)
    assert "1 of 2 approvals (ann)" in dan.is_refused(release)
    ben.approves(release)
    succeeded(dan.deploys(release))
    release.wait_until_routed(OLD)

    change = {"max_model_len": NEW}
    assert "version 1" in (said := dan.is_refused(release, **change))
    assert "0 of 2 approvals" in said
    ann.approves(release, **change)
    Person(secured, "dan", "approver").approves(release, **change)
    assert "1 of 2 approvals (ann); your own does not count" in dan.is_refused(release, **change)
    ben.approves(release, **change)
    with Trickle(release.address, per_second=10) as load:
        deployed = succeeded(dan.deploys(release, **change))
        assert load.answered > 0
    assert load.failures == []
    assert {*deployed.kinds()} >= {"verdict", "shifted", "promoted", "stopped"}
    assert versions(release.address, 20) == {NEW: 20}

    release.settings["approvals"] = "0"
    said = dan.is_refused(release)
    assert "0 of 2 approvals; it weakens approvals: 2 → 0; 2 other people must run vllmjobs approve" in said
    assert "--set approvals=0" in said

    # With the policy of docs/deploy.md, and back, for which nobody is asked.
    eve = Person(secured, "eve", "deploys", "deploys")
    succeeded(Command(secured, ["rollback", *release.words()], env=eve.env))
    assert versions(release.address, 20) == {OLD: 20}
