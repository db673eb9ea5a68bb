"""Fabio's routing table: the lines in Consul's KV that change it, and what the balancers say of a share.

Fabio makes its table of the tags of what is registered, then of the lines of every key under `fabio/config`,
in order (main.go watchBackend). One line that is malformed, or before 1.7.3 one weight without a target, and
it keeps the table it has, for every service, until that line is gone.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PREFIX = "fabio/config"  # registry.consul.kvpath; Fabio's listing takes in fabio/config-old, too
CANARY = "canary"
TAG = "urlprefix-"
# The lines of a share add a target of this address and take it away again: in between, the weight has
# something to match, even when no canary is registered any more.
ANCHOR = "http://anchor.invalid/"


class Instance(NamedTuple):
    """An instance of a service, as Consul has it."""

    id: str
    node: str
    address: str
    port: int
    tags: tuple[str, ...]
    passing: bool
    """All of its checks, and those of its node: Fabio's checksRequired = all."""


class Problem(NamedTuple):
    """A line for which Fabio keeps its table as it is."""

    key: str
    line: int
    text: str
    rule: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.key}:{self.line}: {self.text}: {self.rule}; {self.way_out}"


class Target(NamedTuple):
    """Where a source leads: of a service, to an address."""

    service: str
    source: str
    address: str
    tags: frozenset[str]


class Command(NamedTuple):
    """A line that Fabio can read."""

    key: str
    line: int
    text: str
    verb: str
    """add, del or weight."""
    service: str
    source: str = ""
    address: str = ""
    tags: frozenset[str] = frozenset()


def key(job: str) -> str:
    """The key that holds a job's lines."""
    return f"{PREFIX}/{job}"


def sources(tags: Iterable[str]) -> list[str]:
    """The HOST/PATH of each route among the tags, as Fabio keeps it: registry/consul/routecmd.go."""
    ours = (tag.strip().removeprefix(TAG).split() for tag in tags if tag.strip().startswith(TAG))
    return [_lower(_with_path(words[0])) for words in ours if words]


def lines(service: str, sources: Iterable[str], canaries: int, share: float) -> str:
    """What gives so many canaries that share, 0.001 to 1, of each source.

    A weight is that of all matching targets together (setWeight in route.go): here of the canaries and the
    anchor, which then goes. When canaries come or go, their share changes until these lines are written anew;
    promoted ones keep nothing of it. Stable instances share the rest.
    """
    # Above 1, weights are normalised, so that no rest is left (weighTargets in route.go).
    weight = (share if share < 1 else 2.0) * (canaries + 1) / canaries
    text = [f"# {service}: {share * 100:g} % to {canaries} canaries; `vllmjobs deploy` removes it"]
    for source in sources:
        text += [
            f'route add {service} {source} {ANCHOR} tags "{CANARY}"',
            f'route weight {service} {source} weight {weight:.6f} tags "{CANARY}"',
            f"route del {service} {source} {ANCHOR}",
        ]
    return "".join(f"{line}\n" for line in text)


# parse_new.go. A blank there is any number of these characters.
_COMMANDS: dict[str, list[re.Pattern[str]]] = {
    verb: [re.compile(form.replace(" ", r"[\t\n\f\r ]+").replace("WORD", r"[^\t\n\f\r ]+")) for form in forms]
    for verb, forms in {
        "add": [
            r"route add (?P<service>WORD) (?P<source>WORD) (?P<address>WORD)( weight (?P<weight>WORD))?"
            r'( tags "(?P<tags>[^"]*)")?( opts "[^"]*")?'
        ],
        "del": [
            r'route del (?P<service>WORD) tags "(?P<tags>[^"]*)"',
            r'route del tags "(?P<tags>[^"]*)"',
            r"route del (?P<service>WORD)( (?P<source>WORD)( (?P<address>WORD))?)?",
        ],
        "weight": [
            r"route weight (?P<service>WORD) (?P<source>WORD) weight (?P<weight>WORD)"
            r'( tags "(?P<tags>[^"]*)")?',
            r'route weight (?P<source>WORD) weight (?P<weight>WORD) tags "(?P<tags>[^"]*)"',
        ],
    }.items()
}
_FORMS = {
    "add": 'route add SERVICE SOURCE URL [weight W] [tags "A,B"] [opts "K=V …"]',
    "del": 'route del SERVICE [SOURCE [URL]], or route del [SERVICE] tags "A,B"',
    "weight": 'route weight [SERVICE] SOURCE weight W [tags "A,B"]',
}


def parse(values: Mapping[str, str]) -> tuple[list[Command], list[Problem]]:
    """The commands in the values of these keys, in the order in which Fabio runs them, and what is none."""
    commands, problems = [], []
    for name in sorted(values):
        for number, line in enumerate(values[name].split("\n"), 1):
            if (text := line.strip()) and not text.startswith(("#", "//")):
                read = _read(name, number, text)
                if isinstance(read, Command):
                    commands.append(read)
                else:
                    problems.append(Problem(name, number, text, read, _mend(name)))
    return commands, problems


def unmatched(commands: Iterable[Command], registered: Iterable[Target]) -> list[Problem]:
    """The weights that are of no target, given those that follow from what is registered: see `targets`."""
    table, problems = list(registered), []
    for command in commands:
        if command.verb == "add":
            table.append(Target(command.service, _lower(command.source), command.address, command.tags))
        elif command.verb == "del":
            table = [target for target in table if not _is_deleted(target, command)]
        elif not any(_is_weighted(target, command) for target in table):
            of = [f"service {command.service}"] if command.service else []
            of += [f"tag {tag}" for tag in sorted(command.tags)]
            rule = f"{command.source} leads to no instance" + (f" of {', '.join(of)}" if of else "")
            problems.append(Problem(*command[:3], rule, _mend(command.key)))
    return problems


def targets(service: str, instances: Iterable[Instance]) -> list[Target]:
    """What Fabio makes of the instances of a service: those that pass their checks, by each route."""
    return [
        Target(service, source, f"{one.address}:{one.port}", frozenset(one.tags))
        for one in instances
        if one.passing
        for source in sources(one.tags)
    ]


def fabio_share(table: Sequence[Mapping[str, Any]] | None, service: str) -> float:
    """The canaries' share of the requests to a service, 0 to 1, by Fabio's /api/routes; the least by source.

    Their weights there are those in force, of 1 in all: admin/api/routes.go.
    """
    shares: dict[str, list[float]] = {}
    for target in table or ():
        if target["service"] == service:
            of_source = shares.setdefault(target["src"], [0.0, 0.0])
            of_source[CANARY in (target.get("tags") or ())] += target["weight"]
    return min((canary / (stable + canary or 1) for stable, canary in shares.values()), default=0.0)


def nginx_share(said: Mapping[str, Any]) -> float:
    """The canaries' share of the requests to a model, 0 to 1, by what nginx's /health says of it."""
    if not said["canary"]:
        return 0.0
    return float(said["canary_weight"]) if said["stable"] else 1.0


def _read(key: str, number: int, text: str) -> Command | str:
    """The command, or why it is none."""
    verb = next((verb for verb in _COMMANDS if re.match(rf"route[\t\n\f\r ]+{verb}", text)), None)
    if verb is None:
        return "is no command; they begin with route add, route del or route weight, or with # for a comment"
    matches = (form.fullmatch(text) for form in _COMMANDS[verb])
    if not (found := next(filter(None, matches), None)):
        return f"is not of the form {_FORMS[verb]}"
    words = {name: value for name, value in found.groupdict().items() if value}
    if "weight" in words and not _is_weight(words.pop("weight")):
        return "its weight is no finite number"
    if "address" in words and not _is_url(words["address"]):
        return f"{words['address']} is no URL"
    if verb == "add" and not _is_glob(words["source"].partition("/")[2]):
        return f"{words['source']} has a bracket that is not closed"
    said = words.pop("tags", "")
    if "source" in words:
        words["source"] = _with_path(words["source"])
    tags = frozenset(tag.strip() for tag in said.split(",")) if said else frozenset()
    return Command(key, number, text, verb, words.pop("service", ""), **words, tags=tags)


def _is_weight(text: str) -> bool:
    """As Go's strconv.ParseFloat has it; but Fabio ends with a panic at an infinite one."""
    hexadecimal = re.match(r"[+-]?0[xX]", text)
    try:
        number = float.fromhex(text) if hexadecimal else float(text)
    except (ValueError, OverflowError):
        return False
    return text.isascii() and math.isfinite(number) and not (hexadecimal and "p" not in text.lower())


def _is_url(text: str) -> bool:
    """As Go's url.Parse has it, for what people write."""
    try:
        _ = urlsplit(text).port
    except ValueError:
        return False
    if re.search(r"%(?![0-9A-Fa-f]{2})|[\x00-\x1f\x7f]", text):
        return False
    # Without a scheme, a colon cannot stand before the first slash: ADDRESS:PORT is no URL.
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text)) or ":" not in re.split(r"[/?#]", text)[0]


def _is_glob(path: str) -> bool:
    """As gobwas/glob has it, which reads every path for Fabio."""
    return "[" not in re.sub(r"\[[^]]*]", "", path)


def _is_weighted(target: Target, command: Command) -> bool:
    """weighRoute in table.go, setWeight in route.go: the host is compared as it was written."""
    of_service = not command.service or target.service == command.service
    return of_service and target.source == command.source and command.tags <= target.tags


def _is_deleted(target: Target, command: Command) -> bool:
    """delRoute in table.go."""
    of_service = target.service == command.service
    if command.tags:
        return (of_service or not command.service) and command.tags <= target.tags
    of_source = not command.source or target.source == command.source
    return of_service and of_source and (not command.address or target.address == command.address)


def _lower(source: str) -> str:
    host, slash, path = source.partition("/")
    return host.lower() + slash + path


def _with_path(source: str) -> str:
    """hostpath in table.go: a host alone has all paths; a port, for TCP, has none."""
    return source if source.startswith(":") or "/" in source else f"{source}/"


def _mend(key: str) -> str:
    return f"Fabio takes over no change of any service until it is mended, or `consul kv delete {key}`"
