"""VJ401 to VJ407: where requests would be lost between the balancer and vLLM."""

from vllmjobs.check.job import MIN_MEMORY_MIB
from vllmjobs.check.rule import Findings, environment_rule, model_rule
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.derive import (
    BALANCER_KEEP_ALIVE_S,
    KEEP_ALIVE,
    SHUTDOWN_DELAY_S,
    argument_name,
    balancer_port,
    is_root,
)
from vllmjobs.environment.model import Balancer, Route
from vllmjobs.environment.placement import Placement
from vllmjobs.environment.quantity import duration, mebibytes

# The first parts of the paths of vLLM's server (vllm/entrypoints).
VLLM_PATHS = (
    "v1", "v2", "inference", "cohere", "health", "load", "ping", "version", "metrics", "tokenize",
    "detokenize", "pooling", "classify", "score", "rerank", "invocations", "docs", "openapi.json",
)  # fmt: skip


@environment_rule("VJ401", "error")
def routes_differ(whole: Whole) -> Findings:
    """Find two models on one route.

    Requests for the one reach the other, which answers 404.
    """
    if whole.environment.balancer.kind == "none":
        return
    first: dict[tuple[str, str], str] = {}  # requests below `/v1` are below `/v1/` too
    for name, model in whole.environment.models.items():
        route = (model.route.host, model.route.path.rstrip("/"))
        other = first.setdefault(route, name)
        if other != name:
            yield (
                ("models", name, "route"),
                f"serves {model.route.host}{model.route.path}, as {other!r} does: requests for the one reach "
                f"the other; give it a path such as /{name}/v1/ with strip: /{name}",
            )


@model_rule("VJ402", "error")
def what_is_stripped_is_there(subject: Subject) -> Findings:
    """Find a `strip` that does not begin the path.

    The path is cut in whole parts, so that what is left is a path too.
    """
    route = subject.model.route
    if subject.environment.balancer.kind != "none" and not _begins(route):
        yield (
            ("route", "strip"),
            f"{route.strip} is not the first part of path {route.path}; vLLM would get a path that it does "
            "not know",
        )


@environment_rule("VJ403", "error")
def balancer_can_listen(whole: Whole) -> Findings:
    """Find a port that the balancer cannot have, or memory that Nomad refuses it."""
    balancer = whole.environment.balancer
    if balancer.kind == "none":
        return
    port = balancer_port(balancer)
    if port == balancer.admin_port:
        yield ("balancer", "admin_port"), f"is {balancer.admin_port}, as port is; give each its own"
    if mebibytes(balancer.memory) < MIN_MEMORY_MIB:
        yield ("balancer", "memory"), f"must be at least {MIN_MEMORY_MIB} MiB (got {balancer.memory})"
    for key, number in (("port", port), ("admin_port", balancer.admin_port)):
        if number < 1024 and not _may_listen_below_1024(balancer):
            yield (
                ("balancer", key),
                f"{number} is below 1024, where {balancer.kind} may not listen without root; "
                "choose a port above, or nginx in docker",
            )


@model_rule("VJ404", "error")
def connections_outlast_the_balancer(subject: Subject) -> Findings:
    """Find idle connections that vLLM closes before the balancer does.

    A request on a connection that vLLM closes at that moment is lost with a 502.
    """
    balancer = subject.environment.balancer.kind
    if subject.model.secrets.get(KEEP_ALIVE):
        yield ("secrets", KEEP_ALIVE), "is no secret; its value stands under env, or is left out (120 s)"
    given, least = subject.model.env.get(KEEP_ALIVE), BALANCER_KEEP_ALIVE_S[balancer]
    if given is not None and not str(given).isdecimal():
        yield ("env", KEEP_ALIVE), "must be whole seconds; vLLM does not start with anything else"
    elif given is not None and balancer != "none" and int(given) <= least:
        yield (
            ("env", KEEP_ALIVE),
            f"{given} s is not above the {least:.0f} s for which {balancer} keeps idle connections: requests "
            "that cross the close get a 502; leave it out (120 s), or make it longer",
        )


@model_rule("VJ405", "warning")
def balancer_learns_of_a_stop(subject: Subject) -> Findings:
    """Find a stop that the balancer learns of too late.

    Between leaving Consul and the signal, the balancer must have taken the instance out.
    """
    balancer = subject.environment.balancer.kind
    delay, least = subject.deadlines.shutdown_delay, SHUTDOWN_DELAY_S[balancer]
    if delay < least:
        yield (
            ("drain", "shutdown_delay"),
            f"{duration(delay)} is shorter than the {duration(least)} in which {balancer} learns that an "
            "instance stops: requests would still reach it; leave it out, or make it longer",
        )


@model_rule("VJ406", "warning")
def paths_are_ones_that_vllm_has(subject: Subject) -> Findings:
    """Find a route that vLLM answers with 404.

    vLLM gets what `strip` leaves of the route.
    """
    route = subject.model.route
    args = {argument_name(name) for name, value in subject.model.args.items() if value is not None}
    if subject.environment.balancer.kind == "none" or "root-path" in args or not _begins(route):
        return
    strip = (route.strip or "").rstrip("/")
    left = f"/{route.path.removeprefix(strip).strip('/')}"
    if strip.endswith("/v1"):
        yield ("route", "strip"), f"{route.strip} takes vLLM's own /v1 off, and it answers 404; strip less"
    elif left != "/" and left.split("/")[1] not in VLLM_PATHS:
        yield (
            ("route", "path"),
            f"vLLM has no path {left} and answers 404; take the prefix off with strip: "
            f"{route.path.rstrip('/').removesuffix('/v1')}",
        )


@environment_rule("VJ407", "warning")
def fabio_has_its_ports_to_itself(whole: Whole) -> Findings:
    """Find a model's fixed port that is Fabio's.

    Fabio runs on every node, and a model with a port of Fabio's finds none.
    """
    balancer = whole.environment.balancer
    if balancer.kind != "fabio" or balancer.node_pool or balancer.placement != Placement():
        return
    for name, model in whole.environment.models.items():
        if model.ports.static in (balancer_port(balancer), balancer.admin_port):
            yield ("models", name, "ports", "static"), f"{model.ports.static} is Fabio's, on every node"


def _begins(route: Route) -> bool:
    return not route.strip or f"{route.path}/".startswith(f"{route.strip.rstrip('/')}/")


def _may_listen_below_1024(balancer: Balancer) -> bool:
    if balancer.driver == "docker":  # nginx has its own network there, and listens above 1024 inside
        return balancer.kind == "nginx"
    # exec gives NET_BIND_SERVICE; raw_exec runs as Nomad does, most often as root.
    return balancer.driver == "exec" or not balancer.user or is_root(balancer.user)
