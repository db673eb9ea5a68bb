"""`status`, `history` and `logs` against a real cluster."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner, Result

from vllmjobs.cli.logs import logs
from vllmjobs.cli.status import history, status
from vllmjobs.cluster.deployments import Deployments, where
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.deploy import records
from vllmjobs.environment.problems import UserError
from vllmjobs.rollout.model import Number, Record, Verdict
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import NewRelease, Release, releases
from vllmjobs_sandbox.cluster.sandbox import Sandbox

VERDICT = Verdict(
    result="pass",
    reason="all metrics are within their limits",
    numbers=(Number(metric="error_rate", canary=0.01, stable=None, limit="at most 0.05", result="pass"),),
    canary_requests=120,
)


def options(release: Release) -> list[str]:
    return [word for key, value in release.settings.items() for word in ("--set", f"{key}={value}")]


def run(command: click.Command, release: Release, *words: str) -> str:
    ended = invoke(command, release, *words)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def invoke(command: click.Command, release: Release, *words: str) -> Result:
    return CliRunner().invoke(command, ["dev", *words, *options(release)], env=release.sandbox.env)


def test_a_job_that_is_not_there_is_said_to_be_started_by_deploy(release: NewRelease) -> None:
    for command in (status, history):
        absent = release()
        error = invoke(command, absent).exception
        assert isinstance(error, UserError)
        deploy = shlex.join(["vllmjobs", "deploy", *absent.words()])
        assert f'in namespace "default"; `{deploy}` starts it' in str(error)


@pytest.fixture(scope="module")
def shown(sandbox: Sandbox) -> Iterator[Release]:
    """Two instances, and from `test_following…` on a canary: one job for these tests, in their order."""
    for new in releases(sandbox, "shown"):
        shown = new(replicas=2)
        shown.run()
        yield shown


def of_version(release: Release, version: int) -> set[str]:
    """How the logs call the instances of a version."""
    return {f"chat {one['ID'][:8]}" for one in release.allocations() if one["JobVersion"] == version}


def prefixes(text: str) -> set[str]:
    return {line.partition(" | ")[0] for line in text.splitlines()}


def test_what_serves_is_well_and_there_is_nothing_to_type(shown: Release) -> None:
    text = run(status, shown)
    assert text.startswith(f"{shown.job}: all is well: version 0, 2 of 2 instances healthy\n")
    assert "next:" not in text
    assert re.search(r"\n0 +20\d\d-\d\d-\d\d .*  -  +successful +- .*current, stable\n", run(history, shown))


def test_logs_of_several_instances_are_told_apart(shown: Release) -> None:
    text = run(logs, shown, "chat", "--tail", "3")
    assert prefixes(text) == of_version(shown, 0)
    assert len(text.splitlines()) <= 3 * 2 * 2
    assert invoke(logs, shown, "none").exit_code == 2  # `Commands` makes it 1


@contextmanager
def following(release: Release, *words: str) -> Iterator[subprocess.Popen[str]]:
    code = "from vllmjobs.cli.logs import logs; logs()"
    command = [sys.executable, "-c", code, "dev", *options(release), "--follow", *words]
    with subprocess.Popen(
        command, env=release.sandbox.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], prefix: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.startswith(prefix):
            return
    raise AssertionError(process.stderr and process.stderr.read())


def test_a_pipe_that_is_closed_ends_it_without_a_word(shown: Release) -> None:
    with following(shown) as process:
        read_until(process, "chat ")
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.wait(60)
        assert process.stderr.read() == ""


def test_following_goes_on_with_instances_that_come_until_ctrl_c(shown: Release) -> None:
    with following(shown, "--tail", "1") as process:
        read_until(process, "chat ")
        shown.run(max_model_len=2048)
        (canary,) = of_version(shown, 1)
        read_until(process, f"{canary} | ")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr
        assert process.stderr.read() == ""


def test_logs_of_canaries_or_of_what_is_stable(shown: Release) -> None:
    canary = of_version(shown, 1)
    assert prefixes(run(logs, shown, "--canary")) == canary
    assert not canary & prefixes(run(logs, shown, "--stable"))


def test_without_consul_the_shares_are_unknown_and_nothing_else(shown: Release) -> None:
    env = {**shown.sandbox.env, "CONSUL_HTTP_ADDR": "127.0.0.1:9"}
    ended = CliRunner().invoke(status, ["dev", *options(shown)], env=env)
    assert ended.exit_code == 0, ended.output
    assert "weight    unknown given, unknown asked" in ended.stdout


def test_history_tells_what_nomad_knows_and_what_was_recorded(sandbox: Sandbox, shown: Release) -> None:
    refused = Record(
        version=1, at="2026-11-23T21:04:05.678Z", by="alice", outcome="refused", reason="too slow",
        now="fire", verdicts={"chat": VERDICT},
    )  # fmt: skip
    records.write(Deployments(NomadApi(sandbox.env)), where(shown.job), refused)
    text = run(history, shown)
    assert re.search(r"\n1 +20\S+ \S+ +alice +refused +pass .*current\n0 ", text)
    assert "\nversion 1: too slow\n" in text
    assert "outside of the maintenance windows: fire" in text
    rows = json.loads(run(history, shown, "--json"))
    assert [row["version"] for row in rows] == [1, 0]
    assert rows[0]["models"]["chat"]


def test_canaries_are_shown_beside_what_serves_with_what_to_type_next(
    sandbox: Sandbox, shown: Release
) -> None:
    entry = Record(
        version=1, at="2026-11-23T21:04:05.678Z", by="alice", steps={"chat": 0}, verdicts={"chat": VERDICT}
    )
    records.write(Deployments(NomadApi(sandbox.env)), where(shown.job), entry)
    shown.wait_until_routed(2048)
    text = run(status, shown)
    assert text.splitlines()[0] == f"{shown.job}: version 1 waits for its promotion: 1 of 1 canaries healthy"
    assert re.search(r"version 1 +canary +1/1 healthy +1 GPU +0 restarts +-  ", text)
    assert re.search(r"version 0 +current +2/2 healthy +2 GPUs +0 restarts +-  ", text)
    assert re.search(r"weight +(9\.\d+|10|10\.\d+) % given, 10 % asked", text)
    assert "verdict   pass: all metrics are within their limits (step 1, 120 requests to canaries" in text
    assert re.search(r"error_rate +0.01 +no data +at most 0.05 +pass", text)
    (promote,) = re.findall(r"^  (vllmjobs promote dev .*?)  ", text, re.MULTILINE)
    (abort,) = re.findall(r"^  (vllmjobs abort dev .*?)  ", text, re.MULTILINE)
    assert promote == abort.replace(" abort ", " promote ")
    seen = json.loads(run(status, shown, "--json"))
    assert seen["is_well"]
    assert [part["role"] for part in seen["groups"][0]["parts"]] == ["canary", "current"]
    assert seen["groups"][0]["parts"][1]["nodes"]

    typed = subprocess.run(abort, shell=True, env=sandbox.env, check=False, capture_output=True, text=True)
    assert typed.returncode == 0, typed.stderr
    wait_until(lambda: len(shown.allocations()) == 2, 30, "the canary has ended")
    text = run(status, shown)
    assert "all is well: version 2, 2 of 2" in text or "is being deployed" in text  # auto_revert
