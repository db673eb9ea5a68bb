"""Nodes that the scheduler rules out before it looks at what is free on them.

Its texts are those of scheduler/feasible/feasible.go in Nomad.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from vllmjobs.changes.model import Amount, Reason, ReasonKind, Remedy, RemedyKind, Setting
from vllmjobs.changes.room.fleet import FENCE, Node, in_datacenter, in_pool
from vllmjobs.changes.room.placement import FailedPlacement
from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs.text.english import joined

Explanation = Iterator[Reason | Remedy]
"""The things that stand in the way of an allocation, and what a person may do."""
_CLASS = "computed class ineligible"
# Constraints that Nomad adds by itself, by the beginning of their attribute: nomad/job_endpoint_hooks.go.
_IMPLIED: dict[str, tuple[ReasonKind, RemedyKind | None]] = {
    "attr.consul.": ("consul", "run-consul"),
    "attr.vault.": ("vault", "set-up-vault"),
    "attr.os.signals": ("signals", None),
    "attr.nomad.service_discovery": ("service-discovery", None),
    "attr.nomad.": ("nomad-version", "upgrade-nomad"),
    "attr.plugins.cni.": ("cni-plugin", "install-cni-plugins"),
}
_TEXTS: dict[str, ReasonKind] = {
    "missing compatible host volumes": "host-volume",
    "missing network": "network-mode",
    "distinct_hosts": "distinct-hosts",
    "missing secrets provider": "secrets-provider",
}


def no_nodes(placement: FailedPlacement) -> Explanation:
    """Yield why no node takes allocations in the job's node pool and datacenters."""
    pool, nodes = placement.job.get("NodePool") or "default", placement.nodes
    datacenters = tuple(placement.job.get("Datacenters") or ["*"])
    if nodes is None:
        yield Reason(kind="no-nodes", node_pool=pool, datacenters=datacenters)
        return
    of_pool = in_pool(placement.job, nodes)
    if not of_pool:
        pools = Counter(node.pool for node in nodes)
        yield Reason(kind="node-pool", node_pool=pool, counts=amounts(pools))
        if pools:
            key = placement.key("balancer.node_pool", "nomad.node_pool")
            largest = pools.most_common(1)[0][0]
            yield Remedy(kind="set", settings=(Setting(key=key, value=largest),))
    elif not any(in_datacenter(placement.job, node) for node in of_pool):
        there = Counter(node.datacenter for node in of_pool)
        yield Reason(kind="datacenter", datacenters=datacenters, counts=amounts(there))
        value = f"[{', '.join(sorted(there))}]"
        yield Remedy(kind="set", settings=(Setting(key="nomad.datacenters", value=value),))
    for node in placement.serving:
        if node.refuses:
            yield Reason(kind="node-state", node=node.name, text=node.refuses)
            if node.refuses in ("ineligible", "draining"):
                yield make_eligible(node)


def ruled_out(placement: FailedPlacement, nodes_by_text: Mapping[str, int], is_gpus_too: bool) -> Explanation:
    """Yield why nodes are ruled out, from ConstraintFiltered, less what it says of GPUs.

    `is_gpus_too` tells that it says something of GPUs: then a fenced node is named with these.
    """
    nodes_by_text = dict(nodes_by_text)
    fenced = [node for node in placement.usable if node.refuses == "fenced"]
    # A fenced node is a class of its own, and only the first group that looks at it is told the text.
    of_fence = 0 if any(map(_is_fence, nodes_by_text)) else len(fenced)
    of_class = max(0, nodes_by_text.pop(_CLASS, 0) - of_fence)
    if fenced:
        nodes_by_text = {text: nodes for text, nodes in nodes_by_text.items() if not _is_fence(text)}
        for node in () if is_gpus_too else fenced:
            yield Reason(kind="node-fenced", node=node.name, text=node.fence)
            yield lift_fence(node)
    if of_class and len(nodes_by_text) == 1:
        nodes_by_text = {text: nodes + of_class for text, nodes in nodes_by_text.items()}
    elif of_class and not is_gpus_too:
        nodes_by_text |= dict.fromkeys(_texts_of_siblings(placement), of_class)
        if not nodes_by_text:
            yield Reason(kind="ruled-out", nodes=of_class)
    for text, nodes in sorted(nodes_by_text.items(), key=lambda item: (-item[1], item[0])):
        yield from _explain(placement, text, nodes)


def make_eligible(node: Node) -> Remedy:
    """Return what makes an ineligible or draining node take allocations."""
    command = f"nomad node eligibility -enable {node.id[:8]}"
    return Remedy(kind="make-eligible", node=node.name, command=command)


def lift_fence(node: Node) -> Remedy:
    """Return what makes a fenced node take allocations, once its GPU is mended."""
    command = f"nomad node meta apply -node-id {node.id[:8]} -unset {FENCE_META}"
    return Remedy(kind="lift-fence", node=node.name, command=command)


def _explain(placement: FailedPlacement, text: str, nodes: int) -> Explanation:
    if text == "missing drivers":
        yield from _drivers(placement, nodes)
    elif text in _TEXTS:
        yield Reason(kind=_TEXTS[text], nodes=nodes)
        if _TEXTS[text] == "host-volume":
            yield Remedy(kind="set", settings=(Setting(key="cache.volume"),))
    elif _is_fence(text):
        yield Reason(kind="nodes-fenced", nodes=nodes)
        yield Remedy(kind="read-runbook")
    elif key := _key_of(placement, text):
        yield Reason(kind="constraint", nodes=nodes, text=text)
        yield Remedy(kind="change-constraint", settings=(Setting(key=key),))
    elif kinds := next((kinds for start, kinds in _IMPLIED.items() if text.startswith("${" + start)), None):
        reason, remedy = kinds
        yield Reason(kind=reason, nodes=nodes, text=text)
        if remedy:
            yield Remedy(kind=remedy)
    elif text.startswith("distinct_property"):
        yield Reason(kind="distinct-property", nodes=nodes, text=text)
        yield Remedy(kind="change-constraint")
    else:
        yield Reason(kind="unusable", nodes=nodes, text=text)


def _key_of(placement: FailedPlacement, text: str) -> str | None:
    """Return the key that holds a constraint of the environment, which Nomad writes as `L operand R`."""
    of_job = placement.key("balancer.placement.constraints", "nomad.constraints")
    for spec, key in ((placement.job, of_job), (placement.group, "placement.constraints")):
        for rule in spec.get("Constraints") or ():
            if text == f"{rule['LTarget']} {rule['Operand']} {rule['RTarget']}":
                return key
    return None


def _texts_of_siblings(placement: FailedPlacement) -> list[str]:
    """Return what the scheduler says of another group only, since it holds for the whole job."""
    siblings = [metric for name, metric in placement.metrics.items() if name != placement.group["Name"]]
    texts = [text for metric in siblings for text in metric.get("ConstraintFiltered") or ()]
    return [text for text in texts if (_key_of(placement, text) or "").startswith(("nomad.", "balancer."))]


def _drivers(placement: FailedPlacement, nodes: int) -> Explanation:
    asked = {task["Driver"] for task in placement.group["Tasks"]}
    there = Counter(driver for node in placement.serving for driver in node.drivers - asked)
    yield Reason(kind="driver", nodes=nodes, resource=joined(sorted(asked), "or"), counts=amounts(there))
    if there:
        key = placement.key("balancer.driver", "driver")
        yield Remedy(kind="set", settings=(Setting(key=key, value=min(there)),))


def amounts(counts: Mapping[str, int]) -> tuple[Amount, ...]:
    """Return counts by name, in the order of the names."""
    return tuple(Amount(name=name, count=count) for name, count in sorted(counts.items()))


def _is_fence(text: str) -> bool:
    return text.split() == [*FENCE]
