"""VJ321 to VJ325: comparisons of nodes and GPUs that Nomad would refuse, or that could never be true."""

import re
from collections.abc import Iterator
from operator import eq, ge, gt, le, lt, ne

from vllmjobs.balancers import balancer_of
from vllmjobs.check.regexp import unreadable
from vllmjobs.check.rule import Findings, environment_rule, model_rule
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.placement import Placement
from vllmjobs.environment.problems import KeyPath
from vllmjobs.environment.quantity import size_bytes
from vllmjobs.vllm.memory.gpus import Gpu, gpu, gpus

# What the nvidia device plugin reports with a unit, and the units of a kind that Nomad knows
# (plugins/shared/structs/units.go). A number without one, or with any other (`70Gi`), matches no GPU.
BYTES = r"([KMGTPE]iB|[kKMGTPE]B)"
UNITS = {
    "memory": BYTES,
    "bar1": BYTES,
    "pci_bandwidth": f"{BYTES}/s",
    "cores_clock": "[MG]Hz",
    "memory_clock": "[MG]Hz",
    "power": "(mW|W|kW|MW|GW)",
}
WORDS = ("driver_version", "model", "ids")
ATTRIBUTES = (*UNITS, "display_state", "persistence_mode", "vendor", "type", *WORDS)
NUMBER = r"-?\d+(\.\d+)?(e[+-]?\d+)?"
EXAMPLES = {
    "cores_clock": "1500 MHz", "memory_clock": "1500 MHz", "pci_bandwidth": "32000 MB/s", "power": "300 W",
}  # fmt: skip
NODE_ATTRIBUTE = r"\$\{(node|attr|meta)\.[^${}\s]+\}"
DEVICE_ATTRIBUTE = r"\$\{device\.(attr\.(\w+)|ids|model|vendor|type)\}"


WITHOUT_VALUE = ("is_set", "is_not_set")
_IDENTIFIERS = r"[0-9A-Za-z~-]+(\.[0-9A-Za-z~-]+)*"
_NUMBER = r"v?\d+(\.\d+)*"
# What hashicorp/go-version reads (VersionRegexpRaw, SemverRegexpRaw): a word may follow without a dash only
# in the first, and the second has no `~>`.
_VERSION = rf"{_NUMBER}(-\d+{_IDENTIFIERS}?|-?[A-Za-z~-]+(\.?[0-9A-Za-z~-]+)*)?(\+{_IDENTIFIERS})?"
_SEMVER = rf"{_NUMBER}(-{_IDENTIFIERS})?(\+{_IDENTIFIERS})?"
VERSIONS = {
    "version": rf"\s*(=|!=|>=|<=|>|<|~>)?\s*{_VERSION}\s*",
    "semver": rf"\s*(=|!=|>=|<=|>|<)?\s*{_SEMVER}\s*",
}
# A label says 80 GB where the driver reports 79.6 GiB, 24 GB where it reports 22.5 GiB: 7 % at most.
LABEL_MARGIN = 1.07
COMPARED = {
    "=": eq, "==": eq, "is": eq, "!=": ne, "not": ne, "<": lt, "<=": le, ">": gt, ">=": ge,
}  # fmt: skip


@environment_rule("VJ321", "error")
def placement_is_possible(whole: Whole) -> Findings:
    """Find constraints, affinities and spreads that Nomad refuses, or that no node meets."""
    environment = whole.environment
    yield from _placement(environment.nomad, ("nomad",))
    balancer = balancer_of(environment)
    placement = environment.balancer.placement
    yield from _placement(placement, ("balancer", "placement"))
    for key in ("affinities", "spread"):
        if balancer.is_system_job and getattr(placement, key):
            message = f"are refused by Nomad for {balancer.title}, which is a system job; leave them out"
            yield ("balancer", "placement", key), message
    for name, model in environment.models.items():
        yield from _placement(model.placement, ("models", name, "placement"))
    if prometheus := environment.monitoring.prometheus:
        yield from _placement(prometheus.placement, ("monitoring", "prometheus", "placement"))
    if backup := environment.cache_backup:
        yield from _placement(Placement(constraints=backup.constraints), ("cache_backup",))


@model_rule("VJ322", "error")
def gpus_can_match(subject: Subject) -> Findings:
    """Find comparisons that no GPU meets, such as amounts without a unit."""
    wanted = subject.model.gpus
    for key, value, right in (("vendor", wanted.vendor, "nvidia"), ("type", wanted.type, "gpu")):
        if value != right and value.lower() == right:
            yield ("gpus", key), f"{value} matches nothing; write {right}, in lower case, as the plugin does"
    for kind in ("constraints", "affinities"):
        for index, comparison in enumerate(getattr(wanted, kind)):
            path: KeyPath = ("gpus", kind, index)
            yield from compare(comparison.operator, comparison.value, path)
            attribute = re.fullmatch(DEVICE_ATTRIBUTE, comparison.attribute)
            if attribute:
                name = attribute[2] or attribute[1]
                yield from _device(name, comparison.operator, comparison.value, wanted.vendor, path)
            else:
                message = f"{comparison.attribute!r} is no attribute of a GPU; write ${{device.attr.memory}}"
                yield path, message
    for index, affinity in enumerate(wanted.affinities):
        yield from weight(affinity.weight, ("gpus", "affinities", index))


@model_rule("VJ323", "error")
def a_gpu_has_the_memory(subject: Subject) -> Findings:
    """Find more memory than the GPU reports. Nothing is ever placed where none reports so much."""
    wanted = subject.model.gpus
    named = gpu(wanted.model or "")
    if wanted.model and not named:
        return
    for path, operator, asked, text in _asked(subject):
        if any(COMPARED[operator](each.memory_mib, asked) for each in ([named] if named else gpus())):
            continue
        if named:
            yield path, f"{named.name} reports {_reported(named)}, not {text}; {_way_out(named)}"
        else:
            most = max(gpus(), key=lambda each: each.memory_mib)
            yield path, f"no known GPU reports {text}; {most.name} has the most, {_reported(most)}"


@model_rule("VJ324", "warning")
def no_gpu_is_left_out_by_its_label(subject: Subject) -> Findings:
    """Find a threshold from the label of a card, which leaves that card out.

    A driver reports less than the label says: 80 GiB leaves out every H100 80GB, which has 79.6.
    """
    if subject.model.gpus.model:
        return
    for path, operator, asked, text in _asked(subject):
        near = [each for each in gpus() if each.memory_mib < asked <= each.memory_mib * LABEL_MARGIN]
        if operator in (">", ">=") and near and any(each.memory_mib >= asked for each in gpus()):
            names = ", ".join(f"{each.name} ({_reported(each)})" for each in near[:3])
            yield path, f"{text} leaves out {names}; {_way_out(min(near, key=lambda each: each.memory_mib))}"


@model_rule("VJ325", "warning")
def gpu_has_its_whole_name(subject: Subject) -> Findings:
    """Find a GPU by a name that no driver reports. Nomad compares NVML's whole name: `H100` is none."""
    named: list[tuple[KeyPath, str]] = [(("gpus", "model"), subject.model.gpus.model or "")]
    for index, constraint in enumerate(subject.model.gpus.constraints):
        if constraint.attribute == "${device.model}" and constraint.operator in ("=", "==", "is"):
            named.append((("gpus", "constraints", index, "value"), constraint.value))
    for path, name in named:
        known = gpu(name)
        is_drivers = name.startswith(("NVIDIA ", "Tesla ")) and known and name in known.short
        if known and name != known.name and not is_drivers:
            yield (
                path,
                f"{name} is not the full name that a driver reports and Nomad compares; write {known.name!r}",
            )


def _device(name: str, operator: str, value: str, vendor: str, at: KeyPath) -> Findings:
    """Find comparisons across kinds: Nomad compares amounts with a unit of theirs, words with words."""
    if vendor == "nvidia" and name not in ATTRIBUTES and operator not in ("is_not_set", "!=", "not"):
        yield at, f"the nvidia plugin reports no {name}; it reports {', '.join(ATTRIBUTES)}"
    if operator in WITHOUT_VALUE or not value:
        return
    if unit := UNITS.get(name):
        if operator not in COMPARED:
            message = f"{operator} compares words, and {name} is an amount; use one of =, <, >="
            yield (*at, "operator"), message
        elif not re.fullmatch(rf"{NUMBER} *{unit}", value):
            yield (
                (*at, "value"),
                f"{value!r} has no unit that Nomad knows, and would match no GPU; give it one, such as "
                f"{EXAMPLES.get(name, '70 GiB')}",
            )
    elif name in WORDS and re.fullmatch(rf"{NUMBER} *({'|'.join(UNITS.values())})?", value):
        better = 'use version ">= 550.54"' if name == "driver_version" else "add letters, or .* before it"
        message = f"Nomad reads {value!r} as a number and {name} as a word, which never match; {better}"
        yield (*at, "value"), message
    elif name == "driver_version" and operator in ("<", "<=", ">", ">="):
        message = f'{operator} compares letter by letter; use operator version with "{operator} {value}"'
        yield (*at, "operator"), message


def _placement(placement: Placement, at: KeyPath) -> Findings:
    for index, constraint in enumerate(placement.constraints):
        path = (*at, "constraints", index)
        if not constraint.attribute and constraint.operator != "distinct_hosts":
            yield path, f"operator {constraint.operator} needs an attribute"
        elif constraint.attribute:
            yield from _attribute(constraint.attribute, path)
        yield from compare(constraint.operator, constraint.value, path)
    for index, affinity in enumerate(placement.affinities):
        path = (*at, "affinities", index)
        yield from _attribute(affinity.attribute, path)
        yield from compare(affinity.operator, affinity.value, path)
        yield from weight(affinity.weight, path)
    for index, spread in enumerate(placement.spread):
        path = (*at, "spread", index)
        yield from _attribute(spread.attribute, path)
        total = sum(spread.targets.values())
        if total > 100:
            yield (*path, "targets"), f"must add up to 100 percent at most (got {total})"


def _attribute(attribute: str, at: KeyPath) -> Findings:
    """Find what is no attribute: Nomad compares it as the very word that it is, or refuses it."""
    if not re.fullmatch(NODE_ATTRIBUTE, attribute):
        yield (
            (*at, "attribute"),
            f"{attribute!r} is no attribute of a node; write one such as ${{node.class}}, "
            "${attr.kernel.name} or ${meta.NAME}",
        )


def compare(operator: str, value: str, at: KeyPath) -> Findings:
    """Yield what is wrong with the right-hand side of a constraint or affinity at `at`."""
    if operator in WITHOUT_VALUE:
        if value:
            yield (*at, "value"), f"operator {operator} takes no value"
    elif operator == "distinct_property":
        if value and not re.fullmatch("0*[1-9][0-9]{0,8}", value):
            yield (*at, "value"), f"must be how many allocations may share the property (got {value!r})"
    elif operator == "distinct_hosts":
        if value.lower() not in ("", "true", "false", "t", "f", "1", "0"):
            yield (*at, "value"), f"must be true or false (got {value!r})"
    elif not value:
        yield at, f"operator {operator} needs a value"
    elif operator in VERSIONS:
        if not all(re.fullmatch(VERSIONS[operator], part) for part in value.split(",")):
            yield (*at, "value"), f'must be a {operator} constraint, such as ">= 550.54" (got {value!r})'
    elif operator == "regexp" and (wrong := unreadable(value)):
        yield (*at, "value"), f"is no regular expression that Nomad can read (RE2's): {wrong}"


def weight(value: int, at: KeyPath) -> Findings:
    """Yield a weight without effect."""
    if value == 0:
        yield at, "weight 0 has no effect, and Nomad refuses it; give it another weight"


def _asked(subject: Subject) -> Iterator[tuple[KeyPath, str, float, str]]:
    """Yield each demand on a GPU's memory: its key, the operator, MiB, and the text of the file."""
    wanted = subject.model.gpus
    if (wanted.vendor, wanted.type) != ("nvidia", "gpu"):
        return
    if wanted.memory:
        yield ("gpus", "memory"), ">=", size_bytes(wanted.memory) / 2**20, wanted.memory
    for index, constraint in enumerate(wanted.constraints):
        operator, value = constraint.operator, constraint.value
        is_memory = constraint.attribute == "${device.attr.memory}" and operator in COMPARED
        if is_memory and re.fullmatch(r"\d+(\.\d+)? ?(MiB|GiB|TiB|MB|GB|TB)", value):
            text = value if operator == ">=" else f"{operator} {value}"
            yield ("gpus", "constraints", index, "value"), operator, size_bytes(value) / 2**20, text


def _reported(one: Gpu) -> str:
    return f"{one.memory_mib / 1024:.1f} GiB"


def _way_out(one: Gpu) -> str:
    """Return the way out: a round number a good deal below, which older drivers report too."""
    return f"ask for less, such as {int(one.memory_mib / 1024 * 0.9)} GiB"
