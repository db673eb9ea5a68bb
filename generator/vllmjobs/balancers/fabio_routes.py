"""Fabio's routing table: the lines in Consul's KV that change it, and the shares that it gives.

Fabio makes its table of the tags of what is registered, then of the lines of every key under `fabio/config`,
in order (main.go watchBackend). One line that is malformed, or before 1.7.3 one weight without a target, and
it keeps the table it has, for every service, until that line is gone.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from vllmjobs.balancers.instances import CANARY, ServiceInstance

PREFIX = "fabio/config"  # registry.consul.kvpath; Fabio's listing takes in fabio/config-old, too
TAG = "urlprefix-"
# The lines of a share add a target of this address and take it away again: in between, the weight has
# something to match, even when no canary is registered any more.
ANCHOR = "http://anchor.invalid/"


class RouteProblem(NamedTuple):
    """A line for which Fabio keeps its table as it is."""

    key: str
    line: int
    text: str
    rule: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.key}:{self.line}: {self.text}: {self.rule}; {self.way_out}"


class RouteTarget(NamedTuple):
    """An entry of the table: requests for a source go to an address, which is an instance of a service."""

    service: str
    source: str  # HOST/PATH, or :PORT for TCP
    address: str
    tags: frozenset[str]


class RouteCommand(NamedTuple):
    """A line that Fabio can read: a route command."""

    key: str
    line: int
    text: str
    verb: str  # add, del or weight
    service: str
    source: str = ""
    address: str = ""
    tags: frozenset[str] = frozenset()


def routes_key(job: str) -> str:
    """Return the key that holds a job's lines."""
    return f"{PREFIX}/{job}"


def sources(tags: Iterable[str]) -> list[str]:
    """Return the HOST/PATH of each route among the tags, as Fabio keeps it: registry/consul/routecmd.go."""
    routes = (tag.strip().removeprefix(TAG).split() for tag in tags if tag.strip().startswith(TAG))
    return [_lower(_with_path(words[0])) for words in routes if words]


def share_lines(service: str, sources: Iterable[str], canaries: int, share: float) -> str:
    """Return the lines that give so many canaries that share, 0.001 to 1, of the requests for each source.

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


# parse_new.go, with WORD for a word, and a blank for any number of blanks.
_COMMANDS = {
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
}
_BLANK = r"[\t\n\f\r ]+"
_WORD = r"[^\t\n\f\r ]+"
_FORMS = {
    "add": 'route add SERVICE SOURCE URL [weight W] [tags "A,B"] [opts "K=V …"]',
    "del": 'route del SERVICE [SOURCE [URL]], or route del [SERVICE] tags "A,B"',
    "weight": 'route weight [SERVICE] SOURCE weight W [tags "A,B"]',
}


def parse(values: Mapping[str, str]) -> tuple[list[RouteCommand], list[RouteProblem]]:
    """Return the commands in the values of these keys, in Fabio's order, and the lines that are none."""
    commands, problems = [], []
    for name in sorted(values):
        for number, line in enumerate(values[name].split("\n"), 1):
            if (text := line.strip()) and not text.startswith(("#", "//")):
                command = _read(name, number, text)
                if isinstance(command, RouteCommand):
                    commands.append(command)
                else:
                    problems.append(RouteProblem(name, number, text, command, _way_out(name)))
    return commands, problems


def unmatched(commands: Iterable[RouteCommand], registered: Iterable[RouteTarget]) -> list[RouteProblem]:
    """Return the weights that match no target of the table; `registered` are those that the tags make."""
    table, problems = list(registered), []
    for command in commands:
        if command.verb == "add":
            table.append(RouteTarget(command.service, _lower(command.source), command.address, command.tags))
        elif command.verb == "del":
            table = [target for target in table if not _is_deleted(target, command)]
        elif not any(_is_weighted(target, command) for target in table):
            names = [f"service {command.service}"] if command.service else []
            names += [f"tag {tag}" for tag in sorted(command.tags)]
            rule = f"{command.source} leads to no instance" + (f" of {', '.join(names)}" if names else "")
            problems.append(RouteProblem(*command[:3], rule, _way_out(command.key)))
    return problems


def targets(service: str, instances: Iterable[ServiceInstance]) -> list[RouteTarget]:
    """Return what Fabio makes of a service: its instances that pass their checks, for each route."""
    return [
        RouteTarget(service, source, f"{instance.address}:{instance.port}", frozenset(instance.tags))
        for instance in instances
        if instance.passing
        for source in sources(instance.tags)
    ]


def fabio_share(table: Sequence[Mapping[str, Any]] | None, service: str) -> float:
    """Return the canaries' share of the requests to a service, 0 to 1, by Fabio's /api/routes.

    Where the sources differ, it is the least. The weights there are those in force, of 1 in all:
    admin/api/routes.go.
    """
    shares: dict[str, list[float]] = {}
    for target in table or ():
        if target["service"] == service:
            stable_and_canary = shares.setdefault(target["src"], [0.0, 0.0])
            stable_and_canary[CANARY in (target.get("tags") or ())] += target["weight"]
    return min((canary / (stable + canary or 1) for stable, canary in shares.values()), default=0.0)


def _read(key: str, number: int, text: str) -> RouteCommand | str:
    """Return the command, or why the line is none."""
    verb = next((verb for verb in _COMMANDS if re.match(rf"route{_BLANK}{verb}", text)), None)
    if verb is None:
        return "is no command; they begin with route add, route del or route weight, or with # for a comment"
    match = next(filter(None, (form.fullmatch(text) for form in _forms(verb))), None)
    if match is None:
        return f"is not of the form {_FORMS[verb]}"
    words = {name: value for name, value in match.groupdict().items() if value}
    if "weight" in words and not _is_weight(words.pop("weight")):
        return "its weight is no finite number"
    if "address" in words and not _is_url(words["address"]):
        return f"{words['address']} is no URL"
    if verb == "add" and not _is_glob(words["source"].partition("/")[2]):
        return f"{words['source']} has a bracket that is not closed"
    if "source" in words:
        words["source"] = _with_path(words["source"])
    tags = frozenset(tag.strip() for tag in words.pop("tags").split(",")) if "tags" in words else frozenset()
    return RouteCommand(key, number, text, verb, words.pop("service", ""), **words, tags=tags)


@cache  # compiled when a line is read, since most runs read none
def _forms(verb: str) -> list[re.Pattern[str]]:
    return [re.compile(form.replace(" ", _BLANK).replace("WORD", _WORD)) for form in _COMMANDS[verb]]


def _is_weight(text: str) -> bool:
    """Tell whether Go's strconv.ParseFloat reads a weight; but Fabio ends with a panic at an infinite one."""
    hexadecimal = re.match(r"[+-]?0[xX]", text)
    try:
        number = float.fromhex(text) if hexadecimal else float(text)
    except (ValueError, OverflowError):
        return False
    return text.isascii() and math.isfinite(number) and not (hexadecimal and "p" not in text.lower())


def _is_url(text: str) -> bool:
    """Tell whether Go's url.Parse reads a URL, as far as people write them."""
    try:
        _ = urlsplit(text).port
    except ValueError:
        return False
    if re.search(r"%(?![0-9A-Fa-f]{2})|[\x00-\x1f\x7f]", text):
        return False
    # Without a scheme, a colon cannot stand before the first slash: ADDRESS:PORT is no URL.
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text)) or ":" not in re.split(r"[/?#]", text)[0]


def _is_glob(path: str) -> bool:
    """Tell whether gobwas/glob reads a path, which it does for each of Fabio's."""
    return "[" not in re.sub(r"\[[^]]*]", "", path)


def _is_weighted(target: RouteTarget, command: RouteCommand) -> bool:
    """Tell whether a `route weight` is of a target: weighRoute in table.go, setWeight in route.go."""
    # The host is compared as it was written.
    has_service = not command.service or target.service == command.service
    return has_service and target.source == command.source and command.tags <= target.tags


def _is_deleted(target: RouteTarget, command: RouteCommand) -> bool:
    """Tell whether a `route del` takes a target away: delRoute in table.go."""
    has_service = target.service == command.service
    if command.tags:
        return (has_service or not command.service) and command.tags <= target.tags
    has_source = not command.source or target.source == command.source
    return has_service and has_source and (not command.address or target.address == command.address)


def _lower(source: str) -> str:
    host, slash, path = source.partition("/")
    return host.lower() + slash + path


def _with_path(source: str) -> str:
    """Return a source with its path (table.go, hostpath): a host alone has all, a port, for TCP, none."""
    return source if source.startswith(":") or "/" in source else f"{source}/"


def _way_out(key: str) -> str:
    return f"Fabio takes over no change of any service until you mend it, or run `consul kv delete {key}`"
