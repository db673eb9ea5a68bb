"""Each alert, by Prometheus's own judge of rules: when it fires, and when it does not."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from vllmjobs.cli.common import Selection
from vllmjobs.environment.model import Environment
from vllmjobs.project.templates import templates
from vllmjobs.render.job import render
from vllmjobs.render.monitoring import Alert, alerts
from vllmjobs_sandbox.cluster.programs import CHECKOUT

ENVIRONMENT = """
job: vllm-prod
monitoring: {prometheus: {runbooks: "https://docs.example.com/runbooks"}}
models: {chat: {model: a/small, gpu_memory_utilization: 0.9}}
"""
ALERTMANAGER = CHECKOUT / "docs/monitoring/alertmanager.yml"
PAGE = CHECKOUT / "docs/monitoring.md"
RUNBOOKS = CHECKOUT / "docs/runbooks"
OF = 'environment="vllm-prod",model="chat"'
AT = f'job="vllm",release="stable",instance="10.0.0.1:8000",{OF}'
SUPERVISOR = AT.replace("vllm", "supervisor", 1)
GPU = f'gpu="0",instance="10.0.0.1:9400",{OF.partition(",")[0]}'
ANSWERS = f'http_requests_total{{handler="/v1/completions",{AT},status='
ENDED = f"vllm:request_success_total{{{AT},finished_reason="
FIRST_TOKEN = f"vllm:time_to_first_token_seconds_bucket{{{AT},le="


class Case(NamedTuple):
    """What is scraped, in the judge's notation (`0+60x150`: from 0, 60 more at each of 150 looks)."""

    alert: str
    name: str
    series: dict[str, str]
    fires: set[str]
    at: str = "30m"


def answers(well: int, failed: int) -> dict[str, str]:
    return {f'{ANSWERS}"2xx"}}': f"0+{well}x150", f'{ANSWERS}"5xx"}}': f"0+{failed}x150"}


def first_tokens(fast: int, slow: int, bound: float) -> dict[str, str]:
    """So many a minute within a second, and so many up to that bound."""
    every = fast + slow
    counts = {"1": fast, f"{bound / 2:g}": fast, f"{bound:g}": every, "+Inf": every}
    return {f'{FIRST_TOKEN}"{le}"}}': f"0+{count}x150" for le, count in counts.items()}


def by_dcgm(used: int) -> dict[str, str]:
    return {
        f"DCGM_FI_DEV_FB_USED{{{GPU}}}": f"{used}x150",
        f"DCGM_FI_DEV_FB_FREE{{{GPU}}}": f"{1000 - used}x150",
    }


def by_supervisor(used: int) -> dict[str, str]:
    return {
        f"vllmjobs_supervisor_gpu_memory_used_bytes{{{OF_GPU}}}": f"{used}x150",
        f"vllmjobs_supervisor_gpu_memory_total_bytes{{{OF_GPU}}}": "1000x150",
    }


def preempted(times: int) -> dict[str, str]:
    return {f"vllm:num_preemptions_total{{{AT}}}": f"0+{times}x150", f'{ENDED}"stop"}}': "0+100x150"}


def ready(stable: str, canary: str = "0x150") -> dict[str, str]:
    of = f"vllmjobs:ready_instances{{{OF}"
    return {f'{of},release="stable"}}': stable, f'{of},release="canary"}}': canary}


def gauge(name: str, values: str, labels: str = AT) -> dict[str, str]:
    return {f"{name}{{{labels}}}": values}


WAITING = "vllm:num_requests_waiting"
CACHE = "vllm:kv_cache_usage_perc"
FAILURES = "vllmjobs_supervisor_instance_failures_total"
STARTED = "process_start_time_seconds"
HEALTHY = "vllmjobs_supervisor_gpu_healthy"
OF_GPU = f'{SUPERVISOR},gpu="GPU-1"'
CANARY = AT.replace("stable", "canary")
CASES = [
    Case("NoReadyInstance", "none", ready("0x150"), {"critical"}),
    Case("NoReadyInstance", "only a canary", ready("0x150", "1x150"), set()),
    Case("NoReadyInstance", "for half a minute", ready("2x29 0 2x120"), set()),
    Case("BalancerDown", "none", gauge("vllmjobs:ready_balancers", "0x150", OF), {"critical"}),
    Case("BalancerDown", "one", gauge("vllmjobs:ready_balancers", "1x150", OF), set()),
    Case("BalancerDown", "just now", gauge("vllmjobs:ready_balancers", "1x29 0x120", OF), set()),
    Case("ErrorRate", "6 %", answers(94, 6), {"warning", "critical"}),
    Case("ErrorRate", "2 %", answers(98, 2), {"warning"}),
    Case("ErrorRate", "half a percent", answers(199, 1), set()),
    Case("ErrorRate", "not for long", answers(94, 6), set(), "2m"),
    Case("ErrorRate", "nobody asks", answers(0, 0), set()),
    Case(
        "ErrorRate",
        "after a stream's 200",
        {**answers(100, 0), f'{ENDED}"stop"}}': "0+90x150", f'{ENDED}"error"}}': "0+10x150"},
        {"warning", "critical"},
    ),
    Case("ResponseTime", "20 s", first_tokens(90, 10, 20), {"warning", "critical"}),
    Case("ResponseTime", "8 s", first_tokens(90, 10, 8), {"warning"}),
    Case("ResponseTime", "one of fifty is slow", first_tokens(98, 2, 20), set()),
    Case("ResponseTime", "not for long", first_tokens(90, 10, 20), set(), "4m"),
    Case("QueueGrowth", "fast", gauge(WAITING, "0+4x150"), {"warning", "critical"}),
    Case("QueueGrowth", "slowly", gauge(WAITING, "0+1x150"), {"warning"}),
    Case("QueueGrowth", "long, and shorter each minute", gauge(WAITING, "200-1x150"), set()),
    Case("QueueGrowth", "short", gauge(WAITING, "0+0.1x150"), set()),
    Case("QueueGrowth", "not for long", gauge(WAITING, "0+4x150"), set(), "7m"),
    Case("KvCacheFull", "99 %", gauge(CACHE, "0.99x150"), {"warning", "critical"}),
    Case("KvCacheFull", "95 %", gauge(CACHE, "0.95x150"), {"warning"}),
    Case("KvCacheFull", "80 %", gauge(CACHE, "0.8x150"), set()),
    Case("KvCacheFull", "not for long", gauge(CACHE, "0.99x150"), set(), "9m"),
    Case("Preemptions", "two of each request", preempted(200), {"warning", "critical"}),
    Case("Preemptions", "one of five requests", preempted(20), {"warning"}),
    Case("Preemptions", "one of a hundred", preempted(1), set()),
    Case("Preemptions", "not for long", preempted(200), set(), "5m"),
    Case("Restarts", "two, supervised", gauge(FAILURES, "0x10 1x5 2x140", SUPERVISOR), {"warning"}),
    Case("Restarts", "two, by Nomad", gauge(STARTED, "100x10 700x5 1000x140"), {"warning"}),
    Case("Restarts", "one", gauge(FAILURES, "0x10 1x150", SUPERVISOR), set()),
    Case("Restarts", "two, long ago", gauge(FAILURES, "0x10 1x5 2x140", SUPERVISOR), set(), "100m"),
    Case("GivenUp", "one", gauge("vllmjobs_supervisor_instance_given_up", "1x150", SUPERVISOR), {"critical"}),
    Case("GivenUp", "none", gauge("vllmjobs_supervisor_instance_given_up", "0x150", SUPERVISOR), set()),
    Case("GpuUnhealthy", "now", gauge(HEALTHY, "1x20 0x130", OF_GPU), {"critical"}),
    Case("GpuUnhealthy", "the last word", gauge(HEALTHY, "1x20 0 stale", OF_GPU), {"critical"}),
    Case("GpuUnhealthy", "none", gauge(HEALTHY, "1x150", OF_GPU), set()),
    *(
        case
        for source, memory in (("dcgm-exporter", by_dcgm), ("supervisor", by_supervisor))
        for case in (
            Case("GpuMemory", f"98 %, by the {source}", memory(980), {"warning", "critical"}),
            Case("GpuMemory", f"94 %, by the {source}", memory(940), {"warning"}),
            Case("GpuMemory", f"what vLLM was told to take, by the {source}", memory(910), set()),
            Case("GpuMemory", f"not for long, by the {source}", memory(980), set(), "4m"),
        )
    ),
    # The judge counts alerts: one GPU that both show is one.
    Case("GpuMemory", "98 %, by both", by_dcgm(980) | by_supervisor(980), {"warning", "critical"}),
    Case("DeploymentStuck", "for 140 minutes", gauge("up", "1x150", CANARY), {"warning"}, "140m"),
    Case("DeploymentStuck", "for 100 minutes", gauge("up", "1x150", CANARY), set(), "100m"),
    Case("DeploymentStuck", "no canary", gauge("up", "1x150"), set(), "140m"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    path = tmp_path_factory.mktemp("monitored") / "prod.yaml"
    path.write_text(ENVIRONMENT)
    return Selection(str(path)).environment


@pytest.fixture(scope="module")
def rules(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of alert rules, as the job of Prometheus ships it."""
    path = tmp_path_factory.mktemp("rules") / "alerts.yml"
    job = render(environment, "prometheus", templates(path.parent))
    (shipped,) = re.findall(r'"local/rules/alerts.yml".*?data\s*= <<EOF\n(.*?)\nEOF\n', job, re.DOTALL)
    path.write_text(shipped)
    return path


def judged(program: str, *words: str | Path) -> str:
    """What promtool or amtool says of a file that it is to find no fault with."""
    found = subprocess.run(
        [CHECKOUT / "scripts/packaged", program], stdout=subprocess.PIPE, text=True, check=True
    )
    done = subprocess.run(
        [found.stdout.strip(), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_prometheus_finds_no_fault_with_the_rules(rules: Path) -> None:
    assert "SUCCESS" in judged("promtool", "check", "rules", "--lint=all", "--lint-fatal", rules)


def test_each_alert_fires_when_it_should_and_at_no_other_time(rules: Path, tmp_path: Path) -> None:
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [
                {
                    # promtool's words for a failure hold the expression, so it names the case.
                    "expr": f'count by (alertname, severity) (ALERTS{{alertstate="firing", case!="{name}"}})',
                    "eval_time": case.at,
                    "exp_samples": [
                        {"labels": f'{{alertname="{case.alert}",severity="{severity}"}}', "value": 1}
                        for severity in sorted(case.fires)
                    ],
                }
            ],
        }
        for case in CASES
        if (name := f"{case.alert}: {case.name}")
    ]
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))
    judged("promtool", "test", "rules", path)


def test_no_alert_goes_without_a_case_for_each_severity_and_one_in_which_it_is_silent() -> None:
    for alert in alerts():
        of_it = [case.fires for case in CASES if case.alert == alert.alert]
        assert set().union(*of_it) == set(alert.severities), alert.alert
        assert set() in of_it, alert.alert
        if len(alert.severities) == 2:
            assert {"warning"} in of_it, alert.alert


def test_an_alert_says_what_is_the_matter_and_where_to_read_on(rules: Path, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if (case.alert, case.name) == ("ErrorRate", "2 %"))
    expected = {
        "summary": "2% of the requests to chat fail",
        "description": "Over 5 minutes, 2% of the requests to chat in vllm-prod were answered with a 5xx, or "
        "ended in an error.",
        "runbook_url": "https://docs.example.com/runbooks/error-rate.md",
    }
    labels = {"environment": "vllm-prod", "model": "chat", "severity": "warning"}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [
            {
                "eval_time": case.at,
                "alertname": case.alert,
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": expected}],
            }
        ],
    }
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": [str(rules)], "tests": [test]}))
    judged("promtool", "test", "rules", path)


def test_every_alert_has_its_source_and_its_runbook(rules: Path) -> None:
    assert all(alert.source for alert in alerts())
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    found: list[dict[str, Any]] = [rule for rule in group["rules"] if "alert" in rule]
    assert {rule["labels"]["severity"] for rule in found} == {"warning", "critical"}
    for rule in found:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", rule["alert"]).lower()
        assert rule["annotations"]["runbook_url"] == f"https://docs.example.com/runbooks/{name}.md"
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


def routed(**labels: str) -> str:
    """Who is told of an alert with these labels, as Alertmanager's own tool has it."""
    words = (f"{name}={value}" for name, value in labels.items())
    said = judged("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", *words)
    return re.sub("Warning: .*", "", said).strip()  # 0.25 warns of the option that it was given


def test_the_alertmanager_to_start_from_wakes_somebody_for_critical_alerts_of_production_alone() -> None:
    assert "SUCCESS" in judged("amtool", "check-config", ALERTMANAGER)
    assert routed(alertname="ErrorRate", environment="vllm-prod", severity="critical") == "on-call"
    assert routed(alertname="ErrorRate", environment="vllm-prod", severity="warning") == "chat"
    assert routed(alertname="ErrorRate", environment="vllm-dev", severity="critical") == "chat"


def test_the_alertmanager_to_start_from_silences_alerts_that_there_are() -> None:
    rules = yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]
    matchers = [one for rule in rules for one in (*rule["source_matchers"], *rule["target_matchers"])]
    named = {name for one in matchers if "alertname" in one for name in re.findall(r"[A-Z]\w+", one)}
    assert named <= {alert.alert for alert in alerts()}


def test_the_page_lists_every_alert_with_its_figures() -> None:
    rows = re.findall(r"^\| `([A-Z]\w+)`: [^|]+\|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows} == {
        alert.alert: [shown(alert, alert.warning), shown(alert, alert.critical), alert.lasting]
        for alert in alerts()
    }


def shown(alert: Alert, threshold: float | None) -> str:
    (operator,) = set(re.findall(r"([<>]=?) THRESHOLD", alert.expr))
    return "" if threshold is None else f"{operator} {threshold:g}"


def test_every_alert_has_its_runbook_and_every_runbook_is_in_the_index() -> None:
    pages = {path.name for path in RUNBOOKS.glob("*.md")} - {"README.md"}
    assert {f"{alert.runbook}.md" for alert in alerts()} <= pages
    assert set(re.findall(r"\| \[[\w-]+\]\(([\w-]+\.md)\) \|", (RUNBOOKS / "README.md").read_text())) == pages
