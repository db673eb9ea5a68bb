"""The Prometheus of an environment as a Nomad job: what it finds, what alerts and dashboard see of it."""

import json
import re
import runpy
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from vllmjobs.render.monitoring import alerts
from vllmjobs_sandbox.cluster import ports, prometheus
from vllmjobs_sandbox.cluster.deploying import Command, succeeded
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.programs import CHECKOUT, packaged
from vllmjobs_sandbox.cluster.release import Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import ask, http

JOB = "vllm-dev"
SUPERVISED = "[vllmjobs-supervise, --, stand-in-engine, serve]"
BALANCER = f"{JOB}-nginx"
EXPORTER = "stands-in-for-dcgm"  # Prometheus itself, under another name
SOON = 30.0  # seconds, from a change in Consul to a look at what is new
REQUESTS = 12
DASHBOARD = CHECKOUT / "docs/monitoring/dashboard.json"
# What alerts and dashboard ask for, and a run on a machine without a GPU cannot show.
NOT_HERE = {
    "DCGM_FI_DEV_FB_USED": "dcgm-exporter needs a GPU",
    "DCGM_FI_DEV_FB_FREE": "dcgm-exporter needs a GPU",
    "vllmjobs_supervisor_gpu_healthy": "without NVML, the supervisor knows of no GPU",
    "vllmjobs_supervisor_gpu_memory_used_bytes": "the same",
    "vllmjobs_supervisor_gpu_memory_total_bytes": "the same",
}


class Watched:
    """An environment behind nginx with a stable instance and a canary, and the Prometheus that watches it."""

    def __init__(self, sandbox: Sandbox, port: int) -> None:
        self.sandbox = sandbox
        self.address = f"http://127.0.0.1:{port}"
        self.release = Release.behind_nginx(sandbox, entrypoint=SUPERVISED, replicas=1)
        # The sandbox's own may be one that does not count its connections.
        nginx = sandbox.folder / "nginx-with-metrics"
        shutil.copy(packaged("nginx"), nginx)
        self.release.settings |= {"balancer.command": str(nginx), "balancer.metrics": "true"}
        self.release.run_nginx()
        self.release.run()
        settings = {
            "driver": "raw_exec",
            "command": prometheus.program(),
            "port": port,
            "scrape_interval": "1s",
            "disk": "100 MiB",
            "memory": "128 MiB",
            "dcgm": EXPORTER,
        }
        options = [f"--set=monitoring.prometheus.{key}={value}" for key, value in settings.items()]
        sandbox.consul.agent.service.register(EXPORTER, address="127.0.0.1", port=port)
        words = ["deploy", *self.release.words(), *options, "--job", "prometheus"]
        with Command(sandbox, words) as deploy:
            self.release.run(max_model_len=2048)
            succeeded(deploy)

    def get(self, path: str, **params: str) -> Any:
        with http() as client:
            answer = client.get(f"{self.address}/api/v1/{path}", params=params)
        assert answer.is_success, answer.text
        return answer.json()["data"]

    def query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """What the real Prometheus answers: labels and value of each series."""
        found = self.get("query", query=query)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def targets(self) -> dict[tuple[str, str, str], str]:
        """The health of each target, by its job, model and release."""
        found = [(one["labels"], one["health"]) for one in self.get("targets")["activeTargets"]]
        return {(of["job"], of.get("model", ""), of.get("release", "")): health for of, health in found}

    def ready(self) -> dict[str, float]:
        """How many instances are ready, as Prometheus has it from Consul, by their release."""
        return {of["release"]: value for of, value in self.query("vllmjobs:ready_instances")}

    def connections(self) -> float:
        """How many nginx has, as Prometheus saw it last."""
        ((_, value),) = self.query('nginx_connections_active{job="balancer"}')
        return value

    def evidence(self) -> str:
        return self.sandbox.evidence(f"{JOB}-prometheus")


@pytest.fixture(scope="module")
def watched(sandbox: Sandbox) -> Iterator[Watched]:
    block = ports.take_block()
    try:
        yield Watched(sandbox, block.take())
    finally:
        known = {job["ID"] for job in sandbox.nomad.jobs.get_jobs()}
        sandbox.purge(*known & {JOB, f"{JOB}-prometheus"})
        sandbox.consul.agent.service.deregister(EXPORTER)
        Release.behind_nginx(sandbox).run_nginx()
        block.release()


def test_it_finds_every_instance_and_its_supervisor_through_consul(watched: Watched) -> None:
    expected = {
        ("vllm", "chat", "stable"): "up",
        ("vllm", "chat", "canary"): "up",
        ("supervisor", "chat", "stable"): "up",
        ("supervisor", "chat", "canary"): "up",
        ("balancer", "", ""): "up",
        ("dcgm", "", ""): "up",
        ("prometheus", "", ""): "up",
    }
    wait_until(
        lambda: watched.targets() == expected,
        SOON,
        "all targets are up",
        evidence=lambda: f"{watched.targets()}\n{watched.evidence()}",
        ignoring=(httpx.HTTPError,),
    )
    _, services = watched.sandbox.consul.health.service(f"{JOB}-chat")
    canaries = {
        f"{one['Service']['Address']}:{one['Service']['Port']}"
        for one in services
        if "canary" in one["Service"]["Tags"]
    }
    found = watched.query('up{job="vllm", release="canary"}')
    assert {(of["environment"], of["instance"]) for of, _ in found} == {(JOB, one) for one in canaries}
    ((of, _),) = watched.query('vllmjobs_supervisor_instance_ready{release="canary"}')
    assert (of["server"], "exported_instance" in of) == ("chat", False)


def test_it_sees_the_connections_of_the_balancer(watched: Watched) -> None:
    wait_until(lambda: watched.connections() == 1, SOON, "there is none but its own", ignoring=(ValueError,))
    address = httpx.URL(watched.release.address)
    with ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(socket.create_connection((address.host, address.port)))
        wait_until(lambda: watched.connections() == 4, SOON, "there are three more")
    ((of, _),) = watched.query("nginx_up")
    _, services = watched.sandbox.consul.health.service(BALANCER)
    (at,) = {f"{one['Service']['Address']}:{one['Service']['Meta']['metrics_port']}" for one in services}
    assert (of["environment"], of["instance"]) == (JOB, at)


def test_it_knows_from_consul_how_many_instances_and_balancers_are_ready(watched: Watched) -> None:
    wait_until(
        lambda: watched.ready() == {"stable": 1, "canary": 1},
        SOON,
        "both instances are counted",
        evidence=watched.evidence,
    )
    assert [value for _, value in watched.query("vllmjobs:ready_balancers")] == [1]


def test_it_evaluates_every_rule_and_none_fires_on_a_run_that_is_well(watched: Watched) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: {rule["health"] for rule in rules()} == {"ok"}, SOON, "all were evaluated")
    assert {rule["name"] for rule in rules() if rule["type"] == "alerting"} == {one.alert for one in alerts()}
    assert not [rule for rule in rules() if rule.get("state") == "firing"]


def test_every_query_of_the_dashboard_is_answered(watched: Watched) -> None:
    for _ in range(REQUESTS):
        assert ask(watched.release.address).pieces
    for title, query in dashboard_queries():
        wait_until(
            lambda query=query: watched.query(query) or not_here(query),  # type: ignore[misc]
            SOON,
            f"{title} shows something: {query}",
        )


def test_every_metric_of_an_alert_or_the_dashboard_is_one_that_was_scraped(watched: Watched) -> None:
    scraped = set(watched.get("label/__name__/values"))
    of_alerts = [expr for alert in alerts() for expr in alert.severities.values()]
    asked = {name for query in (*of_alerts, *dict(dashboard_queries()).values()) for name in names(query)}
    assert asked - scraped == NOT_HERE.keys()


def test_nomad_finds_no_fault_with_the_job_in_docker(watched: Watched) -> None:
    settings = {"volume": "data", "alertmanager": "127.0.0.1:9093", "dcgm": EXPORTER}
    options = [f"--set=monitoring.prometheus.{key}={value}" for key, value in settings.items()]
    hcl = watched.sandbox.render("dev", *options, "--job", "prometheus")
    done = watched.sandbox.nomad_cli("job", "validate", "-", input=hcl)
    assert (done.returncode, done.stdout.strip()) == (0, "Job validation successful"), done.stderr


def test_the_dashboard_is_what_its_source_makes() -> None:
    made = runpy.run_path(str(DASHBOARD.with_suffix(".py")))["dashboard"]()
    how = "python3 docs/monitoring/dashboard.py >docs/monitoring/dashboard.json"
    assert json.loads(DASHBOARD.read_text()) == made, how


def test_it_sees_within_seconds_that_the_last_instance_is_gone(watched: Watched) -> None:
    """The last but one here: it stops what the others look at."""
    watched.sandbox.nomad_cli("job", "stop", "-detach", "-no-shutdown-delay", JOB)
    wait_until(
        lambda: watched.ready() == {"stable": 0, "canary": 0},
        SOON,
        "none is ready",
        evidence=watched.evidence,
    )
    wait_until(
        lambda: (
            ("NoReadyInstance", "pending")
            in {(one["labels"]["alertname"], one["state"]) for one in watched.get("alerts")["alerts"]}
        ),
        SOON,
        "the alert is pending",
    )
    wait_until(
        lambda: {job for job, *_ in watched.targets()} == {"balancer", "dcgm", "prometheus"},
        SOON,
        "it looks at none",
    )


def test_it_does_not_look_at_a_balancer_that_shows_no_metrics(watched: Watched) -> None:
    """After the last: nginx serves nobody any more."""
    Release.behind_nginx(watched.sandbox).run_nginx()
    wait_until(
        lambda: {job for job, *_ in watched.targets()} == {"dcgm", "prometheus"}, SOON, "it does not look"
    )


def dashboard_queries() -> list[tuple[str, str]]:
    """Each query by its panel's title and legend, with the variables filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [
        (f"{panel['title']}: {target['legendFormat']}", filled(target["expr"]))
        for panel in panels
        for target in panel.get("targets", ())
    ]


def filled(query: str) -> str:
    for variable, value in {"environment": JOB, "model": ".+", "__rate_interval": "1m"}.items():
        query = query.replace(f"${variable}", value)
    return query


def names(query: str) -> set[str]:
    """The metrics that a query reads."""
    return set(
        re.findall(r"\b(?:vllm|http_requests|nginx|DCGM|process_start|up\b)[A-Za-z0-9_:]*", bare(query))
    )


def bare(query: str) -> str:
    """Without label values, in which the names of jobs stand."""
    return re.sub(r'"[^"]*"', '""', query)


def not_here(query: str) -> bool:
    return bool(names(query) & NOT_HERE.keys()) or "5xx" in query
