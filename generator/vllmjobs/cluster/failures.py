"""What Nomad's answers mean that are none: which of them pass by themselves, and words for a person."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from http.client import BadStatusLine, IncompleteRead
from urllib.parse import parse_qs, urlsplit

import requests
from urllib3.exceptions import NewConnectionError, ReadTimeoutError

from vllmjobs.environment.problems import UserError
from vllmjobs.environment.secrets import without_secrets

Version = tuple[int, int, int]
Failure = requests.Response | Exception
"""What python-nomad's exceptions carry in `nomad_resp`."""
# nomad/structs/errors.go: an election, or a leader that has yet to apply what was decided before it.
# And one that has yet to read its keys, without which there are no variables (nomad/encrypter.go).
_NO_LEADER = (
    "No cluster leader",
    "Not ready to serve consistent reads",
    "keyring has not been initialized yet",
)
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
    "node_pool": (1, 6, 0),
    "error_on_missing_key": (1, 4, 3),
    "wait": (1, 2, 4),
    "cores": (1, 1, 0),
    "memory_max": (1, 1, 0),
}
_NOT_EXPECTED = re.compile(r'(?:An argument named|Blocks of type) "(\w+)" (?:is|are) not expected here')
_UNREADABLE = "Failed to parse job: "  # command/agent/job_endpoint.go
_ENFORCED = ("Enforcing job modify index", "; enforcing version ")  # nomad/job_endpoint.go
_UNHEALTHY = re.compile(r'Task group "[^"]*" has \d+/\d+ healthy allocations')  # nomad/state/state_store.go
# nomad/structs/errors.go, nomad/state/state_store.go, nomad/deployment_endpoint.go
_ENDED = ("terminal deployment", "has terminal status", "deployment not found")
_ERRORS = re.compile(r"(\d+) errors? occurred:$")  # hashicorp/go-multierror


class NomadError(UserError):
    """What Nomad refuses, or why it cannot be asked: one line, with the address and the way out."""


class ForbiddenError(NomadError):
    """The token is missing, unknown, or may not do this."""


class InvalidJobError(NomadError):
    """What Nomad has against the job: a line that says so, and one for each error, indented."""


class ConflictError(NomadError):
    """Someone else has written first; nothing was changed."""


class NotHealthyError(NomadError):
    """Canaries that are to be promoted are not healthy, or not there."""


class DeploymentEndedError(NomadError):
    """The deployment has ended, or is forgotten: there is nothing left to promote or to fail."""


class UnsureError(NomadError):
    """The connection ended before the answer came: whether it was done has to be read back."""


def passes(failure: Failure) -> bool:
    """Whether the same question may be answered a little later."""
    if isinstance(failure, requests.Response):
        if failure.status_code == 500:
            return any(said in failure.text for said in _NO_LEADER)
        return failure.status_code in (429, 502, 503, 504)
    return any(_is_timeout(cause) or _is_drop(cause) for cause in _causes(failure))


def refused_write(failure: Failure) -> tuple[type[NomadError], str] | None:
    """Which error, and in which words, where the cluster is not as the one who writes has taken it to be."""
    if not isinstance(failure, requests.Response):
        return None
    text = failure.text.strip()
    if failure.status_code == 409:  # command/agent/variable_endpoint.go
        return ConflictError, "someone else has written it in the meantime"
    if any(enforced in text for enforced in _ENFORCED):
        return ConflictError, f"someone else has changed the job in the meantime: {text}"
    if unhealthy := _UNHEALTHY.findall(text):
        return NotHealthyError, f"not promoted: {', '.join(unhealthy)}"
    if any(ended in text for ended in _ENDED):
        return DeploymentEndedError, f"the deployment has ended: {text}"
    return None


def retry_after(failure: Failure) -> float:
    """The seconds for which the server asks, 0 if it does not."""
    said = failure.headers.get("Retry-After", "") if isinstance(failure, requests.Response) else ""
    return float(said) if said.isascii() and said.isdigit() else 0.0  # else a date: proxies send seconds


def is_unknown_token(failure: Failure) -> bool:
    """Whether Nomad says so itself; to most calls it says "Permission denied" instead."""
    if not isinstance(failure, requests.Response):
        return False
    of_task_api = failure.status_code == 403 and failure.text == "Forbidden"  # command/agent/http.go
    return of_task_api or any(said in failure.text for said in _NO_TOKEN)


def is_absent(failure: Failure) -> bool:
    """Whether what was asked for is not there, or its namespace is not."""
    return (
        isinstance(failure, requests.Response)
        and failure.status_code == 404
        and failure.text.strip() in _ABSENT
    )


def is_unreachable(failure: Failure) -> bool:
    """Whether no connection was made, so that nothing was asked."""
    return isinstance(failure, Exception) and any(
        isinstance(cause, requests.ConnectTimeout | NewConnectionError) for cause in _causes(failure)
    )


def is_not_begun(failure: Failure) -> bool:
    """Whether a write that failed so has surely changed nothing, and may go well a little later."""
    if not isinstance(failure, requests.Response):
        return is_unreachable(failure)
    return failure.status_code == 429 or any(said in failure.text for said in (*_NO_LEADER, *_NOT_REACHED))


def may_be_done(failure: Failure) -> bool:
    """Whether a write that failed so may have been done all the same.

    A server's 500 is its refusal, unless it lost its leader, or the way to it, with the write under way.
    """
    if isinstance(failure, requests.Response):
        broken = any(said in failure.text for said in _CUT_OFF)
        return failure.status_code in (502, 503, 504) or (failure.status_code == 500 and broken)
    return not is_unreachable(failure) and any(
        _is_timeout(cause) or _is_drop(cause) for cause in _causes(failure)
    )


def job_errors(failure: Failure, version: Version | None = None) -> str:
    """What is wrong with a job, where that is the answer to its parse or plan; else nothing.

    A line that ends what began with "the job", and an indented one for each error. `version` is the oldest
    server's, where it is known.
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
    """Indent each error below the one that counts it: Nomad indents all of them alike."""
    left: list[int] = []  # at each depth, how many are still to come
    for line in filter(None, (line.strip() for line in text.splitlines())):
        while left and not left[-1]:
            left.pop()
        if left and line.startswith("* "):
            left[-1] -= 1
        counted = _ERRORS.search(line)
        if said := _ERRORS.sub("", line).removeprefix("* ").strip():
            yield "  " * (len(left) - 1) + said
        if counted:
            left.append(int(counted[1]))


def _needed(text: str, version: Version | None) -> list[str]:
    said = f", and this is {_dotted(version)}" if version else ""
    return [
        f"{name} needs Nomad {_dotted(_SINCE[name])} or newer{said}"
        for name in dict.fromkeys(_NOT_EXPECTED.findall(text))
        if name in _SINCE and (not version or version < _SINCE[name])
    ]


def names_unexpected(failure: Failure) -> bool:
    """Whether the parser does not know a name that a newer one knows."""
    return isinstance(failure, requests.Response) and any(
        name in _SINCE for name in _NOT_EXPECTED.findall(failure.text)
    )


def reason(failure: Failure, timeout: tuple[float, float]) -> str:
    """Why there is no answer, in one line; the timeouts are seconds until connected, and for an answer."""
    if isinstance(failure, requests.Response):
        return without_secrets(_of_response(failure))
    return without_secrets(_of_exception(failure, timeout))


def _of_response(response: requests.Response) -> str:
    status = f"{response.status_code} {response.reason}"
    text = " ".join(response.text.split())[:300]
    if response.text.lstrip().startswith("<"):
        text = response.reason
    said = f"{response.status_code}: {text or response.reason}"
    if response.status_code == 401:
        if "WWW-Authenticate" in response.headers:
            return f"{status}: a proxy wants a name and a password; set NOMAD_HTTP_AUTH to NAME:PASSWORD"
        return f"{status}: a token is wanted here; set NOMAD_TOKEN"  # the Task API's: command/agent/http.go
    if response.status_code == 429:
        return f"too many requests ({said}); try again later"
    if response.status_code in (502, 503, 504):
        return f"{said}; does Nomad run behind this proxy or load balancer?"
    if any(no_leader in text for no_leader in _NO_LEADER):
        return f"{said}; do enough of its servers run, and reach each other?"
    if "UUID must be 36 characters" in text:  # Job.Plan looks it up as an ACL token: nomad/job_endpoint.go
        return f"{said}: NOMAD_TOKEN is a workload identity, or no token; Nomad plans for ACL tokens only"
    if "No path to region" in text:
        asked = parse_qs(urlsplit(_url(response)).query).get("region", [""])[0]
        return f"no region is named {asked!r}, as NOMAD_REGION or the job says: {said}"
    if missing := re.search(r'nonexistent namespace "([^"]*)"', text):
        name = missing[1]
        way_out = f"`nomad namespace apply {name}` makes it"
        return f"no namespace is named {name!r}, as NOMAD_NAMESPACE or the job says; {way_out}"
    return said


def _of_exception(error: Exception, timeout: tuple[float, float]) -> str:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = cause.verify_message
            return f"its certificate is not trusted ({said}); name its CA in NOMAD_CACERT or NOMAD_CAPATH"
    if any(isinstance(cause, requests.ConnectTimeout) for cause in causes):
        return f"no connection within {timeout[0]:g} s; is NOMAD_ADDR right?"
    if any(map(_is_timeout, causes)):
        return f"no answer within {timeout[1]:g} s"
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLError) and not _is_drop(cause):
            said = cause.reason or str(cause)
            if "CERTIFICATE_REQUIRED" in said:
                return "it wants a client certificate; set NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY"
            if "_ALERT_" in said and ("CERTIFICATE" in said or "UNKNOWN_CA" in said):
                return f"it does not accept the certificate in NOMAD_CLIENT_CERT ({said})"
            return f"TLS failed: {said}; are NOMAD_ADDR and NOMAD_CLIENT_CERT right?"
    for cause in reversed(causes):
        if _is_drop(cause):
            hint = "is NOMAD_ADDR right?"
            if isinstance(error, requests.RequestException) and _url(error).startswith("https:"):
                # Who is still sending when the server refuses its certificate may not get to hear that.
                hint = "does it want a client certificate, NOMAD_CLIENT_CERT?"
            return f"the connection was cut before the answer was complete; {hint}"
        if isinstance(cause, BadStatusLine):
            return "answers, but not in HTTP; is NOMAD_ADDR right?"
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            said = cause.strerror or str(cause)
            return f"cannot be reached ({said}); is NOMAD_ADDR right, and Nomad running?"
    return f"cannot be asked: {error}"


def _url(asked: requests.Response | requests.RequestException) -> str:
    return str(asked.request.url) if asked.request else ""


def _is_timeout(cause: BaseException) -> bool:
    return isinstance(cause, requests.Timeout | ReadTimeoutError)


def _is_drop(cause: BaseException) -> bool:
    return isinstance(
        cause,
        ConnectionResetError | BrokenPipeError | ConnectionAbortedError | IncompleteRead | ssl.SSLEOFError,
    )


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _causes(error: object) -> Iterator[BaseException]:
    """An exception and what it wraps, outermost first; urllib3 keeps some in `reason` and in `args`."""
    seen: list[object] = [error]
    for one in seen:
        if isinstance(one, BaseException):
            yield one
            for inner in (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args):
                if inner not in seen and isinstance(inner, BaseException):
                    seen.append(inner)
