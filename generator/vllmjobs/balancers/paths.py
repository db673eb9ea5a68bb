"""The paths of vLLM's server: which a route lets through to it, and which are for its operators alone."""

import re

from vllmjobs.environment.model import Route

API = ("v1", "v2", "cohere", "inference")
"""The first parts of the paths of vLLM's API, which its key guards (docs/usage/security.md of vLLM)."""
API_OF_OPERATORS = ("v1/load_lora_adapter", "v1/unload_lora_adapter", "inference/v1/abort_requests")
"""The paths below those that are for operators: they change what an instance serves, for everybody."""


def path_in_vllm(route: Route) -> str:
    """Return the beginning of the paths that vLLM gets of a route, with no slash at its end: `""` for all."""
    path, strip = route.path.rstrip("/"), (route.strip or "").rstrip("/")
    return path.removeprefix(strip) if f"{path}/".startswith(f"{strip}/") else path


def passed(route: Route, root_path: str = "") -> str:
    """Return the paths of a route as a regular expression (PCRE); its group `vllm` is what vLLM gets.

    The group has no slash at its beginning. The paths are vLLM's API, what the route's own path names, and
    what `route.allow` names. `root_path` is vLLM's `--root-path`, with which it knows each path also.
    """
    strip, root = (re.escape((text or "").strip("/")) for text in (route.strip, root_path))
    own = path_in_vllm(route).strip("/")
    if root:
        own = f"{own}/".removeprefix(f"{root_path.strip('/')}/").strip("/")
    # Of the API a route names a part, not what in it is for operators.
    names_own = own and (own.split("/")[0] not in API or own in API_OF_OPERATORS)
    named = [re.escape(name.strip("/")) for name in (*([own] if names_own else ()), *route.allow)]
    operators, api = ("|".join(map(re.escape, names)) for names in (API_OF_OPERATORS, API))
    ways = [rf"(?:{name})(?:/.*)?\z" for name in named if name] + [f"(?!{operators})(?:{api})/.*"]
    everything = ".*" if "" in named else "|".join(ways)
    before, begin = (f"(?:{part}/+)?" if part else "" for part in (strip, root))
    return f"(?s)^/*{before}(?<vllm>{begin}(?:{everything}))"
