"""A client of Nomad's API on top of python-nomad, which reaches it as the `nomad` command does."""

import itertools
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_args
from urllib.parse import quote

import nomad
import requests
from nomad.api.exceptions import BaseNomadException

from vllmjobs.cluster import failures
from vllmjobs.cluster.answers import decoded
from vllmjobs.cluster.failures import ForbiddenError, InvalidJobError, NomadError, NomadVersion, UnsureError
from vllmjobs.cluster.reasons import Deadline, FailedError, Failure, is_unreachable, reason, retry
from vllmjobs.cluster.session import TRUE, Names, connect
from vllmjobs.cluster.shapes import Members, WriteAnswer
from vllmjobs.environment.secrets import without_secrets
from vllmjobs.text.json import Json

TIMEOUT = (5.0, 30.0)  # seconds until connected, and for an answer
PAUSES = (1.0, 4.0, 10.0)  # seconds at most between two attempts; an election takes a few
PATIENT_PAUSES = (0.5, 1.0, 2.0, 4.0)  # the same with `patience`; the last is repeated
LONGEST_PAUSE = 10.0  # seconds, however long a server asks for in Retry-After
NAMES = Names(
    server="Nomad",
    error=NomadError,
    default_address="http://127.0.0.1:4646",
    addr="NOMAD_ADDR",
    http_auth="NOMAD_HTTP_AUTH",
    cacert="NOMAD_CACERT",
    capath="NOMAD_CAPATH",
    client_cert="NOMAD_CLIENT_CERT",
    client_key="NOMAD_CLIENT_KEY",
    tls_server_name="NOMAD_TLS_SERVER_NAME",
    unverified=("NOMAD_SKIP_VERIFY", TRUE),
    token="NOMAD_TOKEN",
)
DEFAULT_NAMESPACE, DEFAULT_REGION = "default", "global"  # of a job: nomad/api/jobs.go Canonicalize
_UNKNOWN = "NOMAD_TOKEN is not, or no longer, a token of this cluster"


class Where(NamedTuple):
    """The place of a job: its ID, its namespace and its region."""

    id: str
    namespace: str
    region: str  # `global` and the empty one are the region of the agent that is asked; see `Cluster.plan`


class NomadApi:
    """A client of the Nomad behind NOMAD_ADDR; every method raises `NomadError`.

    A read is repeated after a pause where that may help: no answer in time, a connection that was cut, too
    many requests, a proxy without Nomad, a cluster without a leader. A write is repeated only where Nomad has
    surely not begun with it.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        timeout: tuple[float, float] = TIMEOUT,
        pauses: tuple[float, ...] = PAUSES,
        sleep: Callable[[float], None] = time.sleep,
        *,
        patience: float = 0.0,
        deadline: Deadline | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read NOMAD_REGION, NOMAD_NAMESPACE, and what `connect` reads.

        With `patience`, requests are repeated for so many seconds, in place of `pauses`, and after more
        failures: while a server restarts, its port refuses connections, and other agents answer 5xx in many
        words. None is repeated after the `deadline`.
        """
        connection = connect(environ, NAMES)
        self.address, self.timeout, self.deadline = connection.address, timeout, deadline or Deadline()
        self._within = timeout  # of the last request
        self.namespace, self.region = environ.get("NOMAD_NAMESPACE"), environ.get("NOMAD_REGION")
        self._pauses, self._sleep, self._patience, self._clock = pauses, sleep, patience, clock
        self.api = nomad.Nomad(
            address=connection.url,
            namespace=self.namespace,
            region=self.region,
            token=connection.token,
            timeout=timeout,
            verify=connection.verify,
            session=connection.session,
        )

    def scope(self, namespace: str | None = None, region: str | None = None) -> dict[str, Any]:
        """Return the parameters of a request that name its namespace and region."""
        region = region or self.region
        return {
            "namespace": namespace or self.namespace or DEFAULT_NAMESPACE,
            # Nomad plans a job in "global" in the region of whichever agent it asks (regionForJob in
            # command/agent/job_endpoint.go); what is read has to come from there, too.
            "region": region if region and region != DEFAULT_REGION else "",
        }

    def read(self, capability: str, shape: Any, endpoint: Any, *path: str, **request: Any) -> Any:
        """Return the JSON that a request without effect is answered with.

        `capability` is what the token needs for it, `shape` is the type that the answer has, one of `shapes`;
        None for what is not there, where the shape may be None. `endpoint` is one of `api`'s.
        """
        return self.read_with_index(capability, shape, endpoint, *path, **request)[0]

    def read_with_index(
        self, capability: str, shape: Any, endpoint: Any, *path: str, **request: Any
    ) -> tuple[Any, int]:
        """Return what `read` returns, and the index with which to wait for its next change."""
        try:
            return self._send(self._may_pass, shape, endpoint, path, {"method": "get", **request})
        except FailedError as error:
            if type(None) in get_args(shape) and failures.is_absent(error.failure):
                return None, 0
            raise self.refusal(capability, error.failure) from error

    def write(self, capability: str, endpoint: Any, *path: str, **request: Any) -> Json:
        """Return what a request that changes something is answered with; see `read`."""
        request = {"method": "post", **request}
        try:
            answer: Json = self._send(self._has_not_begun, WriteAnswer, endpoint, path, request)[0]
        except FailedError as error:
            raise self._refused_write(capability, error.failure) from error
        return answer

    def version(self) -> NomadVersion | None:
        """Return the version of the region's oldest server; None where it is not told. Needs node:read."""
        try:
            answer = self.read("node:read", Members, self.api.agent, "members")
        except ForbiddenError:
            return None
        builds = [
            re.match(r"(\d+)\.(\d+)\.(\d+)", member["Tags"].get("build", ""))
            for member in answer.get("Members") or ()
            if member["Tags"].get("region") == (self.region or answer.get("ServerRegion"))
        ]
        return min(((int(b[1]), int(b[2]), int(b[3])) for b in builds if b), default=None)

    def refusal(self, capability: str, failure: Failure) -> NomadError:
        """Return the error that a failed request is told as.

        Nomad answers "Permission denied" to a token that it does not know, too.
        """
        if failures.is_unknown_token(failure):
            return ForbiddenError(f"{self.address}: Permission denied; {_UNKNOWN}")
        if isinstance(failure, requests.Response):
            if failure.status_code == 403 and failure.text.strip() == "Permission denied":
                return ForbiddenError(f"{self.address}: Permission denied; {self._lacks(capability)}")
            if failure.status_code == 404:
                return self._is_no_nomad()
            if errors := failures.job_errors(failure, self._version_for(failure)):
                return InvalidJobError(f"{self.address}: the job {errors}")
        return NomadError(f"{self.address}: {self._reason(failure)}")

    def _send(
        self,
        may_repeat: Callable[[Failure], bool],
        shape: Any,
        endpoint: Any,
        path: tuple[str, ...],
        request: Json,
    ) -> tuple[Any, int]:
        """Return the JSON of an answer and its index; raises `FailedError` after the last attempt."""

        def attempt() -> tuple[Any, int]:
            try:
                self._within = self.deadline.within(self.timeout)
                answer = endpoint.request(*map(segment, path), **{"timeout": self._within, **request})
            except BaseNomadException as error:
                raise FailedError(error.nomad_resp) from error
            index = answer.headers.get("X-Nomad-Index") or "0"
            try:
                return decoded(answer, shape), int(index[:20])  # of 64 bits
            except ValueError as error:  # ShapeError is one
                raise self._is_no_nomad("/".join((endpoint.ENDPOINT, *path)), error) from error

        def delay(failure: Failure, pause: float) -> float | None:
            if not may_repeat(failure):
                return None
            pause *= random.uniform(0.5, 1)  # so that many that failed at once do not come back at once
            return max(pause, min(failures.retry_after(failure), LONGEST_PAUSE))

        return retry(attempt, self._all_pauses(), delay, self._sleep, self.deadline)

    def _all_pauses(self) -> Iterable[float]:
        if not self._patience:
            return self._pauses
        until = self._clock() + self._patience
        pauses = itertools.chain(PATIENT_PAUSES, itertools.repeat(PATIENT_PAUSES[-1]))
        return itertools.takewhile(lambda _: self._clock() < until, pauses)

    def _may_pass(self, failure: Failure) -> bool:
        is_down = isinstance(failure, requests.Response) and failure.status_code >= 500
        return failures.passes(failure) or (self._patience > 0 and (is_down or is_unreachable(failure)))

    def _has_not_begun(self, failure: Failure) -> bool:
        if is_unreachable(failure):
            return bool(self._patience)
        return failures.is_not_begun(failure)

    def _refused_write(self, capability: str, failure: Failure) -> NomadError:
        if failures.may_be_done(failure):
            return UnsureError(f"{self.address}: {self._reason(failure)} (Nomad may have done it, or not)")
        if refused := failures.refused_write(failure):
            kind, message = refused
            return kind(f"{self.address}: {message}")
        return self.refusal(capability, failure)

    def _reason(self, failure: Failure) -> str:
        return without_secrets(failures.wrong_place(failure)) or reason(failure, self._within, NAMES)

    def _is_no_nomad(self, path: str = "", error: ValueError | None = None) -> NomadError:
        why = f" ({path}: {error})" if error else ""
        return NomadError(
            f"{self.address}: answers, but not as Nomad's HTTP API does{why}; is NOMAD_ADDR right?"
        )

    def _lacks(self, capability: str) -> str:
        token = self.api.token
        if not token:
            return f"set NOMAD_TOKEN to a token with the ACL capability {capability}"
        if token.count(".") == 2:  # a JWT, of which Nomad does not tell what it is
            return f"NOMAD_TOKEN, a workload identity, lacks the ACL capability {capability}, or has expired"
        try:
            self.api.acl.get_self_token()
        except BaseNomadException as error:
            if isinstance(error.nomad_resp, requests.Response):
                return _UNKNOWN
        except requests.RequestException:
            pass
        return f"NOMAD_TOKEN lacks the ACL capability {capability}"

    def _version_for(self, failure: requests.Response) -> NomadVersion | None:
        """Return the version, which is asked for only where it says more about a failure."""
        try:
            return self.version() if failures.names_unexpected(failure) else None
        except NomadError:
            return None


def in_namespace(scope: Mapping[str, Any]) -> str:
    """Return the words that name the namespace of a request, for a refusal."""
    return f'in namespace "{scope["namespace"]}"'


def segment(text: str) -> str:
    """Return one part of a path: an ID may have slashes, and python-nomad escapes nothing."""
    return quote(text, safe="")
