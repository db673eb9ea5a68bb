"""The kinds of value that an environment holds: names, paths, references, amounts."""

from typing import Annotated, Literal

from msgspec import Meta


def matching(pattern: str, title: str, description: str | None = None) -> Meta:
    """Return a string that matches `pattern` as a whole; `title` is what an error calls it.

    The lookahead is for Python, where `$` also matches before a last newline.
    """
    return Meta(pattern=f"^({pattern})$(?!\\n)", description=description, extra_json_schema={"title": title})


# https://pkg.go.dev/time#ParseDuration, less the units below a millisecond and the sign. Go counts
# nanoseconds in 64 bits, 292 years: what is derived from several durations has to stay below that, too.
Duration = Annotated[
    str,
    matching(
        r"([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m)|[0-9]{1,5}(\.[0-9]{1,3})?h){1,4}",
        "duration",
        "A duration as Nomad writes it, such as `90s`, `10m` or `1h30m`.",
    ),
]
# go-units as Nomad's device attributes know it (nomad/plugins/shared/structs/units.go): a number without
# a unit, or with `Gi`, matches no device at all, so a unit is required here.
Size = Annotated[
    str,
    matching(
        r"[0-9]{1,6}(\.[0-9]{1,3})? ?(MiB|GiB|TiB|MB|GB|TB)",
        "size",
        "An amount of memory with its unit, such as `16 GiB` or `500 MB`.",
    ),
]

Name = Annotated[str, matching(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "name")]
EnvName = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "variable name")]
Argument = Annotated[str, matching(r"[A-Za-z][A-Za-z0-9_.-]*", "argument name")]
Text = Annotated[str, Meta(min_length=1)]
AbsolutePath = Annotated[str, matching(r"/[^\x00-\x1f]*", "absolute path")]
UrlPath = Annotated[str, matching(r"/([!-$&-~]|%[0-9A-Fa-f]{2})*", "URL path")]
# What is safe in the configuration of nginx and in a tag of Fabio, and means the same to both.
RoutePath = Annotated[str, matching(r"/|(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?", "route")]
HostName = Annotated[
    str, matching(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*)?", "host name")
]
# What is safe in the configuration of Prometheus.
Address = Annotated[str, matching(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[0-9]{1,5}", "address")]
Interval = Annotated[str, matching(r"([1-9]|[1-5][0-9])s|1m", "interval")]
LinkBase = Annotated[str, matching(r"[A-Za-z0-9./][A-Za-z0-9.:/_~%-]*", "link")]
# https://packaging.python.org/specifications/version-specifiers, as vLLM's releases and images use it.
Version = Annotated[
    str,
    matching(
        r"\d+(\.\d+){1,3}((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+([._-][a-z0-9]+)*)?", "version"
    ),
]
Port = Annotated[int, Meta(ge=1, le=65535)]
MOST = 1_000_000_000  # of any whole number: Nomad counts in 64 bits, adds up, and multiplies
MAX_COUNT = 50_000  # Nomad's job_max_count, of all groups of a job together
Positive = Annotated[int, Meta(ge=1, le=MOST)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
# Paths of Nomad Variables: nomad/structs/variables.go. Below nomad/ there are only jobs.
SecretRef = Annotated[
    str,
    matching(
        r"(nomad/jobs(/[A-Za-z0-9_~-]+){0,3}|nomad:[A-Za-z0-9_~-]+(/[A-Za-z0-9_~-]+)*"
        r"|vault:[A-Za-z0-9_.~-]+(/[A-Za-z0-9_.~-]+)+)#[A-Za-z_][A-Za-z0-9_]*",
        "secret reference",
        "The place of a secret, never the secret: `nomad/jobs/vllm-prod#hf_token` (a Nomad Variable; "
        "any other path of one is `nomad:PATH#field`) or `vault:kv/data/vllm#hf_token`.",
    ),
]
Strategy = Literal["multi_instance", "tensor_parallel"]
Install = Literal["standard", "gptoss"]
Driver = Literal["docker", "exec", "raw_exec"]
AffinityOperator = Literal[
    "=", "==", "is", "!=", "not", "<", "<=", ">", ">=", "regexp", "version", "semver",
    "set_contains", "set_contains_all", "set_contains_any",
]  # fmt: skip
DeviceOperator = Literal[AffinityOperator, "is_set", "is_not_set"]
Operator = Literal[DeviceOperator, "distinct_hosts", "distinct_property"]
ArgValue = bool | int | float | str | list | dict | None  # type: ignore[type-arg]
