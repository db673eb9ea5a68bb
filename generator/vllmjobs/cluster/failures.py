"""Nomad's refusals: which of them pass by themselves, which error each is, and words for a person."""

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import requests

from vllmjobs.cluster.reasons import (
    NO_LEADER,
    Failure,
    is_endless,
    is_lost,
    is_unreachable,
    status_line,
    url_of,
)
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.secrets import without_secrets

NomadVersion = tuple[int, int, int]
# command/agent: job_endpoint.go, deployment_endpoint.go, variable_endpoint.go.
_ABSENT = ("job not found", "job versions not found", "deployment not found", "variable not found")
# helper/pool/pool.go: an agent has not reached the leader.
_NOT_REACHED = ("failed to get conn", "lead thread didn't get connection")
# hashicorp/raft api.go, and what Go says of a connection that ended between an agent and the leader.
_CUT_OFF = ("node is not the leader", "leadership lost", "leadership transfer", "raft is already shutdown",
            "timed out enqueuing", "rpc error: EOF", "rpc error: shutdown", "unexpected EOF", "stream closed",
            "session shutdown", "connection reset", "broken pipe", "i/o timeout")  # fmt: skip
# nomad/structs/errors.go, and what a token that is no UUID is taken for: a workload identity's.
_NO_TOKEN = ("ACL token not found", "ACL token expired", "failed to parse signed token")
# What our templates may write, and the first Nomad that reads it, by Nomad's changelog: node pools (GH-11041)
# in 1.6.0, error_on_missing_key in 1.4.3, wait of one template (GH-11606) in 1.2.4, reserved cores and memory
# oversubscription in 1.1.0.
_SINCE = {
    "node_pool": (1, 6, 0), "error_on_missing_key": (1, 4, 3), "wait": (1, 2, 4), "cores": (1, 1, 0),
    "memory_max": (1, 1, 0),
}  # fmt: skip
_NOT_EXPECTED = re.compile(r'(?:An argument named|Blocks of type) "(\w+)" (?:is|are) not expected here')
_UNREADABLE = "Failed to parse job: "  # command/agent/job_endpoint.go
_ENFORCED = ("Enforcing job modify index", "; enforcing version ")  # nomad/job_endpoint.go
_UNHEALTHY = re.compile(r'Task group "[^"]*" has \d+/\d+ healthy allocations')  # nomad/state/state_store.go
# nomad/structs/errors.go, nomad/state/state_store.go, nomad/deployment_endpoint.go
_ENDED = ("terminal deployment", "has terminal status", "deployment not found")
_ERRORS = re.compile(r"(\d+) errors? occurred:$")  # hashicorp/go-multierror


class NomadError(UserError):
    """A refusal of Nomad, or why it cannot be asked: one line, with the address and the way out."""


class ForbiddenError(NomadError):
    """The token is missing, unknown, or may not do this."""


class InvalidJobError(NomadError):
    """The errors that Nomad finds in a job: a line that says so, and one for each error, indented."""

    def __init__(self, text: str) -> None:
        super().__init__(*text.split("\n"))


class ConflictError(NomadError):
    """Someone else has written first; nothing was changed."""


class NotHealthyError(NomadError):
    """Canaries that are to be promoted are not healthy, or not there."""


class DeploymentEndedError(NomadError):
    """The deployment has ended, or is forgotten: there is nothing left to promote or to fail."""


class UnsureError(NomadError):
    """The connection ended before the answer came: whether it was done has to be read back."""


def passes(failure: Failure) -> bool:
    """Tell whether the same request may be answered a little later."""
    if isinstance(failure, requests.Response):
        if failure.status_code == 500:
            return any(text in failure.text for text in NO_LEADER)
        return failure.status_code in (429, 502, 503, 504)
    return is_lost(failure)


def refused_write(failure: Failure) -> tuple[type[NomadError], str] | None:
    """Return the error and its words, where the cluster is not as the one who writes has taken it to be."""
    if not isinstance(failure, requests.Response):
        return None
    text = failure.text.strip()
    if failure.status_code == 409:  # command/agent/variable_endpoint.go
        return ConflictError, "someone else has written the variable in the meantime; try again"
    if any(enforced in text for enforced in _ENFORCED):
        return ConflictError, f"someone else has changed the job in the meantime: {text}"
    if unhealthy := _UNHEALTHY.findall(text):
        return NotHealthyError, f"not promoted: {', '.join(unhealthy)}"
    if any(ended in text for ended in _ENDED):
        return DeploymentEndedError, f"the deployment has ended: {text}"
    return None


def retry_after(failure: Failure) -> float:
    """Return the seconds for which the server asks, 0 if it does not."""
    text = failure.headers.get("Retry-After", "") if isinstance(failure, requests.Response) else ""
    return float(text) if text.isascii() and text.isdigit() else 0.0  # else a date: proxies send seconds


def is_unknown_token(failure: Failure) -> bool:
    """Tell whether Nomad calls the token unknown; to most requests it answers "Permission denied" instead."""
    if not isinstance(failure, requests.Response):
        return False
    is_task_api = failure.status_code == 403 and failure.text == "Forbidden"  # command/agent/http.go
    return is_task_api or any(text in failure.text for text in _NO_TOKEN)


def is_absent(failure: Failure) -> bool:
    """Tell whether what was asked for is not there, or its namespace is not."""
    if not isinstance(failure, requests.Response):
        return False
    return failure.status_code == 404 and failure.text.strip() in _ABSENT


def is_not_begun(failure: Failure) -> bool:
    """Tell whether a write that failed so has surely changed nothing, and may go well a little later."""
    if not isinstance(failure, requests.Response):
        return is_unreachable(failure)
    return failure.status_code == 429 or any(text in failure.text for text in (*NO_LEADER, *_NOT_REACHED))


def may_be_done(failure: Failure) -> bool:
    """Tell whether a write that failed so may have been done all the same.

    A server's 500 is its refusal, unless it lost its leader, or the way to it, with the write under way.
    """
    if isinstance(failure, requests.Response):
        is_cut_off = any(text in failure.text for text in _CUT_OFF)
        return failure.status_code in (502, 503, 504) or (failure.status_code == 500 and is_cut_off)
    return not is_unreachable(failure) and (is_lost(failure) or is_endless(failure))


def job_errors(failure: Failure, version: NomadVersion | None = None) -> str:
    """Return what is wrong with a job, where that is the answer to its parse or plan; else nothing.

    The first line ends what began with "the job"; each error follows on an indented line. `version` is the
    oldest server's, where it is known.
    """
    if not isinstance(failure, requests.Response) or "nonexistent namespace" in failure.text:
        return ""
    text = failure.text.removeprefix("rpc error: ")  # of an agent that is no server
    if text.startswith(_UNREADABLE):
        head = "cannot be read; input.hcl is what `vllmjobs render` prints:"
        lines = text.removeprefix(_UNREADABLE).splitlines() + _needed(text, version)
    elif _ERRORS.match(text.partition("\n")[0]):
        head, lines = "is refused:", list(_nested(text))
    else:
        return ""
    return without_secrets("\n".join([head, *(f"  {line}" for line in lines)]))


def _nested(text: str) -> Iterator[str]:
    """Yield each error indented below the one that counts it: Nomad indents all of them alike."""
    left: list[int] = []  # at each depth, how many are still to come
    for line in filter(None, (line.strip() for line in text.splitlines())):
        while left and not left[-1]:
            left.pop()
        if left and line.startswith("* "):
            left[-1] -= 1
        counted = _ERRORS.search(line)
        if message := _ERRORS.sub("", line).removeprefix("* ").strip():
            yield "  " * (len(left) - 1) + message
        if counted:
            left.append(int(counted[1]))


def _needed(text: str, version: NomadVersion | None) -> list[str]:
    this = f", and this is {_dotted(version)}" if version else ""
    return [
        f"{name} needs Nomad {_dotted(_SINCE[name])} or newer{this}"
        for name in dict.fromkeys(_NOT_EXPECTED.findall(text))
        if name in _SINCE and (not version or version < _SINCE[name])
    ]


def names_unexpected(failure: Failure) -> bool:
    """Tell whether the parser does not know a name that a newer one knows."""
    names = _NOT_EXPECTED.findall(failure.text) if isinstance(failure, requests.Response) else []
    return any(name in _SINCE for name in names)


def wrong_place(failure: Failure) -> str:
    """Return the reason where Nomad does not take the token, the region or the namespace; else nothing."""
    if not isinstance(failure, requests.Response):
        return ""
    line = status_line(failure)
    if "UUID must be 36 characters" in line:  # Job.Plan looks it up as an ACL token: nomad/job_endpoint.go
        return f"{line}: NOMAD_TOKEN is a workload identity, or no token; Nomad plans only with an ACL token"
    if "No path to region" in line:
        region = parse_qs(urlsplit(url_of(failure)).query).get("region", [""])[0]
        return f"there is no region {region!r}, which NOMAD_REGION or the job names: {line}"
    if missing := re.search(r'nonexistent namespace "([^"]*)"', line):
        name = missing[1]
        way_out = f"`nomad namespace apply {name}` creates it"
        return f"there is no namespace {name!r}, which NOMAD_NAMESPACE or the job names; {way_out}"
    return ""


def _dotted(version: NomadVersion) -> str:
    return ".".join(map(str, version))
