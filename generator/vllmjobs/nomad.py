"""A Nomad cluster, through python-nomad; reached as the `nomad` command reaches it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nomad
import requests
from nomad.api.exceptions import BaseNomadException, URLNotAuthorizedNomadException
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3 import disable_warnings
from urllib3.exceptions import InsecureRequestWarning

from vllmjobs import __version__, gpus
from vllmjobs.environment.problems import UserError

Json = dict[str, Any]
DEFAULT_ADDRESS = "http://127.0.0.1:4646"
TIMEOUT = (5.0, 30.0)  # seconds until connected, and between two pieces of an answer
_TRUE = ("1", "t", "T", "TRUE", "true", "True")  # Go's strconv.ParseBool
# The scheduler frees devices by this status alone: nomad/structs/devices.go AddAllocs.
_NOT_ENDED = " and ".join(f'ClientStatus != "{status}"' for status in gpus.ENDED)


class NomadError(UserError):
    """What Nomad refuses, or why it cannot be asked: one line, with the address and the way out."""


class ForbiddenError(NomadError):
    """The token is missing, unknown, or may not do this."""


class Cluster:
    """The cluster behind NOMAD_ADDR; every method raises `NomadError`."""

    def __init__(
        self, environ: Mapping[str, str] = os.environ, timeout: tuple[float, float] = TIMEOUT
    ) -> None:
        """Read NOMAD_ADDR, _REGION, _NAMESPACE, _TOKEN, _HTTP_AUTH, _CACERT, _CAPATH, _CLIENT_CERT,
        _CLIENT_KEY, _TLS_SERVER_NAME and _SKIP_VERIFY, as nomad/api/api.go DefaultConfig does.
        """  # fmt: skip
        given = environ.get("NOMAD_ADDR") or DEFAULT_ADDRESS
        scheme, host = _scheme_and_host(given)
        self.address = given.rstrip("/")
        self._timeout = timeout
        skip_verify = environ.get("NOMAD_SKIP_VERIFY") in _TRUE
        session = requests.Session()
        # Not only proxies: it would put REQUESTS_CA_BUNDLE over what NOMAD_CACERT says, and add a .netrc.
        session.trust_env = False
        if not _is_loopback(host):  # as Go, and not as requests, has it
            session.proxies = get_environ_proxies(self.address)
        session.headers["User-Agent"] = f"vllmjobs/{__version__}"
        if authorization := environ.get("NOMAD_HTTP_AUTH"):
            user, _, password = authorization.partition(":")
            session.auth = (user, password)
        if scheme == "https":
            context = _tls(environ, skip_verify)
            session.mount("https://", _Tls(context, environ.get("NOMAD_TLS_SERVER_NAME") or None))
            if skip_verify:  # asked for; a warning at every request says nothing new
                disable_warnings(InsecureRequestWarning)
        self._nomad = nomad.Nomad(
            address=self.address,
            namespace=environ.get("NOMAD_NAMESPACE"),
            region=environ.get("NOMAD_REGION"),
            token=environ.get("NOMAD_TOKEN"),
            timeout=timeout,
            verify=not skip_verify,
            session=session,
        )

    def devices(self) -> list[gpus.Card]:
        """Every GPU of every node, and the allocations that hold it, in whatever namespace.

        Needs the ACL capability node:read. Who holds them needs read-job: a token that has it nowhere gets
        `holders` None; of one that has it in some namespaces, Nomad hides those of the others without a
        word, so that their GPUs look free (nomad/alloc_endpoint.go List).
        """
        nodes = self._ask("node:read", lambda: self._nomad.nodes.get_nodes(resources=True))
        try:
            allocations = self._ask(
                "namespace:read-job",
                lambda: self._nomad.allocations.get_allocations(
                    namespace="*", resources=True, task_states=False, filter_=_NOT_ENDED
                ),
            )
        except ForbiddenError:
            return gpus.in_cluster(nodes, None)
        return gpus.in_cluster(nodes, allocations)

    def _ask(self, capability: str, call: Callable[[], Any]) -> list[Json]:
        """A list from the API; `capability` is what the token needs for it."""
        try:
            answer = call()
        except URLNotAuthorizedNomadException as error:
            raise ForbiddenError(f"{self.address}: {self._refusal(capability)}") from error
        except BaseNomadException as error:
            raise NomadError(f"{self.address}: {self._reason(error.nomad_resp)}") from error
        except requests.RequestException as error:  # not JSON: python-nomad reads that outside of its own try
            raise NomadError(self._is_no_nomad()) from error
        if not isinstance(answer, list):
            raise NomadError(self._is_no_nomad())
        return answer

    def _is_no_nomad(self) -> str:
        return f"{self.address}: answers, but not as Nomad's HTTP API does; is NOMAD_ADDR right?"

    def _refusal(self, capability: str) -> str:
        """Nomad says "Permission denied" to a token that it does not know, too."""
        if not self._nomad.token:
            return f"Permission denied; set NOMAD_TOKEN to a token with the ACL capability {capability}"
        try:
            self._nomad.acl.get_self_token()
        except (BaseNomadException, requests.RequestException):
            return "Permission denied; NOMAD_TOKEN is not, or no longer, a token of this cluster"
        return f"Permission denied; NOMAD_TOKEN lacks the ACL capability {capability}"

    def _reason(self, answer: object) -> str:
        """Word what python-nomad's exceptions carry: a response, or an exception of requests."""
        if isinstance(answer, requests.Response):
            return f"{answer.status_code}: {' '.join(answer.text.split())[:300] or answer.reason}"
        causes = list(_causes(answer))
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                said = cause.verify_message
                return f"its certificate is not trusted ({said}); name its CA in NOMAD_CACERT or NOMAD_CAPATH"
        if any(isinstance(cause, requests.ConnectTimeout) for cause in causes):
            return f"no connection within {self._timeout[0]:g} s; is NOMAD_ADDR right?"
        if any(isinstance(cause, requests.Timeout) for cause in causes):
            return f"no answer within {self._timeout[1]:g} s"
        for cause in reversed(causes):
            if isinstance(cause, ssl.SSLError):
                return f"TLS failed: {cause.reason or cause}; are NOMAD_ADDR and NOMAD_CLIENT_CERT right?"
            if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
                said = cause.strerror or str(cause)
                return f"cannot be reached ({said}); is NOMAD_ADDR right, and Nomad running?"
        return f"cannot be asked: {answer}"


class _Tls(HTTPAdapter):
    """One TLS context decides; requests by itself would trust certifi's roots beside NOMAD_CACERT."""

    def __init__(self, context: ssl.SSLContext, server_name: str | None) -> None:
        self._pool: dict[str, Any] = {"ssl_context": context, "server_hostname": server_name}
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """See `HTTPAdapter.init_poolmanager`."""
        super().init_poolmanager(*args, **{**kwargs, **self._pool})

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """See `HTTPAdapter.proxy_manager_for`."""
        return super().proxy_manager_for(*args, **{**kwargs, **self._pool})

    def cert_verify(self, *_args: Any, **_kwargs: Any) -> None:
        """Add no trust; see `HTTPAdapter.cert_verify`."""


def _tls(environ: Mapping[str, str], skip_verify: bool) -> ssl.SSLContext:
    """What `nomad` trusts: NOMAD_CACERT, else every file of NOMAD_CAPATH, else the system's roots."""
    variable = next((name for name in ("NOMAD_CACERT", "NOMAD_CAPATH") if environ.get(name)), None)
    context = ssl.create_default_context() if variable is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if variable:
            named = Path(environ[variable])
            files = (
                [file for file in sorted(named.rglob("*")) if file.is_file()] if named.is_dir() else [named]
            )
            for file in files:
                context.load_verify_locations(cafile=file)
        if certificate := environ.get("NOMAD_CLIENT_CERT"):
            variable = "NOMAD_CLIENT_CERT"
            context.load_cert_chain(certificate, environ.get("NOMAD_CLIENT_KEY") or None)
    except OSError as error:  # ssl.SSLError is one
        raise NomadError(f"{variable} is {environ[variable or '']}: {error.strerror or error}") from error
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _scheme_and_host(address: str) -> tuple[str, str]:
    try:
        url = urlsplit(address)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:  # a port may be no number
            return url.scheme, url.hostname
    except ValueError:
        pass
    raise NomadError(
        f"NOMAD_ADDR is {address!r}, but must be like http://127.0.0.1:4646 or https://HOST:PORT"
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _causes(error: object) -> Iterator[BaseException]:
    """An exception and what it wraps, outermost first; urllib3 keeps some in `reason` and in `args`."""
    seen: list[object] = [error]
    for one in seen:
        if isinstance(one, BaseException):
            yield one
            for inner in (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args):
                if inner not in seen and isinstance(inner, BaseException):
                    seen.append(inner)
