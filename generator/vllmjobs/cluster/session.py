"""A session of requests to Nomad or Consul, set up by the variables that their own commands read."""

import re
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies
from urllib3 import HTTPConnectionPool, disable_warnings
from urllib3.exceptions import ConnectTimeoutError, InsecureRequestWarning, NewConnectionError

from vllmjobs.cluster.answers import EndingAdapter, EndingConnection, Session
from vllmjobs.environment.problems import UserError
from vllmjobs.text.address import shown_address

TRUE = ("1", "t", "T", "TRUE", "true", "True")  # Go's strconv.ParseBool
FALSE = ("0", "f", "F", "FALSE", "false", "False")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names that a server's own command gives to its variables, for reading them and for messages."""

    server: str  # the server's name: Nomad, or Consul
    error: type[UserError]  # the error that is raised for a variable that cannot be used
    default_address: str
    addr: str
    http_auth: str
    cacert: str
    capath: str
    client_cert: str
    client_key: str
    tls_server_name: str
    unverified: tuple[str, tuple[str, ...]]  # the variable that turns off verification, and values that do
    token: str
    token_file: str | None = None  # the variable that names a file with the token, where the server has one


@dataclass(frozen=True, slots=True)
class Connection:
    """An address, and the session and the token with which requests are sent to it."""

    address: str  # the address as a person wrote it, without a name, a password and a query
    url: str  # the URL that requests are sent to
    session: requests.Session
    verify: bool
    token: str  # the token; empty where there is none


def connect(environ: Mapping[str, str], names: Names, address: str | None = None) -> Connection:
    """Return the connection that the variables describe; `address` is used in place of the variable's.

    The variables mean what they mean to DefaultConfig in nomad/api/api.go and consul/api/api.go; the address
    of a unix socket has no TLS there either. Raises `names.error` for an address that is none, a certificate
    that cannot be used, and a token that cannot be sent.
    """
    written = address or environ.get(names.addr) or names.default_address
    scheme, place = _scheme_and_place(written, names)
    written = written.rstrip("/")
    variable, off = names.unverified
    verify = environ.get(variable) not in off
    session = Session()
    # A name and password in the address win: toHTTP in nomad/api/api.go.
    if (authorization := environ.get(names.http_auth)) and not urlsplit(written).username:
        user, _, password = authorization.partition(":")
        session.auth = (user, password)
    if scheme == "unix":
        session.mount("http://", _UnixSocket(place))
        return Connection(shown_address(written), "http://127.0.0.1", session, True, _token(environ, names))
    if not _is_loopback(place):  # as Go, and not as requests, has it
        session.proxies = get_environ_proxies(written)
    if scheme == "https":
        context = _tls_context(environ, names, verify)
        session.mount("https://", _Tls(context, environ.get(names.tls_server_name)))
        if not verify:  # the user asked for it; a warning at every request says nothing new
            disable_warnings(InsecureRequestWarning)
    return Connection(shown_address(written), written, session, verify, _token(environ, names))


def _token(environ: Mapping[str, str], names: Names) -> str:
    """Return the token. A file's token wins, unless it is empty: NewClient in consul/api/api.go."""
    token = environ.get(names.token, "")
    if names.token_file and (file := environ.get(names.token_file)):
        try:
            token = Path(file).read_text().strip() or token
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
            raise names.error(f"{names.token_file} is {file}: {reason}") from error
    if not re.fullmatch(r"[!-~]*", token):
        raise names.error(f"{names.token} has a blank, a line break or another character that no token has")
    return token


class _UnixSocket(EndingAdapter):
    """An adapter that sends every request to one unix socket, whatever the host of its URL."""

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


class _UnixConnection(EndingConnection):
    """A connection to a unix socket."""

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
    """A pool of connections to a unix socket."""

    ConnectionCls = _UnixConnection


class _Tls(EndingAdapter):
    """An adapter with one TLS context; requests by itself would trust certifi's roots beside NOMAD_CACERT."""

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


def _tls_context(environ: Mapping[str, str], names: Names, verify: bool) -> ssl.SSLContext:
    """Return a context that trusts what `cacert` names, else `capath`, else the system's roots."""
    variable = next((name for name in (names.cacert, names.capath) if environ.get(name)), None)
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
        raise names.error(f"{variable} is {environ[variable or '']}: {error.strerror or error}") from error
    _load_certificate(context, environ, names)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_certificate(context: ssl.SSLContext, environ: Mapping[str, str], names: Names) -> None:
    """Load the client's certificate and its key, which stands in the same file if it has none of its own."""
    certificate, key = environ.get(names.client_cert), environ.get(names.client_key)
    if not certificate:
        if key:
            missing = f"{names.client_cert}, its certificate, is not set"
            raise names.error(f"{names.client_key} is {key}, but {missing}")
        return
    for variable, file in ((names.client_cert, certificate), (names.client_key, key)):
        try:
            if file:
                Path(file).open("rb").close()
        except OSError as error:
            raise names.error(f"{variable} is {file}: {error.strerror}") from error
    try:
        # Without a password, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(certificate, key or None, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"its key is not the one in {names.client_key}, {key}"
        elif key:
            reason = f"it, or {names.client_key}, {key}, cannot be read as PEM without a password"
        else:
            reason = "it cannot be read as PEM, or holds no key beside the certificate"
            reason += f"; set {names.client_key}"
        raise names.error(f"{names.client_cert} is {certificate}: {reason}") from error


def _scheme_and_place(address: str, names: Names) -> tuple[str, str]:
    """Return the scheme, and the host or the path of a socket.

    The path may stand behind one slash or three, as url.Parse of Go finds a path.
    """
    with suppress(ValueError):  # a port may be no number
        url = urlsplit(address)
        if url.scheme == "unix" and not url.netloc and url.path.startswith("/"):
            return url.scheme, url.path
        # A password with a slash in it would make a host of the name.
        is_whole = "@" not in f"{url.path}{url.query}{url.fragment}"
        if url.scheme in ("http", "https") and url.hostname and url.port != 0 and is_whole:
            return url.scheme, url.hostname
    raise names.error(
        f"{names.addr} is {shown_address(address)!r}, but must be like {names.default_address}, "
        "https://HOST:PORT or unix:///PATH/OF/A.sock"
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
