"""Clauses for people, from the values that tell why there is no room, and what may be done."""

from collections.abc import Iterator, Sequence

from msgspec.structs import asdict

from vllmjobs.changes.model import Amount, Holder, Reason, ReasonKind, Remedy, RemedyKind, Unplaced
from vllmjobs.text.english import counted, joined

_MOST_NAMED = 3
# What follows `4 nodes`; of one node, the verb is inflected.
_NODES: dict[ReasonKind, str] = {
    "ruled-out": "are ruled out by a constraint, a driver or a device",
    "nodes-fenced": "are fenced, since a GPU is broken",
    "constraint": "do not meet {text}",
    "distinct-hosts": "run an instance already, and distinct_hosts allows one per node",
    "distinct-property": "would break {text}",
    "host-volume": "lack its host volume",
    "network-mode": "lack the network mode that it asks for",
    "secrets-provider": "lack its secrets provider",
    "consul": "run no Consul agent of 1.8 or newer ({text})",
    "vault": "reach no Vault ({text})",
    "signals": "cannot send the signals that the job names ({text})",
    "service-discovery": "offer no service discovery of Nomad's own ({text})",
    "nomad-version": "run a Nomad that is too old ({text})",
    "cni-plugin": "lack a CNI plugin of the job's network ({text})",
    "driver": "have no healthy driver {resource}",
    "device": "lack a device that it asks for",
    "unusable": "cannot be used: {text}",
    "resource": "have too little {resource} free, each {each} needs {needed} {unit}",
    "cores": "have too few cores free",
    "full": "have no room: {text}",
    "gpus-missing": "lack {gpus}",
    "gpus-taken": "have too few free for {gpus}",
}
_OF_ONE = {"are": "is", "cannot": "cannot", "do": "does", "have": "has", "reach": "reaches", "would": "would"}
_SENTENCES: dict[ReasonKind, str] = {
    "node-pool": "no node is in node pool {node_pool}",
    "datacenter": "no node is in datacenter {datacenters}",
    "no-nodes": "no node takes allocations in node pool {node_pool}, datacenter {datacenters}",
    "node-fenced": "{node} is fenced: {text}",
    "nodes-unknown": "a token with the ACL capability node:read would show more",
    "quota": "the namespace's quota is used up: {text}",
    "no-gpus": "no node that it may run on has {resource}",
    "gpus-elsewhere": "{node} in node pool {node_pool}, datacenter {datacenters} has {largest}",
    "gpu-constraints": "no GPU is {resource}",
}
_REMEDIES: dict[RemedyKind, str] = {
    "change": "change {key}",
    "move": "run it in node pool {node_pool}, datacenter {datacenter}",
    "raise-quota": "raise the quota",
    "check-device-plugin": "check that the device plugin runs on the nodes: {command}",
    "make-eligible": "make {node} eligible again: {command}",
    "lift-fence": "mend the GPU of {node}, and then lift the fence (docs/runbooks/gpu-fenced.md): {command}",
    "read-runbook": "see docs/runbooks/gpu-fenced.md",
    "run-consul": "run a Consul agent beside Nomad on each node",
    "set-up-vault": "set up Vault in the configuration of the nodes",
    "upgrade-nomad": "upgrade Nomad on the nodes",
    "install-cni-plugins": "install the CNI plugins on the nodes",
}
# What is said beside a new value, or in its place where a person has to choose one.
_BESIDE = {
    "gpus.model": ", or leave it out",
    "gpus.memory": ", or less",
    "rollout.strategy": ", which stops an old instance before it starts a new one",
}
_TO_CHOOSE = {
    "cache.volume": " to one that they have",
    "balancer.port": " to a free one",
    "ports.static": " to a free port, or leave it out",
}


def reasons(unplaced: Unplaced) -> tuple[str, ...]:
    """Return what stands in the way, one clause each."""
    each = "canary" if unplaced.canaries else "instance"
    return tuple(dict.fromkeys(clause for reason in unplaced.reasons for clause in _clauses(reason, each)))


def ways_out(unplaced: Unplaced) -> tuple[str, ...]:
    """Return what a person may do, one clause each."""
    return tuple(dict.fromkeys(map(_way_out, unplaced.remedies)))


def _clauses(reason: Reason, each: str) -> Iterator[str]:
    """Yield the clauses of a reason; `each` is what an allocation is called: canary or instance."""
    if reason.kind == "gpus":
        yield from _gpus(reason, each)
    elif own := _own(reason):
        yield own
    else:
        yield _of_template(reason, each) + _alternatives(reason)


def _of_template(reason: Reason, each: str) -> str:
    phrase, subject = _SENTENCES.get(reason.kind, ""), ""
    if not phrase:
        phrase, nodes = _NODES[reason.kind], reason.nodes or 0
        subject = f"{counted(nodes, 'node')} "
        if nodes == 1:
            verb, _, rest = phrase.partition(" ")
            phrase = f"{_OF_ONE.get(verb, f'{verb}s')} {rest}"
    asked = reason.resource if reason.needed == 1 else f"{reason.needed} of {reason.resource}"
    datacenters = joined(reason.datacenters, "or")
    values = asdict(reason) | {"datacenters": datacenters, "each": each, "gpus": asked}
    return subject + phrase.format(**values)


def _alternatives(reason: Reason) -> str:
    if reason.kind == "resource" and reason.most_free is not None:
        return f", and no node has more than {reason.most_free} {reason.unit} free"
    if not reason.counts:
        return ""
    if reason.kind == "driver":
        return f", they have {joined([driver.name for driver in reason.counts])}"
    there = [f"{place.name} ({counted(place.count, 'node')})" for place in reason.counts]
    return f", there is {joined(there)}"


def _gpus(reason: Reason, each: str) -> Iterator[str]:
    """Write that such GPUs are there, but too few free on one node; and who has the others."""
    need, free, most, largest = (
        number or 0 for number in (reason.needed, reason.free, reason.most_free, reason.largest)
    )
    there = f"{counted(reason.nodes or 0, 'node')} {'has' if reason.nodes == 1 else 'have'} {reason.resource}"
    ask = f"each {each} needs {need}" + (" on one node" if need > 1 else "")
    if reason.free is None:
        unknown = "a token with the ACL capability namespace:read-job would show who holds them"
        yield f"{there}, {ask}; {unknown}"
        return
    are = "GPU is" if free in (0, 1) else "GPUs are"
    spread = f", {most} at most on one node" if most < need <= free else ""
    yield f"{there}, {free or 'no'} {are} free{spread}, {ask}"
    if largest < need:
        yield f"no node has more than {largest}" if largest else "none of them is known to be healthy"
    elif holders := _holders(reason.holders):
        yield f"{joined(holders)} hold{'s' if len(holders) == 1 else ''} the others"


def _holders(holders: Sequence[Holder]) -> list[str]:
    texts = [f"{'this job' if each.own else each.job} ({each.count})" for each in holders[:_MOST_NAMED]]
    rest = sum(each.count for each in holders[_MOST_NAMED:])
    return [*texts, f"others ({rest})"] if rest else texts


def _own(reason: Reason) -> str:
    """Write a reason whose clause depends on its numbers or names; empty for one that has a template."""
    count = sum(each.count for each in reason.counts)
    match reason.kind:
        case "node-state":
            where = f", where {counted(reason.free or 0, 'GPU')} are free," if reason.free else ""
            return f"{reason.node}{where} is {reason.text}"
        case "port":
            by = joined([holder.job for holder in reason.holders])
            where = counted(reason.nodes or 0, "node")
            return f"port {reason.port} ({reason.resource}) is taken on {where}{by and f', by {by}'}"
        case "gpu-model":
            there = joined([f"{model.name} ({model.count})" for model in reason.counts[:_MOST_NAMED]])
            return f"no GPU is {reason.resource}: there are {there}"
        case "gpu-memory":
            largest = f"{(reason.largest or 0) / 1024:.1f} GiB"
            return f"no GPU has enough memory: {reason.resource} is asked for, and the largest has {largest}"
        case "gpus-unhealthy":
            faults = ", ".join(fault.name for fault in reason.counts)
            are = "is" if count == 1 else "are"
            return f"{counted(count, 'GPU')} on {reason.node} {are} unhealthy ({faults})"
        case "gpus-given":
            return f"this plan gives {joined([f'{group.count} to {group.name}' for group in reason.counts])}"
    return ""


def _way_out(remedy: Remedy) -> str:
    settings = [(setting.key, setting.value) for setting in remedy.settings]
    key, value = settings[0] if settings else ("", None)
    match remedy.kind:
        case "set":
            also = "".join(f", with {key}: {value}" for key, value in settings[1:])
            new = _TO_CHOOSE.get(key, "") if value is None else f": {value}{_BESIDE.get(key, '')}{also}"
            return f"set {key}{new}"
        case "lower":
            least = " or less" if key == "gpus.count" else ""
            return f"lower {key}" + (f" to {value}{least}" if value else "")
        case "change-constraint":
            return "change that constraint" + (f" in {key}" if key else "")
        case "free-gpus":
            return "free " + joined([f"{counted(node.count, 'GPU')} on {node.name}" for node in remedy.gpus])
        case "free-gpus-on-any":
            names = [node.name for node in remedy.gpus[:_MOST_NAMED]]
            return f"free {counted(_first(remedy.gpus).count, 'GPU')} on {joined(names, 'or')}"
        case "mend-gpus":
            node = _first(remedy.gpus)
            return f"mend the unhealthy {'GPU' if node.count == 1 else 'GPUs'} on {node.name}"
    return _REMEDIES[remedy.kind].format(key=key, **asdict(remedy))


def _first(amounts: Sequence[Amount]) -> Amount:
    return amounts[0] if amounts else Amount(name="", count=0)
