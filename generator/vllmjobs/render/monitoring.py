"""The names that the templates of Prometheus see: the models that it watches, and the alerts."""

import pkgutil
from functools import cache
from typing import Any

import msgspec
import yaml
from msgspec import structs

from vllmjobs.balancers import balancer_of
from vllmjobs.balancers.instances import IP_PATTERN, PORT_PATTERN
from vllmjobs.environment.derive import TASK_USERS, service_name
from vllmjobs.environment.model import Environment
from vllmjobs.environment.monitoring import PrometheusJob
from vllmjobs.environment.quantity import duration, seconds
from vllmjobs.environment.supervision import is_supervised

THRESHOLD = "THRESHOLD"


class Alert(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One alert of `alerts.yaml`; the name of its runbook is the alert's own, `GpuMemory` → gpu-memory.md."""

    alert: str
    source: str  # the origin of the figures
    expr: str  # PromQL, with THRESHOLD for that of a severity
    lasting: str = msgspec.field(name="for")
    warning: float | None = None
    critical: float | None = None
    summary: str
    description: str

    @property
    def runbook(self) -> str:
        """Return the name of its page."""
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in self.alert).lstrip("-")

    @property
    def severities(self) -> dict[str, str]:
        """Return the expression of each severity."""
        given, expr = {"warning": self.warning, "critical": self.critical}, self.expr.strip()
        return {
            name: expr.replace(THRESHOLD, f"{value:g}") for name, value in given.items() if value is not None
        }


@cache
def alerts() -> list[Alert]:
    """Return every alert, in the order of the file."""
    text = pkgutil.get_data(__name__, "alerts.yaml")
    assert text is not None
    return msgspec.convert(yaml.safe_load(text), list[Alert])


def prometheus_context(environment: Environment) -> dict[str, Any]:
    """Return the context of `prometheus.nomad.hcl.j2` and of `prometheus.rules.yml.j2`."""
    prometheus = environment.monitoring.prometheus or PrometheusJob()
    return {
        "environment": environment,
        # Of the job as a whole, it shares what is not about GPUs.
        "nomad": structs.replace(environment.nomad, node_pool=prometheus.node_pool),
        "prometheus": prometheus,
        "retention": duration(seconds(prometheus.retention)),  # Prometheus knows no fractions of a unit
        "name": service_name(environment, "prometheus"),
        "user": prometheus.user or TASK_USERS[prometheus.driver],
        "bridged": prometheus.driver == "docker",
        "targets": _targets(environment, prometheus),
        "wanted": [name for name, model in environment.models.items() if model.replicas > 0],
        "balancer": balancer_of(environment).service,
        "ip_pattern": IP_PATTERN,
        "port_pattern": PORT_PATTERN,
        # What vLLM takes by itself is no reason to wake anybody.
        "planned_gpu_memory": max(model.gpu_memory_utilization for model in environment.models.values()),
        "alerts": alerts(),
    }


def _targets(environment: Environment, prometheus: PrometheusJob) -> dict[str, dict[str, str | None]]:
    """Return what is scraped: by Prometheus's job, then by service in Consul, the model of the service."""
    balancer = balancer_of(environment)
    services = {name: service_name(environment, name) for name in sorted(environment.models)}
    by_job: dict[str, dict[str, str | None]] = {
        "vllm": {service: name for name, service in services.items()},
        "supervisor": {
            service: name
            for name, service in services.items()
            if is_supervised(environment, environment.models[name])
        },
        "balancer": {balancer.service: None} if balancer.service and balancer.shows_metrics else {},
        "dcgm": {prometheus.dcgm: None} if prometheus.dcgm else {},
    }
    return {job: services for job, services in by_job.items() if services}
