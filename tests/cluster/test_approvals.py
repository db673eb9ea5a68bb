"""Approvals on a real Nomad with ACLs, by tokens that may do what docs/approvals.md says and no more."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from vllmjobs.cli import main
from vllmjobs.cluster.deployments import Deployments, where_of
from vllmjobs.cluster.failures import ForbiddenError, NomadError
from vllmjobs.cluster.nomad import NomadApi, Where
from vllmjobs.deploy import records
from vllmjobs.deploy.gates import Gates, approvals, approved, proposed, write_approval
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.rollout import Maintenance, Rollout, Window
from vllmjobs.rollout.gates import Approval, Approved, Proposal, RefusedError, digest, propose, rules_of
from vllmjobs.rollout.model import Record
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.cluster.secured import Secured, published, secured_server

NOW = datetime(2026, 11, 23, 21, 4, 5, 678000, tzinfo=UTC)
COMMAND = "vllmjobs approve prod"
TWO = Environment(models={"chat": Model(model="m")}, approvals=2)
NONE = replace(TWO, approvals=0)
# Open for a minute of each year that begins on a Monday, so that no test ever meets it.
NEVER = Maintenance([Window("0 0 1 1 1", "1m")])
UNKNOWN = propose("prod", 0, 0, "d", rules_of(TWO))
HCL = """
job "{name}" {{
  meta {{
    change = "{change}"
  }}
  group "g" {{
    task "t" {{
      driver = "raw_exec"
      config {{
        command = "sleep"
      }}
    }}
  }}
}}
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_server(tmp_path_factory.mktemp("gates")) as server:
        for name in ("approver", "deployer"):
            server.nomad(
                "acl", "policy", "apply", name, "-", text=published("approvals.md", f"{name}.policy.hcl")
            )
        yield server


class Job:
    """A job of a test's own on the secured server, and what one wants to release of it."""

    def __init__(self, secured: Secured, name: str) -> None:
        self.secured, self.name = secured, name
        self.deployer = self.person("dan", "deployer")
        self.environment = TWO
        self.change("one")

    def change(self, change: str) -> None:
        self.hcl = HCL.format(name=self.name, change=change)
        self.spec = self.deployer.cluster.parse(self.hcl)
        self.where = where_of(self.spec)

    def person(self, name: str, policy: str = "approver") -> Deployments:
        """A new token of a person."""
        return Deployments(
            NomadApi(self.secured.environ | {"NOMAD_TOKEN": self.secured.person(name, policy)})
        )

    @property
    def latest(self) -> int | None:
        job = self.deployer.cluster.job(*self.where)
        return job["Version"] if job else None

    @property
    def digest(self) -> str:
        return digest(self.environment, {"vllm": self.hcl})

    def proposed(self, who: Deployments, version: int | None = None) -> Proposal:
        return proposed(who, self.where, self.environment, self.digest, version)

    def approve(self, who: Deployments) -> list[Approval]:
        return write_approval(who, self.where, self.proposed(who), NOW)

    def gate(self, who: Deployments | None = None, version: int | None = None) -> Approved | None:
        who = who or self.deployer
        return approved(who, self.where, self.proposed(who, version), COMMAND)

    def admit(self, now: str = "") -> Record:
        """Pass the gates as `deploy` does, as the deployer."""
        gates = Gates(self.environment, "envs/prod.yaml", self.digest, now, COMMAND, self.deployer)
        return gates.admit(self.where, 0 if self.latest is None else self.latest + 1, is_resumed=False)

    def refused(self, who: Deployments | None = None) -> str:
        with pytest.raises(RefusedError) as error:
            self.gate(who)
        return str(error.value)

    def register(self) -> None:
        job = self.deployer.cluster.job(*self.where)
        self.deployer.register(self.spec, job["JobModifyIndex"] if job else 0)

    def deploy(self, now: str = "") -> Record:
        """Pass the gates, register, and record it with success, as `deploy` does."""
        record = self.admit(now)
        self.register()
        job = self.deployer.cluster.job(*self.where)
        assert job
        record = replace(record, version=job["Version"], life=job["CreateIndex"], outcome="successful")
        records.write(self.deployer, self.where, record)
        return record

    def purge(self) -> None:
        self.secured.nomad("job", "stop", "-detach", "-purge", self.name)


@pytest.fixture
def job(secured: Secured, request: pytest.FixtureRequest) -> Iterator[Job]:
    job = Job(secured, re.sub(r"[^a-z0-9]+", "-", request.node.name)[:60].strip("-"))
    yield job
    if job.latest is not None:
        job.purge()


# Who counts


def test_two_others_open_the_gate_and_one_does_not(job: Job) -> None:
    short = job.digest[:12]
    assert job.refused() == (
        f"{job.name}, version 0, {short}: 0 of 2 approvals; 2 other people must run {COMMAND}"
    )
    job.approve(job.person("ann"))
    assert job.refused() == (
        f"{job.name}, version 0, {short}: 1 of 2 approvals (ann); one other person must run {COMMAND}"
    )
    job.approve(job.person("ben"))
    found = job.gate()
    assert found
    assert [(each.who, each.at) for each in found.by] == [
        ("ann", "2026-11-23T21:04:05.678Z"), ("ben", "2026-11-23T21:04:05.678Z"),
    ]  # fmt: skip


def test_who_deploys_cannot_approve_with_another_token_of_theirs_either(job: Job) -> None:
    job.approve(job.person("ann"))
    job.approve(job.person("Dan\u200b"))
    assert "1 of 2 approvals (ann); your own does not count" in job.refused()
    assert {each.who for each in approvals(job.deployer, job.where)} == {"ann", "Dan\u200b"}


def test_the_same_person_twice_counts_once(job: Job) -> None:
    ann = job.person("ann")
    for who in (ann, ann, job.person("ann"), job.person("Ann"), job.person("ann "), job.person("ann\u200b")):
        job.approve(who)
    assert "1 of 2 approvals" in job.refused()


def test_a_person_may_deploy_what_others_have_approved_and_approve_what_others_deploy(job: Job) -> None:
    ann, ben = job.person("ann"), job.person("ben")
    job.approve(ann)
    job.approve(ben)
    assert job.gate(job.person("cem"))
    assert "1 of 2 approvals (ben); your own does not count" in job.refused(ann)


def test_a_manager_is_a_person_like_any_other(job: Job) -> None:
    manager = Deployments(NomadApi(job.secured.environ | {"NOMAD_TOKEN": job.secured.manager}))
    job.approve(manager)
    assert "1 of 2 approvals (Bootstrap Token)" in job.refused()


# What counts


def test_a_new_version_voids_what_was_approved_before(job: Job) -> None:
    ann, ben = job.person("ann"), job.person("ben")
    job.approve(ann)
    job.approve(ben)
    job.register()
    assert job.gate(version=0), "its release may be resumed"
    assert "version 1" in job.refused()
    job.change("two")
    assert job.approve(ann)[-1].version == 1
    assert {each.version for each in approvals(job.deployer, job.where)} == {0, 1}
    job.register()
    job.change("three")
    job.approve(ben)
    assert {each.version for each in approvals(job.deployer, job.where)} == {1, 2}


def test_another_content_is_not_what_was_approved(job: Job) -> None:
    job.approve(job.person("ann"))
    job.approve(job.person("ben"))
    job.change("other")
    assert "0 of 2 approvals" in job.refused()
    job.change("one")
    assert job.gate()


def test_a_version_that_somebody_else_registers_in_between_voids_too(job: Job) -> None:
    job.approve(job.person("ann"))
    job.approve(job.person("ben"))
    wanted = job.spec
    job.change("other")
    job.register()
    with pytest.raises(NomadError, match="someone else has changed the job"):
        job.deployer.register(wanted, 0)
    job.change("one")
    assert "version 1" in job.refused()


def test_another_analysis_is_not_what_was_approved(job: Job) -> None:
    job.approve(job.person("ann"))
    job.approve(job.person("ben"))
    job.environment = replace(TWO, models={"chat": Model(model="m", rollout=Rollout(analysis=None))})
    assert "0 of 2 approvals" in job.refused()


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_purge_voids_what_was_approved(job: Job, is_recorded: bool) -> None:
    """Also where nobody recorded the release: Nomad remembers its registration for an hour."""
    ann, ben = job.person("ann"), job.person("ben")
    job.approve(ann)
    job.approve(ben)
    job.deploy() if is_recorded else job.register()
    assert job.gate(version=0), "its release may be resumed"
    job.purge()
    assert "version 0" in (said := job.refused())
    assert "0 of 2 approvals" in said
    assert len(job.approve(ann)) == 1
    assert "1 of 2 approvals (ann)" in job.refused()
    job.approve(ben)
    job.deploy()
    assert job.gate(version=0), "its release may be resumed"


def test_approvals_at_the_same_time_are_all_kept(job: Job) -> None:
    people = [job.person(f"person-{number}") for number in range(6)]
    ready = threading.Barrier(len(people))

    def at_once(person: Deployments) -> None:
        ready.wait()
        job.approve(person)

    threads = [threading.Thread(target=at_once, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(approvals(job.deployer, job.where)) == len(people)


def test_what_is_no_approval_in_the_variable_is_passed_over(job: Job) -> None:
    manager = Deployments(NomadApi(job.secured.environ | {"NOMAD_TOKEN": job.secured.manager}))
    one = json.dumps({"accessor": "a", "name": "", "version": 0, "life": 0, "digest": "", "at": ""})
    written = {"note": "hello", "v0.b": one, "v0.c": "[]", "v1.a": one}
    manager.write_variable(f"vllmjobs/approvals/{job.name}", written, 0, job.where)
    assert approvals(job.deployer, job.where) == []


# What weakens a gate


def weaken_is_refused(job: Job, now: str = "") -> str:
    with pytest.raises(RefusedError) as error:
        job.admit(now)
    return str(error.value)


def test_fewer_approvals_take_the_approvals_of_before_and_are_recorded(job: Job) -> None:
    ann, ben = job.person("ann"), job.person("ben")
    job.approve(ann)
    job.approve(ben)
    assert job.deploy().approved == ("ann", "ben")
    job.change("two")
    job.environment = NONE
    for now in ("", "CVE-2026-1234"):
        assert weaken_is_refused(job, now) == (
            f"{job.name}, version 1, {job.digest[:12]}: 0 of 2 approvals; it weakens approvals: 2 → 0; "
            f"2 other people must run {COMMAND}"
        )
    job.approve(ann)
    job.approve(ben)
    assert job.deploy("CVE-2026-1234").weakened == ("approvals: 2 → 0",)
    (last, first) = records.read(job.deployer, job.where)
    assert (last.approved, last.now, last.weakened) == (
        ("ann", "ben"),
        "CVE-2026-1234",
        ("approvals: 2 → 0",),
    )
    assert (last.rules, first.rules) == (rules_of(NONE), rules_of(TWO))
    job.change("three")
    assert job.admit().weakened == (), "from then on, they are the rules"


def test_wider_windows_take_the_old_ones_and_another_person_or_words(job: Job) -> None:
    job.environment = replace(NONE, maintenance=NEVER)
    assert "closed until" in weaken_is_refused(job)
    job.deploy("the first")
    job.change("two")
    job.environment = NONE
    assert (said := weaken_is_refused(job)).endswith(
        f'0 of 1 approvals; it weakens maintenance: "0 0 1 1 1" for 1m UTC → any time; '
        f"one other person must run {COMMAND}, or --now REASON deploys it anyway"
    ), said
    job.approve(job.person("ann"))
    assert "as last deployed: maintenance: closed until" in weaken_is_refused(job), "the old window, too"
    assert job.deploy("the new windows").weakened != ()
    assert records.read(job.deployer, job.where)[0].now == "the new windows"


def test_neither_a_purge_nor_a_rollback_nor_a_failed_release_takes_a_gate_away(job: Job) -> None:
    ann, ben = job.person("ann"), job.person("ben")
    job.approve(ann)
    job.approve(ben)
    job.deploy()
    back = Record(version=1, at="", by="", is_way_back=True)
    records.write(job.deployer, job.where, back)
    records.write(job.deployer, job.where, replace(back, version=2, rules=rules_of(NONE), outcome="refused"))
    assert [one.rules for one in records.read(job.deployer, job.where)][1:] == [rules_of(TWO)] * 2
    job.environment = NONE
    assert "it weakens approvals: 2 → 0" in weaken_is_refused(job)
    job.purge()
    assert "it weakens approvals: 2 → 0" in weaken_is_refused(job)


# Who may


def test_a_token_without_the_policy_gets_the_capability_named(job: Job) -> None:
    with pytest.raises(ForbiddenError) as error:
        job.approve(job.deployer)
    assert str(error.value).endswith(
        f'NOMAD_TOKEN lacks the ACL capability write on variable "vllmjobs/approvals/{job.name}" '
        'in namespace "default"'
    )
    job.secured.nomad("acl", "policy", "apply", "reader", "-", text='namespace "default" { policy = "read" }')
    eve = job.person("eve", "reader")
    asks: dict[str, Callable[[], object]] = {
        "approvals": lambda: approved(eve, job.where, UNKNOWN, COMMAND),
        "releases": lambda: job.gate(eve),
    }
    for variable, ask in asks.items():
        with pytest.raises(ForbiddenError) as error:
            ask()
        assert str(error.value).endswith(
            f'NOMAD_TOKEN lacks the ACL capability read on variable "vllmjobs/{variable}/{job.name}" '
            'in namespace "default"'
        )


def test_nobody_approves_and_nobody_deploys_without_a_token(job: Job) -> None:
    nobody = Deployments(NomadApi(job.secured.environ))
    with pytest.raises(ForbiddenError, match="this cluster has ACLs; set NOMAD_TOKEN"):
        write_approval(nobody, job.where, UNKNOWN, NOW)
    with pytest.raises(ForbiddenError, match="this cluster has ACLs; set NOMAD_TOKEN"):
        approved(nobody, job.where, UNKNOWN, COMMAND)


def test_where_none_are_required_nothing_is_asked(job: Job) -> None:
    nowhere = Deployments(NomadApi({"NOMAD_ADDR": "http://127.0.0.1:1"}))
    assert approved(nowhere, job.where, propose("prod", 0, 0, "d", rules_of(NONE)), COMMAND) is None


def test_where_acls_are_off_it_refuses_and_says_why(sandbox: Sandbox) -> None:
    releases, where = Deployments(NomadApi(sandbox.env)), Where("vllm-prod", "default", "global")
    asks: dict[str, Callable[[], object]] = {
        "deploys": lambda: approved(releases, where, UNKNOWN, COMMAND),
        "approves": lambda: write_approval(releases, where, UNKNOWN, NOW),
    }
    for does, ask in asks.items():
        with pytest.raises(RefusedError) as error:
            ask()
        assert str(error.value) == (
            f"{sandbox.nomad_address}: approvals are required, and with ACLs off nobody can tell who {does}; "
            "turn ACLs on (docs/approvals.md), or set approvals: 0"
        )


# As a person types it


ENVIRONMENT = """
job: vllm-typed
approvals: 2
models:
  chat:
    model: facebook/opt-125m
    gpus: {memory: 7 GiB}
"""


def test_what_a_person_sees(secured: Secured, tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/prod.yaml").write_text(ENVIRONMENT)

    def typed(who: str, *arguments: str) -> Result:
        environ = secured.environ | {"NOMAD_TOKEN": secured.person(who, "approver")}
        done = CliRunner().invoke(
            main, ["approve", "prod", "--project", str(tmp_path), *arguments], env=environ
        )
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    assert re.fullmatch(
        r"vllm-typed, version 0, [0-9a-f]{12}: 1 of 2 approvals\n  ann, 20\S+Z\n", typed("ann").stdout
    )
    done = typed("ben", "--set", "models.chat.replicas=2")
    assert re.fullmatch(
        r"vllm-typed, version 0, ([0-9a-f]{12}): 1 of 2 approvals\n  ben, 20\S+Z\n"
        r"  ann, 20\S+Z: for other content, (?!\1)[0-9a-f]{12}; does not count\n",
        done.stdout,
    )
    listed = typed("cem", "--list").stdout
    assert "1 of 2 approvals\n  ann" in listed
    assert "cem" not in listed
    assert "asks for no approvals" in typed("ann", "--set", "approvals=0").stdout
    wrong = typed("ann", "--set", "models.chat.image=vllm:latest")
    assert (wrong.exit_code, "VJ503" in wrong.stderr) == (1, True)
