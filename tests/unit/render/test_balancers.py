"""What the balancers' jobs hold, and an nginx.conf that nginx itself accepts.

How upstreams follow Consul is tested in tests/cluster/test_nginx.py, by Nomad's own template engine.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllmjobs.cli.common import Selection
from vllmjobs.environment.model import Environment
from vllmjobs.project.templates import templates
from vllmjobs.render.job import render
from vllmjobs_sandbox.cluster import nginx, ports, process
from vllmjobs_sandbox.cluster.programs import packaged
from vllmjobs_sandbox.traffic.requests import http

FLEET = """
nomad:
  region: eu
  namespace: ml
  datacenters: [dc1]
  node_pool: gpu
  priority: 80
  max_kill_timeout: 20m
  constraints: [{attribute: "${node.class}", value: gpu}]
"""
MODELS = f"""{FLEET}
models:
  chat:
    model: a/small
    drain: {{longest_stream: 2m}}
    route: {{path: /chat/v1/, strip: /chat}}
  large-one:
    model: a/large
    drain: {{longest_stream: 10m}}
    route: {{host: large.example.com, path: /v1/}}
  anything:
    model: a/third
    route: {{path: /}}
"""
# Flags that are in Fabio 1.5.15 as in 1.7.3 (config/load.go); it aborts on any other.
FABIO_FLAGS = {
    "proxy.addr", "proxy.strategy", "proxy.dialtimeout", "proxy.responseheadertimeout", "proxy.shutdownwait",
    "proxy.noroutestatus", "ui.addr", "ui.access", "registry.consul.addr", "registry.consul.checksRequired",
    "registry.consul.register.enabled", "log.level", "log.access.target", "log.access.format",
}  # fmt: skip
# Beside them in Fabio 1.6 and later; 1.5.15 ends on the target and does not know the buckets.
FABIO_METRICS = {"metrics.target", "metrics.prefix", "metrics.prometheus.buckets"}


def environment(folder: Path, balancer: str, more: str = MODELS, *settings: str) -> Environment:
    path = folder / "edge.yaml"
    path.write_text(f"job: edge\nbalancer: {balancer}\n{more}")
    return Selection(str(path), settings).environment


def job(folder: Path, balancer: str, more: str = MODELS, *settings: str) -> str:
    kind = "nginx" if "nginx" in balancer else "fabio"
    return render(environment(folder, balancer, more, *settings), kind, templates(folder))


def file(hcl: str, name: str) -> str:
    """A file that the job's `template` blocks write, before Nomad fills it."""
    found = re.search(rf'"local/{name}".*?<<EOF\n(.*?)\nEOF\n', hcl, re.DOTALL)
    assert found, name
    return found[1]


def nginx_conf(hcl: str) -> str:
    conf = file(hcl, "nginx.conf")
    for port, label in ((18080, "http"), (18081, "admin")):
        conf = conf.replace(f'{{{{ env "NOMAD_ADDR_{label}" }}}}', f"127.0.0.1:{port}")
    assert "{{" not in conf
    return conf


def upstreams_without_instances() -> str:
    return "".join(
        f'split_clients $request_id ${kind}_{model} {{ * ""; }}\n'
        for kind in ("pool", "instances")
        for model in ("chat", "large_one", "anything")
    )


def value(hcl: str, key: str) -> str:
    found = re.search(rf"^ *{re.escape(key)} += (.*)$", hcl, re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.parametrize("program", nginx.at_hand(), ids=lambda path: path.parts[1])
@pytest.mark.parametrize("driver", ["docker", "raw_exec"])
def test_nginx_accepts_its_configuration(tmp_path: Path, program: Path, driver: str) -> None:
    """Metrics are left out, since not every nginx at hand counts its connections."""
    conf = nginx_conf(job(tmp_path, f"{{kind: nginx, driver: {driver}, metrics: false}}"))
    (tmp_path / "nginx.conf").write_text(conf)
    (tmp_path / "upstreams.conf").write_text(upstreams_without_instances())
    done = nginx.tested(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\[(warn|alert|emerg)\]", done.stderr)


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[str]:
    """The admin port of an nginx that runs with its metrics."""
    block = ports.take_block()
    conf = nginx_conf(job(tmp_path, "{kind: nginx, driver: raw_exec, metrics: true}"))
    taken = block.take(), block.take()
    for fixed, port in zip((18080, 18081), taken, strict=True):
        conf = conf.replace(f"127.0.0.1:{fixed}", f"127.0.0.1:{port}")
    (tmp_path / "nginx.conf").write_text(conf)
    (tmp_path / "upstreams.conf").write_text(upstreams_without_instances())
    command = [str(packaged("nginx")), "-e", "stderr", "-p", f"{tmp_path}/", "-c", "nginx.conf"]
    server = process.start("nginx", command, tmp_path / "nginx.log", dict(os.environ))
    address = f"http://127.0.0.1:{taken[1]}"
    try:
        server.wait_until(
            lambda: httpx.get(f"{address}/alive").is_success, 10, "it answers", ignoring=(httpx.HTTPError,)
        )
        yield address
    finally:
        process.stop([server])
        block.release()


def test_nginx_shows_its_connections_as_its_own_exporter_does(admin: str, tmp_path: Path) -> None:
    with http() as client:
        answer = client.get(f"{admin}/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4")
    families = {one.name: one for one in text_string_to_metric_families(answer.text)}
    assert {(one.type, bool(one.documentation)) for one in families.values()} == {("gauge", True)}
    shown = {name: [sample.value for sample in one.samples] for name, one in families.items()}
    assert shown == {  # the one who asks
        "nginx_up": [1],
        "nginx_connections_active": [1],
        "nginx_connections_reading": [0],
        "nginx_connections_writing": [1],
        "nginx_connections_waiting": [0],
    }
    assert "/metrics" not in (tmp_path / "nginx.log").read_text()


@pytest.mark.parametrize(
    ("balancer", "shown"),
    [
        ("kind: nginx", True),
        ("kind: nginx, image: registry.example.com/acme/edge:1.30", False),
        ("kind: nginx, image: registry.example.com/acme/edge:1.30, metrics: true", True),
        ("kind: nginx, metrics: false", False),
        ("kind: nginx, driver: exec", False),
        ("kind: nginx, driver: raw_exec, metrics: true", True),
        ("kind: fabio", False),
        ("kind: fabio, metrics: true", True),
        ("kind: fabio, driver: raw_exec, metrics: true", True),
    ],
)
def test_prometheus_looks_at_a_balancer_that_is_known_to_have_metrics(
    tmp_path: Path, balancer: str, shown: bool
) -> None:
    """The balancer's job has them, Consul says where, and Prometheus asks for them: all of it or nothing."""
    models = f"{MODELS}monitoring: {{prometheus: {{}}}}\n"
    hcl = job(tmp_path, f"{{{balancer}}}", models)
    assert any(one in hcl for one in ("location = /metrics {", "-metrics.target=prometheus")) == shown
    assert ("metrics_port = " in hcl) == shown
    prometheus = render(environment(tmp_path, f"{{{balancer}}}", models), "prometheus", templates(tmp_path))
    assert ("- job_name: balancer" in prometheus) == ("local/targets/balancer.json" in prometheus) == shown


def test_prometheus_looks_at_no_balancer_where_there_is_none(tmp_path: Path) -> None:
    models = f"{MODELS}monitoring: {{prometheus: {{}}}}\n"
    without = environment(tmp_path, "{kind: none, metrics: true}", models)
    assert "job_name: balancer" not in render(without, "prometheus", templates(tmp_path))


def test_nginx_writes_nothing_outside_the_tasks_folder(tmp_path: Path) -> None:
    conf = nginx_conf(job(tmp_path, "{kind: nginx}"))
    paths = re.findall(r"^ *(?:pid|\w+_temp_path|include) (\S+);", conf, re.MULTILINE)
    assert len(paths) == 7
    assert not [path for path in paths if path.startswith("/")]


def test_a_host_name_serves_its_own_models_before_those_of_any_host(tmp_path: Path) -> None:
    conf = nginx_conf(job(tmp_path, "{kind: nginx}"))
    anywhere, large, _ = (
        re.findall(r'location "(\S+)" \{.*?set \$pool \$(\w+);', server, re.DOTALL)
        for server in conf.split("\n  server {")[1:]
    )
    assert anywhere == [("/", "pool_anything"), ("/chat/v1/", "pool_chat")]
    assert large == [("/v1/", "pool_large_one"), ("/", "pool_anything"), ("/chat/v1/", "pool_chat")]


def test_a_path_of_any_host_is_hidden_where_a_host_name_covers_it(tmp_path: Path) -> None:
    covered = "models.large-one.route.path=/"
    conf = nginx_conf(job(tmp_path, "{kind: nginx}", MODELS, covered))
    *_, large, _ = conf.split("\n  server {")
    assert re.findall(r'location "(\S+)" \{', large) == ["/"]


@pytest.mark.parametrize(("longest", "read"), [("30s", "5m"), ("10m", "10m")], ids=["short", "long"])
def test_an_answer_is_waited_for_as_long_as_the_longest_may_take(
    tmp_path: Path, longest: str, read: str
) -> None:
    models = f"models: {{chat: {{model: a/b, drain: {{longest_stream: {longest}}}}}}}\n"
    assert f"proxy_read_timeout {read};" in nginx_conf(job(tmp_path, "{kind: nginx}", models + FLEET))


@pytest.mark.parametrize("kind", ["nginx", "fabio"])
def test_the_longest_stream_of_any_model_may_end(tmp_path: Path, kind: str) -> None:
    hcl = job(tmp_path, f"{{kind: {kind}}}")
    assert value(hcl, "kill_timeout") == '"10m15s"'
    if kind == "nginx":
        assert "worker_shutdown_timeout 10m5s;" in hcl
    else:
        assert '"-proxy.shutdownwait=10m"' in hcl


@pytest.mark.parametrize("kind", ["nginx", "fabio"])
def test_kill_timeout_is_one_that_the_clients_keep(tmp_path: Path, kind: str) -> None:
    models = "models: {chat: {model: a/b, drain: {longest_stream: 25s, kill_timeout: 30s}}}\n"
    hcl = job(tmp_path, f"{{kind: {kind}}}", models + "nomad: {max_kill_timeout: 30s}\n")
    assert value(hcl, "kill_timeout") == '"30s"'


@pytest.mark.parametrize("kind", ["nginx", "fabio"])
def test_a_balancer_is_not_bound_to_the_nodes_with_gpus(tmp_path: Path, kind: str) -> None:
    hcl = job(tmp_path, f"{{kind: {kind}}}")
    assert (value(hcl, "region"), value(hcl, "namespace"), value(hcl, "priority")) == ('"eu"', '"ml"', "80")
    assert "node_pool" not in hcl and "constraint {" not in hcl
    own = f"{{kind: {kind}, node_pool: edge, placement: {{constraints: [{{operator: distinct_hosts}}]}}}}"
    hcl = job(tmp_path, own)
    assert value(hcl, "node_pool") == '"edge"'
    assert value(hcl, "operator") == '"distinct_hosts"'


@pytest.mark.parametrize("kind", ["nginx", "fabio"])
def test_a_container_is_hardened(tmp_path: Path, kind: str) -> None:
    hcl = job(tmp_path, f"{{kind: {kind}, driver: docker}}")
    assert value(hcl, "user") == '"65534"'
    assert value(hcl, "readonly_rootfs") == "true"
    assert value(hcl, "security_opt") == '["no-new-privileges"]'
    assert value(hcl, "cap_drop") == '["ALL"]'
    assert value(hcl, "pids_limit") == "512"
    assert (value(hcl, "max-size"), value(hcl, "max-file")) == ('"10m"', '"3"')


@pytest.mark.parametrize(
    ("driver", "setting", "user"),
    [("exec", "", '"nobody"'), ("raw_exec", "", ""), ("raw_exec", ", user: www-data", '"www-data"')],
)
def test_without_a_container_the_user_is_the_drivers_own_or_as_given(
    tmp_path: Path, driver: str, setting: str, user: str
) -> None:
    assert value(job(tmp_path, f"{{kind: nginx, port: 8080, driver: {driver}{setting}}}"), "user") == user


def test_a_bridged_nginx_listens_above_1024_and_is_reached_at_its_port(tmp_path: Path) -> None:
    hcl = job(tmp_path, "{kind: nginx, driver: docker}")
    assert (value(hcl, "static"), value(hcl, "to")) == ("80", "8080")
    assert "listen 8080 default_server;" in hcl


def test_fabio_gets_only_flags_that_its_version_knows(tmp_path: Path) -> None:
    def flags(hcl: str) -> dict[str, str]:
        return dict(re.findall(r'^ *"-([\w.]+)=(.*)",$', hcl, re.MULTILINE))

    old = flags(job(tmp_path, '{kind: fabio, consul: "10.0.0.1:8500"}'))
    assert old.keys() == FABIO_FLAGS
    assert old["registry.consul.addr"] == "10.0.0.1:8500"
    assert old["proxy.addr"] == "${NOMAD_ADDR_http}"
    new = flags(job(tmp_path, "{kind: fabio, metrics: true}"))
    assert new.keys() == FABIO_FLAGS | FABIO_METRICS
    # Not on the port of its pages: metrics have a listener of their own (proxy.addr in its manual).
    assert new["proxy.addr"] == "${NOMAD_ADDR_http},${NOMAD_ADDR_metrics};proto=prometheus"


@pytest.mark.parametrize(
    ("weight", "shown"), [(0.001, "0.001"), (0.05, "0.05"), (0.33333, "0.3333"), (1, "1")]
)
def test_the_canaries_share_is_written_as_nginx_resolves_it(
    tmp_path: Path, weight: float, shown: str
) -> None:
    hcl = job(tmp_path, "{kind: nginx}", MODELS, f"models.chat.rollout.weight={weight}")
    assert f'keyOrDefault "vllmjobs/edge/chat/canary_weight" "{shown}"' in file(hcl, "upstreams.conf")
