"""The annotated environment in which every key of the schema stands: envs/every-key.yaml.

The comment of a key is its description in the schema. Its value is the one in `VALUES`, else its default,
else its example. A key that cannot stand beside another one is commented out; `APART` says why.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vllmjobs.environment.schema import json_schema
from vllmjobs.vllm.releases import NEWEST

PAGE = "envs/every-key.yaml"
WIDTH = 110
HEAD = """\
# yaml-language-server: $schema=schema.json
# Every key that an environment may have, each below its description. scripts/generate makes this file from
# the types, and the tests render it. Most of the values are the defaults: leave out what you do not change.
#
# A key that cannot stand beside another one is commented out, with the reason behind it.
"""
MODEL = "chat"
"""The name of the only model."""
VALUES: dict[str, Any] = {
    "job": "vllm-every-key",
    "nomad.region": "global",
    "nomad.namespace": "default",
    "nomad.node_pool": "gpu",
    "nomad.max_kill_timeout": "10m",
    "Constraint.attribute": "${node.class}",
    "Constraint.value": "gpu",
    "Affinity.value": "dc1",
    "balancer.kind": "nginx",
    "balancer.port": 80,
    "balancer.metrics": True,
    "balancer.image": "nginx:1.30-alpine",
    "balancer.command": "nginx",
    "balancer.user": "65534",
    "monitoring.prometheus.user": "65534",
    "monitoring.prometheus.volume": "prometheus",
    "monitoring.prometheus.node_pool": "all",
    "cache_backup.store": "s3://acme/models",
    "defaults.served_name": ["chat", "chat-large"],
    "defaults.image": f"registry.example.com/ml/vllmjobs-vllm:v{NEWEST}-0.1.0-80f9315b0c1d",
    "defaults.user": "65534",
    "defaults.entrypoint": ["vllmjobs-supervise", "--", "vllm", "serve"],
    "defaults.supervised": True,
    "DeviceConstraint.operator": "version",
    "DeviceConstraint.value": ">= 550.54",
    "DeviceAffinity.operator": ">=",
    "DeviceAffinity.value": "70 GiB",
    "defaults.resources.cpu": 4000,
    "defaults.resources.cores": 4,
    "defaults.resources.memory_max": "16 GiB",
    "defaults.resources.shm": "1 GiB",
    "defaults.max_model_len": 2048,
    "defaults.env": {"VLLM_LOGGING_LEVEL": "INFO"},
    "defaults.secrets": {"HF_TOKEN": "nomad/jobs/vllm-every-key#hf_token"},
    "defaults.cache.volume": "models",
    "defaults.ports.host": "0.0.0.0",
    "defaults.ports.static": 8000,
    "defaults.route.path": "/chat/v1/",
    "defaults.health.path": "/ready",
    "defaults.health.grace": "15m",
    "defaults.drain.kill_timeout": "45s",
    "defaults.drain.shutdown_delay": "15s",
    "defaults.rollout.healthy_deadline": "30m",
    "defaults.rollout.progress_deadline": "40m",
}
"""Values by the path of a key, or by its block and its name."""
APART: dict[str, str] = {
    "extends": "this file stands alone",
    "balancer.command": "docker runs the image's own program",
    "defaults.resources.cores": "a server has cpu or cores",
    "defaults.cache.volume": "a cache has bind or volume",
    "defaults.ports.static": "a second server on the node would not find it free",
    "defaults.logs.fluentd_address": "needs driver: fluentd",
    "models.config": "names a file of yours",
}
"""The reason, by the path of a key, why it is commented out."""


def files(_: Path) -> dict[str, str]:
    """Return the annotated environment."""
    return {PAGE: HEAD + "".join(_Annotated().block("Environment", (), {}))}


class _Annotated:
    """The lines of the file. Keys of a block are described where it stands for the first time."""

    def __init__(self) -> None:
        self._definitions = json_schema(whole=True)["$defs"]
        self._described: set[str] = set()

    def block(self, name: str, path: tuple[str, ...], defaults: dict[str, Any]) -> Iterator[str]:
        """Yield the lines of a block; `defaults` are what the key that holds it has as its default."""
        is_first, shared = name not in self._described, set()
        self._described.add(name)
        if name == "Model":
            shared = set(self._definitions["ModelDefaults"]["properties"])
            yield from self._comment("Every key of `defaults` may stand here too.", path)
        for key, described in self._definitions[name]["properties"].items():
            if key not in shared:
                default = defaults.get(key, described.get("default"))
                yield from self._key(name, (*path, key), described, default, is_first)

    def _key(
        self, block: str, path: tuple[str, ...], described: dict[str, Any], default: Any, is_first: bool
    ) -> Iterator[str]:
        indent, key = "  " * (len(path) - 1), path[-1]
        dotted = ".".join(part for part in path if part != MODEL)
        inner = _block_of(described)
        if len(path) == 1 or inner:
            yield "\n"
        if is_first:
            words = described.get("enum", ())
            choices = f" One of: {', '.join(words)}." if words else ""
            yield from self._comment(described.get("description", "") + choices, path[:-1])
        if inner == "Model":
            yield f"{indent}{key}:\n{indent}  {MODEL}:\n"
            yield from self.block(inner, (*path, MODEL), {})
        elif inner and described.get("type") == "array":
            yield f"{indent}{key}:\n"
            lines = "".join(self.block(inner, (*path, "-"), {})).lstrip("\n")
            yield f"{indent}  - {lines.lstrip(' ')}"
        elif inner:
            yield f"{indent}{key}:\n"
            lines = "".join(self.block(inner, path, default or {}))
            yield lines.removeprefix("\n")
        else:
            value = _flow(self._value(block, key, dotted, described, default))
            reason = APART.get(dotted)
            yield f"{indent}# {key}: {value} # {reason}\n" if reason else f"{indent}{key}: {value}\n"

    def _value(self, block: str, key: str, dotted: str, described: dict[str, Any], default: Any) -> Any:
        for name in (dotted, f"{block}.{key}"):
            if name in VALUES:
                return VALUES[name]
        return default if default not in (None, "", [], {}) else described.get("examples", [default])[0]

    def _comment(self, text: str, path: tuple[str, ...]) -> Iterator[str]:
        indent = "  " * len(path)
        for line in textwrap.wrap(text, WIDTH - len(indent) - 2, break_on_hyphens=False):
            yield f"{indent}# {line}\n"


def _block_of(described: Any) -> str | None:
    """Return the block that a key holds, alone, in a list, or in a map."""
    if not isinstance(described, dict):
        return None
    if "$ref" in described:
        return str(described["$ref"]).rpartition("/")[2]
    kinds = [*described.get("anyOf", []), described.get("items"), described.get("additionalProperties")]
    return next((block for block in map(_block_of, kinds) if block), None)


def _flow(value: Any) -> str:
    """Return a value on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 30)
    return text.removesuffix("...\n").strip()
