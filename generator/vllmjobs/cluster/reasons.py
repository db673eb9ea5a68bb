"""Reasons why a request to Nomad or Consul failed: what they mean, one line for a person, and the retry."""

import math
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from http.client import BadStatusLine, IncompleteRead
from typing import TypeVar

import requests
from urllib3.exceptions import NewConnectionError, ReadTimeoutError

from vllmjobs.cluster.answers import EndlessError
from vllmjobs.cluster.session import Names
from vllmjobs.environment.secrets import without_secrets

T = TypeVar("T")
Failure = requests.Response | Exception  # an answer that is a refusal, or the exception in place of an answer
# nomad/structs/errors.go: an election, or a leader that has yet to apply what was decided before it.
# And one that has yet to read its keys, without which there are no variables (nomad/encrypter.go).
NO_LEADER = (
    "No cluster leader",
    "Not ready to serve consistent reads",
    "keyring has not been initialized yet",
)
_TIMEOUTS = (requests.Timeout, ReadTimeoutError)
_DROPS = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError, IncompleteRead, ssl.SSLEOFError)
_LATE_S = 5.0  # for one request after the deadline, such as to fail a deployment
_LONGEST = 300  # characters of an answer that are shown


class Deadline:
    """The moment by which all requests of a command are to be answered; it may be moved."""

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Set it in so many seconds from now; without them, never."""
        self._clock = clock
        self.until = math.inf if seconds is None else clock() + seconds

    def left(self) -> float:
        """Return the seconds until then; 0 afterwards."""
        return max(0.0, self.until - self._clock())

    def within(self, timeout: tuple[float, float]) -> tuple[float, float]:
        """Return the seconds to connect and for an answer; what is still asked afterwards gets a few."""
        left = max(self.left(), _LATE_S)
        return min(timeout[0], left), min(timeout[1], left)


class FailedError(Exception):
    """A request that failed, whatever the library in between has made of it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def retry(
    call: Callable[[], T],
    pauses: Iterable[float],
    delay: Callable[[Failure, float], float | None],
    sleep: Callable[[float], None],
    deadline: Deadline,
) -> T:
    """Return what a call returns; each time that it raises `FailedError`, pause and call again.

    There is one attempt more than `pauses`, which are in seconds. `delay` turns a failure and the pause that
    would follow it into the seconds to sleep, or None where another attempt is of no use: the failure is then
    raised, as is that of the last attempt, and that of one after which the deadline would pass.
    """
    for pause in pauses:
        try:
            return call()
        except FailedError as error:
            seconds = delay(error.failure, pause)
            if seconds is None or seconds >= deadline.left():
                raise
        sleep(seconds)
    return call()


def is_unreachable(failure: Failure) -> bool:
    """Tell whether no connection was made, so that nothing was asked."""
    return any(isinstance(cause, requests.ConnectTimeout | NewConnectionError) for cause in _causes(failure))


def is_lost(failure: Failure) -> bool:
    """Tell whether no answer came in time, or the connection was cut before it was complete."""
    return not is_endless(failure) and any(
        isinstance(cause, (*_TIMEOUTS, *_DROPS)) for cause in _causes(failure)
    )


def is_endless(failure: Failure) -> bool:
    """Tell whether an answer was given up that had begun, and did not end."""
    return any(isinstance(cause, EndlessError) for cause in _causes(failure))


def reason(failure: Failure, timeout: tuple[float, float], names: Names) -> str:
    """Return in one line why there is no answer; `timeout` is the seconds to connect, and for an answer."""
    if isinstance(failure, requests.Response):
        return without_secrets(_reason_of_response(failure, names))
    return without_secrets(_reason_of_exception(failure, timeout, names))


def status_line(response: requests.Response) -> str:
    """Return the status and the text of a refusal in one line: `500: No cluster leader`."""
    text = " ".join(response.text.split())[:_LONGEST]
    if response.text.lstrip().startswith("<"):
        text = response.reason
    return f"{response.status_code}: {text or response.reason}"


def _reason_of_response(response: requests.Response, names: Names) -> str:
    line = status_line(response)
    if response.status_code == 401:
        status = f"{response.status_code} {response.reason}"
        if "WWW-Authenticate" in response.headers:
            return f"{status}: a proxy wants a name and a password; set {names.http_auth} to NAME:PASSWORD"
        # The Task API's: command/agent/http.go of Nomad.
        return f"{status}: a token is wanted here; set {names.token}"
    if response.status_code == 429:
        return f"too many requests ({line}); try again later"
    if response.status_code in (502, 503, 504):
        return f"{line}; does {names.server} run behind this proxy or load balancer?"
    if any(text in line for text in NO_LEADER):
        return f"{line}; do enough of its servers run, and reach each other?"
    return line


def _reason_of_exception(error: Exception, timeout: tuple[float, float], names: Names) -> str:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, EndlessError):
            return f"{cause}; is {names.addr} right?"
        if isinstance(cause, ssl.SSLCertVerificationError):
            trust = f"name its CA in {names.cacert} or {names.capath}"
            return f"its certificate is not trusted ({cause.verify_message}); {trust}"
    if any(isinstance(cause, requests.ConnectTimeout) for cause in causes):
        return f"no connection within {timeout[0]:g} s; is {names.addr} right?"
    if any(isinstance(cause, _TIMEOUTS) for cause in causes):
        return f"no answer within {timeout[1]:g} s"
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, _DROPS):
            return _reason_of_tls(cause, names)
    for cause in reversed(causes):
        if isinstance(cause, _DROPS):
            hint = f"is {names.addr} right?"
            if isinstance(error, requests.RequestException) and url_of(error).startswith("https:"):
                # Who is still sending when the server refuses its certificate may not get to hear that.
                hint = f"does it want a client certificate, {names.client_cert}?"
            return f"the connection was cut before the answer was complete; {hint}"
        if isinstance(cause, BadStatusLine):
            return f"answers, but not in HTTP; is {names.addr} right?"
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            text = cause.strerror or str(cause)
            return f"cannot be reached ({text}); is {names.addr} right, and {names.server} running?"
    return f"cannot be asked ({type(error).__name__})"  # its text may hold the URL


def _reason_of_tls(error: ssl.SSLError, names: Names) -> str:
    text = error.reason or str(error)
    if "CERTIFICATE_REQUIRED" in text:
        return f"it wants a client certificate; set {names.client_cert} and {names.client_key}"
    if "_ALERT_" in text and ("CERTIFICATE" in text or "UNKNOWN_CA" in text):
        return f"it does not accept the certificate in {names.client_cert} ({text})"
    return f"TLS failed: {text}; are {names.addr} and {names.client_cert} right?"


def url_of(sent: requests.Response | requests.RequestException) -> str:
    """Return the URL of the request that was answered, or failed; empty where it is not known."""
    return str(sent.request.url) if sent.request else ""


def _causes(error: object) -> Iterator[BaseException]:
    """Yield an exception and what it wraps, outermost first; urllib3 keeps some in `reason` and in `args`."""
    known: list[object] = [error]
    for one in known:
        if isinstance(one, BaseException):
            yield one
            for inner in (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args):
                if inner not in known and isinstance(inner, BaseException):
                    known.append(inner)
