"""The configuration of one box's supervisor: its servers, and nginx in front of them as on the cluster."""

import signal
from collections.abc import Iterable, Sequence

from vllmjobs.balancers import balancer_of
from vllmjobs.box.servers import LOOPBACK, BoxError, Place, Server, secrets_of
from vllmjobs.environment.derive import KEEP_ALIVE_S
from vllmjobs.environment.model import Environment
from vllmjobs.environment.supervision import load_timeout, term_timeout
from vllmjobs.text.json import Json

NGINX = "nginx"  # its name among the servers
UPSTREAMS = "upstreams.conf"
SOCKET = "admin.sock"
LOG = "log.jsonl"
LOG_BYTES = 10 << 20  # of a log, which then becomes log.jsonl.1
LOGS = 9  # old ones that are kept: two idle servers write 13 MB a day
LEAVE_S = 1.0  # nginx has new workers by then; the old ones take no more requests


def configuration(environment: Environment, servers: Sequence[Server], folder: str, nginx: str) -> Json:
    """Return what `vllmjobs-supervise --config` reads, with paths in `folder`; `nginx` is the program."""
    models = environment.models.values()
    times = [balancer_of(environment).deadlines(model) for model in models]
    return {
        "identity": folder,  # no other box has it, however the environment is called
        "admin_path": f"{folder}/{SOCKET}",
        "log": {"path": f"{folder}/{LOG}", "most": LOG_BYTES, "kept": LOGS},
        "limits": {
            "load": max(load_timeout(model) for model in models),
            "leave": LEAVE_S,
            "drain": max(one.longest_stream for one in times),
            "term": max(term_timeout(one) for one in times),
        },
        "engines": [
            *(
                {
                    "name": one.name,
                    "command": list(one.command),
                    "env": one.env,
                    "host": one.host,
                    "port": one.place.port,
                    "served_name": one.served_name,
                    "gpus": list(one.place.gpus),
                    "line": {
                        "pool": one.model,
                        "text": f"  server {one.address} max_fails=1 fail_timeout=5s;",
                    },
                }
                for one in servers
            ),
            {
                "name": NGINX,
                "command": [nginx, "-e", "stderr", "-p", f"{folder}/{NGINX}/", "-c", "nginx.conf"],
                "host": LOOPBACK,
                "port": environment.balancer.admin_port,
                "is_front": True,
                "stop_signal": int(signal.SIGQUIT),
            },
        ],
        "secrets": sorted(secrets_of(environment)),
        "upstreams_path": f"{folder}/{NGINX}/{UPSTREAMS}",
        "upstreams": [_block(name) for name in environment.models],
    }


def nginx_conf(environment: Environment, rendered: str) -> str:
    """Return the cluster's nginx.conf, with the addresses of this machine for what Nomad would fill in.

    Raises `BoxError` for a template of the project's own that asks Nomad for more.
    """
    balancer = balancer_of(environment)
    text = rendered.replace('{{ env "NOMAD_ADDR_http" }}', f"0.0.0.0:{balancer.port}")
    text = text.replace('{{ env "NOMAD_ADDR_admin" }}', f"{LOOPBACK}:{balancer.settings.admin_port}")
    if "{{" in text:
        line = text[: text.index("{{")].count("\n") + 1
        raise BoxError(f"nginx.conf, line {line}: asks Nomad for a value, but `up` runs without Nomad")
    return text


def instances(servers: Iterable[Server]) -> list[dict[str, str]]:
    """Return the routes to each server, as the template of nginx.conf has them."""
    return [{"name": one.name, "path": f"/v1/{one.name}/", "address": one.address} for one in servers]


def places(configuration: Json) -> dict[str, Place]:
    """Return the places of the servers, from what `configuration` made."""
    return {
        one["name"]: Place(one["port"], int(one["env"].get("VLLM_PORT", 0)), tuple(one["gpus"]))
        for one in configuration["engines"]
        if not one.get("is_front")
    }


def _block(model: str) -> Json:
    """Return what nginx reads of one model: the upstream, whether there is one, and how many serve."""
    variable = model.replace("-", "_")

    def ending(pool: str) -> str:
        counts = '{"stable": @COUNT@, "canary": 0, "canary_weight": 0}'
        return (
            f'map "" $pool_{variable} {{\n  default {pool};\n}}\n'
            f"map \"\" $instances_{variable} {{\n  default '{counts}';\n}}\n"
        )

    return {
        "pool": model,
        "some": (
            f"upstream {model}-stable {{\n  zone {model}-stable 512k;\n  least_conn;\n@SERVERS@\n"
            f"  keepalive 32;\n  keepalive_timeout {KEEP_ALIVE_S // 2}s;\n}}\n" + ending(f"{model}-stable")
        ),
        "none": ending('""'),
    }
