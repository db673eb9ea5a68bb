"""VJ321 and VJ322: comparisons of nodes and GPUs that Nomad would refuse, or that could never be true."""

import re

from vllmjobs.balancers import balancer_of
from vllmjobs.check.rule import Findings, environment_rule, model_rule
from vllmjobs.check.subject import Subject, Whole
from vllmjobs.environment.placement import Placement
from vllmjobs.environment.problems import Path

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
AMOUNTS = ("=", "==", "is", "!=", "not", "<", "<=", ">", ">=")
NUMBER = r"-?\d+(\.\d+)?(e[+-]?\d+)?"
EXAMPLES = {
    "pci_bandwidth": "32000 MB/s",
    "cores_clock": "1500 MHz",
    "memory_clock": "1500 MHz",
    "power": "300 W",
}
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
# Of Python's expressions, what Go's (RE2) do not have: lookarounds, back-references, comments, possessives.
_NOT_IN_RE2 = r"\(\?(=|!|<=|<!|>|#|P=|\(|[a-z]*x)|[*+?}]\+"
_ESCAPES_NOT_IN_RE2 = r"\\([1-9]|Z|u)"
_ESCAPE = r"(?s:\\.)"
_CLASS = r"\[\^?\]?(\[:\w+:\]|[^\]])*\]"


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
            message = f"are not for {balancer.title}, which is a system job; Nomad refuses them"
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
            yield ("gpus", key), f"{value} matches nothing: the plugin says {right}, in lower case"
    for kind in ("constraints", "affinities"):
        for index, comparison in enumerate(getattr(wanted, kind)):
            path: Path = ("gpus", kind, index)
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


def _device(name: str, operator: str, value: str, vendor: str, at: Path) -> Findings:
    """Find comparisons across kinds: Nomad compares amounts with a unit of theirs, words with words."""
    if vendor == "nvidia" and name not in ATTRIBUTES and operator not in ("is_not_set", "!=", "not"):
        yield at, f"the nvidia plugin reports no {name}; it reports {', '.join(ATTRIBUTES)}"
    if operator in WITHOUT_VALUE or not value:
        return
    if unit := UNITS.get(name):
        if operator not in AMOUNTS:
            message = f"{operator} compares words, and {name} is an amount; use one of =, <, >="
            yield (*at, "operator"), message
        elif not re.fullmatch(rf"{NUMBER} *{unit}", value):
            yield (
                (*at, "value"),
                f"{value!r} has no unit that Nomad knows, and would match no GPU; write "
                f"{EXAMPLES.get(name, '70 GiB')}",
            )
    elif name in WORDS and re.fullmatch(rf"{NUMBER} *({'|'.join(UNITS.values())})?", value):
        better = 'version ">= 550.54"' if name == "driver_version" else "a word of it, or .* before"
        message = f"{value!r} is a number to Nomad, and {name} is a word: it never matches; use {better}"
        yield (*at, "value"), message
    elif name == "driver_version" and operator in ("<", "<=", ">", ">="):
        message = f'{operator} compares letter by letter; use operator version with "{operator} {value}"'
        yield (*at, "operator"), message


def _placement(placement: Placement, at: Path) -> Findings:
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
            yield (*path, "targets"), f"the percentages add up to {total}; 100 at most"


def _attribute(attribute: str, at: Path) -> Findings:
    """Find what is no attribute: Nomad compares it as the very word that it is, or refuses it."""
    if not re.fullmatch(NODE_ATTRIBUTE, attribute):
        yield (
            (*at, "attribute"),
            f"{attribute!r} is no attribute of a node; write such as ${{node.class}}, "
            "${attr.kernel.name} or ${meta.NAME}",
        )


def compare(operator: str, value: str, at: Path) -> Findings:
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
    elif operator == "regexp":
        yield from _regexp(value, (*at, "value"))


def weight(value: int, at: Path) -> Findings:
    """Yield a weight without effect."""
    if value == 0:
        yield at, "weight 0 has no effect; Nomad refuses it"


def _regexp(value: str, at: Path) -> Findings:
    """Return what RE2 surely refuses; on the rest Nomad has the last word."""
    escapes = "".join(re.findall(_ESCAPE, value))
    plain = re.sub(_CLASS, "c", re.sub(_ESCAPE, "e", value))
    if re.search(_NOT_IN_RE2, plain) or re.search(_ESCAPES_NOT_IN_RE2, escapes):
        yield (
            at,
            "holds what Nomad's regular expressions (RE2) lack: a lookaround, a back-reference or the like",
        )
    elif plain.count("(") != plain.count(")"):
        yield at, "is no regular expression: its parentheses do not match"
    elif re.match(r"[*+?]|.*\([*+?]", plain.replace("(?", "(")) and not plain.startswith("(?"):
        yield at, "is no regular expression: it repeats nothing"
    elif "[" in plain:
        yield at, "is no regular expression: a [ is not closed"
