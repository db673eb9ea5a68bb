#!/usr/bin/env python3
"""The source of dashboard.json, for Grafana; what it prints is that file.

A row is a title and its panels; a panel is a title, a unit, and queries by their legend. OF stands for the
environment and the models that were chosen.
"""

import json
from typing import Any

Panel = tuple[str, str, dict[str, str]]


def quantile(q: float, metric: str, by: str = "model") -> str:
    """Return the query for a quantile of one of vLLM's histograms."""
    rates = f"sum by ({by}, le) (rate(vllm:{metric}_bucket{{OF}}[$__rate_interval]))"
    return f"histogram_quantile({q}, {rates})"


def quantiles(metric: str) -> dict[str, str]:
    """Return the median, and the times that one of twenty and one of a hundred wait longer than."""
    return {f"{{{{model}}}} p{q * 100:g}": quantile(q, metric) for q in (0.5, 0.95, 0.99)}


def rate(metric: str, by: str = "model", where: str = "") -> str:
    """Return the growth of a counter in a second."""
    return f"sum by ({by}) (rate({metric}{{OF{where}}}[$__rate_interval]))"


API = ', handler=~"/v1/.*"'
ANY_MODEL = '{environment="$environment"}'
FAILED = API + ', status="5xx"'

ROWS: dict[str, list[Panel]] = {
    "What callers notice": [
        ("Ready instances", "none", {"{{model}} {{release}}": "vllmjobs:ready_instances{OF}"}),
        ("Requests", "reqps", {"{{model}} {{status}}": rate("http_requests_total", "model, status", API)}),
        (
            "Share of errors",
            "percentunit",
            {
                "{{model}} answered with 5xx": f"{rate('http_requests_total', where=FAILED)}"
                f" / {rate('http_requests_total', where=API)}",
                "{{model}} ended in an error": rate(
                    "vllm:request_success_total", where=', finished_reason="error"'
                )
                + f" / {rate('vllm:request_success_total')}",
            },
        ),
        ("Time to first token", "s", quantiles("time_to_first_token_seconds")),
        ("Between two tokens", "s", quantiles("inter_token_latency_seconds")),
        ("A whole answer", "s", quantiles("e2e_request_latency_seconds")),
    ],
    "Load": [
        (
            "Requests in the engines",
            "none",
            {
                "{{model}} running": "sum by (model) (vllm:num_requests_running{OF})",
                "{{model}} waiting": "sum by (model) (vllm:num_requests_waiting{OF})",
            },
        ),
        ("Time in the queue", "s", quantiles("request_queue_time_seconds")),
        ("KV cache in use", "percentunit", {"{{model}} {{instance}}": "vllm:kv_cache_usage_perc{OF}"}),
        (
            "Tokens per second",
            "none",
            {
                "{{model}} prompt": rate("vllm:prompt_tokens_total"),
                "{{model}} generated": rate("vllm:generation_tokens_total"),
            },
        ),
        (
            "Prompt tokens from the prefix cache",
            "percentunit",
            {
                "{{model}}": f"{rate('vllm:prefix_cache_hits_total')}"
                f" / {rate('vllm:prefix_cache_queries_total')}"
            },
        ),
        (
            "Preempted and refused",
            "reqps",
            {
                "{{model}} preempted": rate("vllm:num_preemptions_total"),
                "{{model}} refused": rate("vllm:admission_rejections_total"),
            },
        ),
    ],
    "Canaries beside stable instances": [
        (
            "Requests",
            "reqps",
            {"{{model}} {{release}}": rate("http_requests_total", "model, release", API)},
        ),
        (
            "Answered with 5xx",
            "percentunit",
            {
                "{{model}} {{release}}": f"{rate('http_requests_total', 'model, release', FAILED)}"
                f" / {rate('http_requests_total', 'model, release', API)}"
            },
        ),
        (
            "Time to first token, p95",
            "s",
            {"{{model}} {{release}}": quantile(0.95, "time_to_first_token_seconds", "model, release")},
        ),
    ],
    "Servers": [
        (
            "Looked at, and answered",
            "none",
            {"{{job}} {{model}} {{release}}": "sum by (job, model, release) (up{OF})"},
        ),
        (
            "Ends that nobody asked for",
            "none",
            {"{{model}} {{instance}}": "vllmjobs_supervisor_instance_failures_total{OF}"},
        ),
        ("Time to load", "s", {"{{model}} {{instance}}": "vllmjobs_supervisor_load_seconds{OF}"}),
        ("GPUs that work", "none", {"{{instance}} {{gpu}}": "vllmjobs_supervisor_gpu_healthy{OF}"}),
        (
            "GPU memory in use",
            "bytes",
            {"{{instance}} {{gpu}}": "vllmjobs_supervisor_gpu_memory_used_bytes{OF}"},
        ),
    ],
    "The balancer": [
        ("Balancers", "none", {"{{environment}}": f"vllmjobs:ready_balancers{ANY_MODEL}"}),
        (
            "Connections of clients (nginx)",
            "none",
            {
                "{{instance}} answered": f"nginx_connections_writing{ANY_MODEL}",
                "{{instance}} in all": f"nginx_connections_active{ANY_MODEL}",
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana 10 and later import it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, of_row in ROWS.items():
        panels.append({"type": "row", "title": row, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for number, panel in enumerate(of_row):
            place = {"x": number % 3 * 8, "y": y + number // 3 * 8, "w": 8, "h": 8}
            panels.append(_panel(*panel, place))
        y += -(-len(of_row) // 3) * 8
    for number, one in enumerate(panels, 1):
        one["id"] = number
    return {
        "title": "vLLM on Nomad",
        "uid": "vllmjobs",
        "tags": ["vllm", "nomad"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("environment", "label_values(up, environment)", several=False),
                _variable("model", 'label_values(up{environment="$environment"}, model)', several=True),
            ]
        },
        "panels": panels,
    }


def _panel(title: str, unit: str, queries: dict[str, str], place: dict[str, int]) -> dict[str, Any]:
    chosen = 'environment="$environment", model=~"$model"'
    return {
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query.replace("OF", chosen), "legendFormat": legend}
            for number, (legend, query) in enumerate(queries.items())
        ],
    }


def _variable(name: str, query: str, several: bool) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": several,
        "includeAll": several,
        "allValue": ".+" if several else None,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
