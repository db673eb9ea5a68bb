"""The kinds of value that an environment holds: names, paths, references, amounts."""

from typing import Annotated, Literal

from msgspec import Meta


def matching(pattern: str, title: str, description: str | None = None) -> Meta:
    """A string that matches `pattern` as a whole; `title` is what an error calls it.

    The lookahead is for Python, where `$` also matches before a last newline.
    """
    return Meta(pattern=f"^({pattern})$(?!\\n)", description=description, extra_json_schema={"title": title})


# https://pkg.go.dev/time#ParseDuration, less the units below a millisecond and the sign.
Duration = Annotated[
    str,
    matching(
        r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+",
        "duration",
        "A duration as Nomad writes it, such as `90s`, `10m` or `1h30m`.",
    ),
]
# go-units as Nomad's device attributes know it (nomad/plugins/shared/structs/units.go): a number without
# a unit, or with `Gi`, matches no device at all, so a unit is required here.
Size = Annotated[
    str,
    matching(
        r"[0-9]+(\.[0-9]+)? ?(MiB|GiB|TiB|MB|GB|TB)",
        "size",
        "An amount of memory with its unit, such as `16 GiB` or `500 MB`.",
    ),
]

Name = Annotated[str, matching(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "name")]
EnvName = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "variable name")]
Argument = Annotated[str, matching(r"[A-Za-z][A-Za-z0-9_.-]*", "argument name")]
Text = Annotated[str, Meta(min_length=1)]
AbsolutePath = Annotated[str, matching(r"/[^\x00-\x1f]*", "absolute path")]
UrlPath = Annotated[str, matching(r"/[!-~]*", "URL path")]
# What is safe in the configuration of nginx and in a tag of Fabio, and means the same to both.
RoutePath = Annotated[str, matching(r"/|(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?", "route")]
HostName = Annotated[
    str, matching(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*)?", "host name")
]
Port = Annotated[int, Meta(ge=1, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
SecretRef = Annotated[
    str,
    matching(
        r"(nomad/[A-Za-z0-9/_~.-]+|vault:[A-Za-z0-9/_~. -]+)#[A-Za-z_][A-Za-z0-9_]*",
        "secret reference",
        "Where a secret is kept, never the secret: "
        "`nomad/jobs/vllm-prod#hf_token` (a Nomad Variable) or `vault:kv/data/vllm#hf_token`.",
    ),
]
Strategy = Literal["multi_instance", "tensor_parallel"]
Install = Literal["standard", "gptoss"]
Driver = Literal["docker", "exec", "raw_exec"]
Operator = Literal[
    "=", "==", "is", "!=", "not", "<", "<=", ">", ">=", "regexp", "version", "semver",
    "set_contains", "set_contains_all", "set_contains_any", "is_set", "is_not_set",
    "distinct_hosts", "distinct_property",
]  # fmt: skip
AffinityOperator = Literal[
    "=", "==", "is", "!=", "not", "<", "<=", ">", ">=", "regexp", "version", "semver",
    "set_contains", "set_contains_all", "set_contains_any",
]  # fmt: skip
DeviceOperator = Literal[
    "=", "==", "is", "!=", "not", "<", "<=", ">", ">=", "regexp", "version", "semver",
    "set_contains", "set_contains_all", "set_contains_any", "is_set", "is_not_set",
]  # fmt: skip
ArgValue = bool | int | float | str | list | dict | None  # type: ignore[type-arg]
