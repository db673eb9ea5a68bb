"""VJ401 to VJ408: where requests would be lost between the balancer and vLLM."""

from collections.abc import Callable
from functools import wraps

from vllmjobs.balancers import KINDS, balancer_of
from vllmjobs.balancers.balancer import LoadBalancer, OwnRule
from vllmjobs.check.job import MIN_MEMORY_MIB
from vllmjobs.check.rule import Findings, environment_rule, model_rule
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.derive import KEEP_ALIVE, argument_name
from vllmjobs.environment.model import Route
from vllmjobs.environment.quantity import duration, mebibytes

# The first parts of the paths of vLLM's server (vllm/entrypoints).
VLLM_PATHS = (
    "v1", "v2", "inference", "cohere", "health", "load", "ping", "version", "metrics", "tokenize",
    "detokenize", "pooling", "classify", "score", "rerank", "invocations", "docs", "openapi.json",
)  # fmt: skip


@environment_rule("VJ401", "error")
def routes_differ(whole: Whole) -> Findings:
    """Find two models on one route. Requests for the one reach the other, which answers 404."""
    if not balancer_of(whole.environment).routes_by_path:
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
    """Find a `strip` that does not begin the path. Whole parts are cut off, so that a path is left."""
    route = subject.model.route
    if subject.balancer.routes_by_path and not _begins(route):
        yield (
            ("route", "strip"),
            f"{route.strip} is not the first part of path {route.path}: vLLM would get a path that it does "
            "not know; write that part in full, or leave strip out",
        )


@environment_rule("VJ403", "error")
def balancer_can_listen(whole: Whole) -> Findings:
    """Find a port that the balancer cannot have, or memory that Nomad refuses it."""
    balancer = balancer_of(whole.environment)
    if balancer.job is None:
        return
    port, settings = balancer.port, balancer.settings
    if port == settings.admin_port:
        yield ("balancer", "admin_port"), f"is {settings.admin_port}, the same as port; give each its own"
    if mebibytes(settings.memory) < MIN_MEMORY_MIB:
        yield ("balancer", "memory"), f"must be at least {MIN_MEMORY_MIB} MiB (got {settings.memory})"
    for key, number in (("port", port), ("admin_port", settings.admin_port)):
        if number < 1024 and not balancer.may_listen_below_1024:
            yield (
                ("balancer", key),
                f"{number} is below 1024, where {balancer.kind} may not listen without root; "
                "choose a port above, or nginx in docker",
            )


@model_rule("VJ404", "error")
def connections_outlast_the_balancer(subject: Subject) -> Findings:
    """Find idle connections that vLLM closes before the balancer does. A request just then gets a 502."""
    balancer = subject.balancer
    if subject.model.secrets.get(KEEP_ALIVE):
        yield ("secrets", KEEP_ALIVE), "is no secret; put its value under env, or leave it out (120 s)"
    given, least = subject.model.env.get(KEEP_ALIVE), balancer.keep_alive_s
    if given is not None and not str(given).isdecimal():
        yield ("env", KEEP_ALIVE), "must be whole seconds; vLLM does not start with anything else"
    elif given is not None and balancer.job and int(given) <= least:
        yield (
            ("env", KEEP_ALIVE),
            f"{given} s is not above the {least:.0f} s for which {balancer.kind} keeps idle connections: "
            "requests that cross the close get a 502; leave it out (120 s), or make it longer",
        )


@model_rule("VJ405", "warning")
def balancer_learns_of_a_stop(subject: Subject) -> Findings:
    """Find a stop that the balancer learns of too late. Its time is from leaving Consul to the signal."""
    balancer = subject.balancer
    delay, least = subject.deadlines.shutdown_delay, balancer.shutdown_delay_s
    if delay < least:
        yield (
            ("drain", "shutdown_delay"),
            f"{duration(delay)} is shorter than the {duration(least)} in which {balancer.kind} learns that "
            "an instance stops: requests would still reach it; leave it out, or make it longer",
        )


@model_rule("VJ406", "warning")
def paths_are_ones_that_vllm_has(subject: Subject) -> Findings:
    """Find a route that vLLM answers with 404. vLLM gets what `strip` leaves of the route."""
    route = subject.model.route
    args = {argument_name(name) for name, value in subject.model.args.items() if value is not None}
    if not subject.balancer.routes_by_path or "root-path" in args or not _begins(route):
        return
    strip = (route.strip or "").rstrip("/")
    left = f"/{route.path.removeprefix(strip).strip('/')}"
    if strip.endswith("/v1"):
        yield ("route", "strip"), f"{route.strip} also strips vLLM's /v1, so vLLM answers 404; leave /v1 out"
    elif left != "/" and left.split("/")[1] not in VLLM_PATHS:
        yield (
            ("route", "path"),
            f"vLLM has no path {left} and answers 404; take the prefix off with strip: "
            f"{route.path.rstrip('/').removesuffix('/v1')}",
        )


def register_rules(kind: type[LoadBalancer]) -> None:
    """Register the rules that only environments with this kind of balancer can break."""
    for rule in kind.rules:
        environment_rule(rule.id, rule.severity)(_only_of(kind, rule))


def _only_of(kind: type[LoadBalancer], rule: OwnRule) -> Callable[[Whole], Findings]:
    @wraps(rule.find)
    def find(whole: Whole) -> Findings:
        if isinstance(balancer_of(whole.environment), kind):
            yield from rule.find(whole.environment)

    return find


for _kind in KINDS.values():
    register_rules(_kind)


def _begins(route: Route) -> bool:
    return not route.strip or f"{route.path}/".startswith(f"{route.strip.rstrip('/')}/")
