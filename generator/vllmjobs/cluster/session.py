"""The way to a cluster that NOMAD_* variables describe, as a session of requests; as `nomad` reads them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3 import HTTPConnectionPool, disable_warnings
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, InsecureRequestWarning, NewConnectionError

from vllmjobs import __version__
from vllmjobs.cluster.failures import NomadError
from vllmjobs.environment.secrets import without_secrets

DEFAULT_ADDRESS = "http://127.0.0.1:4646"
_TRUE = ("1", "t", "T", "TRUE", "true", "True")  # Go's strconv.ParseBool


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach the cluster."""

    address: str
    """As a person wrote it, without a password that may stand in it."""
    url: str
    """What requests are sent to."""
    session: requests.Session
    verify: bool


def way(environ: Mapping[str, str]) -> Way:
    """Read NOMAD_ADDR, _HTTP_AUTH, _CACERT, _CAPATH, _CLIENT_CERT, _CLIENT_KEY, _TLS_SERVER_NAME and
    _SKIP_VERIFY, as nomad/api/api.go DefaultConfig does; the address of a unix socket has no TLS there
    either. Raises `NomadError` for an address that is none, and a certificate that cannot be used.
    """  # fmt: skip
    given = environ.get("NOMAD_ADDR") or DEFAULT_ADDRESS
    scheme, place = _scheme_and_place(given)
    given = given.rstrip("/")
    skip_verify = environ.get("NOMAD_SKIP_VERIFY") in _TRUE
    session = requests.Session()
    # Not only proxies: it would put REQUESTS_CA_BUNDLE over what NOMAD_CACERT says, and add a .netrc.
    session.trust_env = False
    session.headers["User-Agent"] = f"vllmjobs/{__version__}"
    # A name and password in the address win: toHTTP in nomad/api/api.go.
    if (authorization := environ.get("NOMAD_HTTP_AUTH")) and not urlsplit(given).username:
        user, _, password = authorization.partition(":")
        session.auth = (user, password)
    if scheme == "unix":
        session.mount("http://", _UnixSocket(place))
        return Way(given, "http://127.0.0.1", session, True)
    if not _is_loopback(place):  # as Go, and not as requests, has it
        session.proxies = get_environ_proxies(given)
    if scheme == "https":
        session.mount("https://", _Tls(_tls(environ, skip_verify), environ.get("NOMAD_TLS_SERVER_NAME")))
        if skip_verify:  # asked for; a warning at every request says nothing new
            disable_warnings(InsecureRequestWarning)
    return Way(without_secrets(given), given, session, not skip_verify)


class _UnixSocket(HTTPAdapter):
    """All requests go to one unix socket, whatever the host of their URL."""

    def __init__(self, path: str) -> None:
        self._pool = _UnixPool("127.0.0.1", maxsize=1)
        self._pool.conn_kw["path"] = path
        super().__init__()

    def get_connection_with_tls_context(self, *_args: Any, **_kwargs: Any) -> HTTPConnectionPool:
        """See `HTTPAdapter.get_connection_with_tls_context`."""
        return self._pool

    def close(self) -> None:
        """See `HTTPAdapter.close`."""
        self._pool.close()
        super().close()


class _UnixConnection(HTTPConnection):
    def __init__(self, *args: Any, path: str, **kwargs: Any) -> None:
        self._path = path
        super().__init__(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self.timeout)
        try:
            connection.connect(self._path)
        except TimeoutError as error:
            connection.close()
            raise ConnectTimeoutError(self, str(error)) from error
        except OSError as error:
            connection.close()
            raise NewConnectionError(self, str(error)) from error
        return connection


class _UnixPool(HTTPConnectionPool):
    ConnectionCls = _UnixConnection


class _Tls(HTTPAdapter):
    """One TLS context decides; requests by itself would trust certifi's roots beside NOMAD_CACERT."""

    def __init__(self, context: ssl.SSLContext, server_name: str | None) -> None:
        self._pool: dict[str, Any] = {"ssl_context": context, "server_hostname": server_name or None}
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
    except OSError as error:  # ssl.SSLError is one
        raise NomadError(f"{variable} is {environ[variable or '']}: {error.strerror or error}") from error
    _present(context, environ.get("NOMAD_CLIENT_CERT"), environ.get("NOMAD_CLIENT_KEY"))
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _present(context: ssl.SSLContext, certificate: str | None, key: str | None) -> None:
    """Have the client's certificate at hand; without a file of its own, the key stands in the same one."""
    if not certificate:
        if key:
            raise NomadError(f"NOMAD_CLIENT_KEY is {key}, but NOMAD_CLIENT_CERT, its certificate, is not set")
        return
    for variable, file in (("NOMAD_CLIENT_CERT", certificate), ("NOMAD_CLIENT_KEY", key)):
        try:
            if file:
                Path(file).open("rb").close()
        except OSError as error:
            raise NomadError(f"{variable} is {file}: {error.strerror}") from error
    try:
        # Without a password, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(certificate, key or None, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            said = f"its key is not the one in NOMAD_CLIENT_KEY, {key}"
        elif key:
            said = f"it, or NOMAD_CLIENT_KEY, {key}, cannot be read as PEM without a password"
        else:
            said = "it cannot be read as PEM, or holds no key beside the certificate; set NOMAD_CLIENT_KEY"
        raise NomadError(f"NOMAD_CLIENT_CERT is {certificate}: {said}") from error


def _scheme_and_place(address: str) -> tuple[str, str]:
    """The host, or the path of a socket: with one slash or three, as url.Parse of Go finds a path."""
    try:
        url = urlsplit(address)
        if url.scheme == "unix" and not url.netloc and url.path.startswith("/"):
            return url.scheme, url.path
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:  # a port may be no number
            return url.scheme, url.hostname
    except ValueError:
        pass
    raise NomadError(
        f"NOMAD_ADDR is {without_secrets(address)!r}, but must be like http://127.0.0.1:4646, "
        "https://HOST:PORT or unix:///PATH/OF/A.sock"
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
