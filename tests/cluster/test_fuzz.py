"""What `check` passes, Nomad takes: environments changed at random, of whatever their schema allows.

`scripts/test cluster --long -k fuzz` tries 30,000 of them, with a seed that it prints; a seed of FUZZ_SEED is
tried again.
"""

import contextlib
import copy
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.failures import InvalidJobError
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.environment.model import Environment
from vllmjobs.environment.schema import json_schema
from vllmjobs.project.environments import checked
from vllmjobs.project.templates import templates
from vllmjobs.render.job import RenderError, jobs, jobs_on_demand, render
from vllmjobs_sandbox.cluster.sandbox import Sandbox

SCHEMA = json_schema(whole=True)
TEMPLATES = templates(Path("nowhere"))
BASES = list(
    yaml.safe_load_all("""
models: {chat: {model: facebook/opt-125m, gpus: {memory: 20 GiB}}}
---
balancer: {kind: nginx}
models: {chat: {model: /m, gpus: {memory: 20 GiB}, cache: {bind: /srv/m}}}
---
monitoring: {prometheus: {}}
cache_backup: {store: s3://acme, schedule: 0 3 * * *}
models:
  chat:
    {model: a/b, driver: raw_exec, user: u, entrypoint: [/v], cache: {bind: /m}, gpus: {memory: 20 GiB}}
---
balancer: {kind: none}
defaults: {gpus: {memory: 20 GiB}}
models: {chat: {model: a/b}, code: {model: c/d, replicas: 4, rollout: {strategy: blue_green}}}
""")
)
# Words of those kinds that have a pattern; more of them are at the edge of what is allowed than inside it.
PATTERNED = {
    "duration": ["0s", "1ms", "90s", "1h30m", "0.001s", "99999.999h", "999999m", "99999h99999h99999h99999h"],
    "size": ["0 MB", "1 MB", "9 MiB", "30 MiB", "31 MiB", "70 GiB", "0.001 TB", "999999.999 TiB"],
    "secret reference": ["nomad/jobs/a#b", "nomad:a/b#c", "nomad/jobs#x"],
    "name": ["a", "a-1", "fabio", "nginx", "prometheus", "admin", "x" * 63, "0"],
    "cron schedule": ["0 3 * * *", "99 99 * * *", "a b c d e", "*/0 * * * *", "0 0 L * 5-7", ", , , , ,"],
    "URL": ["http://a", "https://a.example:9000/x", "http://[::1]:1", "http://!"],
    "version": ["0.33.0", "0.11.2", "1", "0.33.0rc1", "0.33.0+x"],
    "absolute path": ["/", "/a", "/a b", "/..", "/\u202ea", "/${x}", "/a:b,c"],
    "route": ["/", "/v1/", "/chat", "/chat/v1/", "/a~.b/"],
    "interval": ["1s", "59s", "1m"],
    "address": ["a:1", "a.example.com:9093", "a:99999"],
    "link": ["docs", "https://a/b", ".", "a%b"],
    "directory or bucket": ["/mnt", "s3://acme/models", "/mnt/${x}", "/a b"],
    "host name": ["", "chat.example.com", "0", "x" * 70],
    "URL path": ["/", "/health", "/%20", "/$a"],
    "variable name": ["A", "HF_HOME", "_", "VLLM_PORT", "NOMAD_X", "HOME"],
    "argument name": ["a", "dtype", "max-num-seqs", "tensor_parallel_size", "a.b"],
}
HOSTILE = [
    *("${", "%{", "$${x}", "${NOMAD_PORT_http}", "${attr.kernel.name}", "${node.class}", "${device.ids}"),
    *("{{", "{{ env `x` }}", "[[", "[%", "EOF\n", "\n", '"', "\\", "a\\", "'", "#", "//", "\r", "\t", "é"),
    *("\u202e", "\u200b", "\x7f", "x" * 300, "a b", "a,b", "a:b", "-1", "0", "1e9", "true", ">= 1", "*", "/"),
    *(
        "root",
        "0",
        "0:0",
        "nobody",
        "dc1",
        "default",
        "all",
        "nvidia",
        "gpu",
        "tcp",
        "udp",
        "linux",
        "70 GiB",
    ),
    *("(", "a(?=b)", "[", "a{2,1}", "x*", "SYS_ADMIN", "127.0.0.1:8500", "::1", "0.0.0.0", "localhost"),
]


class Changes:
    """Changes of an environment, drawn from one seed."""

    def __init__(self, seed: int) -> None:
        """Begin the draws of a seed."""
        self.draw = random.Random(seed)

    def environment(self) -> Any:
        """Return one of the bases with one to nine values changed."""
        document = copy.deepcopy(self.draw.choice(BASES))
        for _ in range(self.draw.randint(1, 9)):
            self.change(document, SCHEMA["$defs"]["Environment"])
        return document

    def change(self, block: Any, schema: dict[str, Any]) -> None:
        """Change one value of a block, or below it."""
        schema = self.kind(schema, block)
        properties = schema.get("properties") or {}
        keys = [*properties, *(key for key in block if key not in properties)]
        key = self.draw.choice([*keys, *block])  # those that there are twice as often
        inner = properties.get(key) or schema.get("additionalProperties")
        if not isinstance(inner, dict) or key == "extends":
            return
        below = self.kind(inner, block.get(key))
        if "$ref" not in below and (below.get("properties") or isinstance(block.get(key), dict)):
            block.setdefault(key, {})
            if isinstance(block[key], dict) and self.draw.random() < 0.9:
                self.change(block[key], inner) if block[key] or below.get("properties") else None
                return
        block[key] = self.value(inner)

    def kind(self, schema: dict[str, Any], value: Any = None) -> dict[str, Any]:
        """Return a schema without `$ref` and `anyOf`: of several kinds, a map where the value is one."""
        if "$ref" in schema:
            return self.kind(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], value)
        kinds = schema.get("anyOf") or schema.get("allOf")
        if not kinds:
            return schema
        resolved = [self.kind(each) for each in kinds]
        maps = [each for each in resolved if each.get("properties")]
        return maps[0] if maps and (value is None or isinstance(value, dict)) else self.draw.choice(resolved)

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """Return a value that the schema allows, most of the time."""
        kinds = schema.get("anyOf")
        if kinds:
            return self.value(self.draw.choice(kinds), depth)
        schema = self.kind(schema)
        if "enum" in schema:
            return self.draw.choice(schema["enum"])
        match schema.get("type"):
            case "string":
                return self.draw.choice(PATTERNED.get(schema.get("title", ""), HOSTILE))
            case "integer":
                low = schema.get("minimum", 0)
                return self.draw.choice([low, low + 1, low + 3, schema.get("maximum", 10**9), 50_000, 8, 64])
            case "number":
                return self.draw.choice([schema.get("minimum", 0.0), 0.001, 0.5, 1, 3.7, 1e9])
            case "boolean":
                return self.draw.random() < 0.5
            case "array":
                return [
                    self.value(schema.get("items", {}), depth + 1) for _ in range(self.draw.randint(0, 3))
                ]
            case "object":
                return self.map(schema, depth)
            case "null":
                return None
        return self.draw.choice([None, True, 1, 2.5, self.draw.choice(HOSTILE), [], {"a": "b"}])

    def map(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Return a block with what it needs and some more, or a map with up to two keys."""
        properties = schema.get("properties")
        if properties is None:
            named = schema.get("propertyNames", {})
            values = schema.get("additionalProperties")
            keys = [self.value({"type": "string", **named}) for _ in range(self.draw.randint(0, 2))]
            return {key: self.value(values if isinstance(values, dict) else {}, depth + 1) for key in keys}
        some = [key for key in properties if depth < 4 and self.draw.random() < 2 / len(properties)]
        return {key: self.value(properties[key], depth + 1) for key in {*schema.get("required", []), *some}}


def refused_by_nomad(cluster: Cluster, hcl: str) -> str:
    """Return why Nomad does not take a job; empty where it does. The sandbox has no Vault."""
    try:
        job = cluster.parse(hcl)
    except InvalidJobError as error:
        return str(error)
    job |= {"Namespace": "default", "Region": "global", "NodePool": "default"}
    found = cluster.nomad.api.validate.validate_job({"Job": job})
    return str(found.json().get("Error") or "")


def tried(document: Any, file: Path, cluster: Cluster) -> str:
    """Return what became of an environment: `refused` by check, or `taken`; fails for anything else."""
    file.write_text(yaml.safe_dump(document, allow_unicode=True))
    (result,) = checked([file], (), file.parent)
    environment = result.environment
    if environment is None or any(problem.severity == "error" for problem in result.problems):
        if environment is not None:
            environment_is_rendered_or_refused(environment)
        return "refused"
    for job in (*jobs(environment), *jobs_on_demand(environment)):
        hcl = render(environment, job, TEMPLATES)
        assert hcl == render(environment, job, TEMPLATES)
        if wrong := "" if "vault {" in hcl else refused_by_nomad(cluster, hcl):
            pytest.fail(f"Nomad refuses {job}: {wrong}\n{file.read_text()}")
    return "taken"


def environment_is_rendered_or_refused(environment: Environment) -> None:
    """`diff` renders the other side, of which `check` may find errors: it works, or says why not."""
    for job in (*jobs(environment), *jobs_on_demand(environment)):
        with contextlib.suppress(RenderError):
            render(environment, job, TEMPLATES)


def test_what_check_passes_nomad_takes(
    sandbox: Sandbox, tmp_path: Path, long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Takes minutes with --long: each environment is up to six jobs, and each job is two requests."""
    seed = int(os.environ.get("FUZZ_SEED", random.randrange(2**32) if long else 16))
    record_property("seed", seed)
    changes, cluster = Changes(seed), Cluster(NomadApi({"NOMAD_ADDR": sandbox.nomad_address}))
    outcomes = Counter(
        tried(changes.environment(), tmp_path / "fuzz.yaml", cluster) for _ in range(30_000 if long else 300)
    )
    record_property("environments", ", ".join(f"{count} {what}" for what, count in outcomes.items()))
    assert outcomes["taken"] > outcomes.total() / 10
