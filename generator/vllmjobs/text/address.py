"""An address as it may be shown: without a name, a password and a query, which hold secrets."""

import re
from urllib.parse import urlsplit

_SCHEMES = ("http", "https", "unix", "s3", "ftp", "tcp")
_HOST_ALONE = re.compile(
    r"localhost(:\d+)?|[\w-]+(\.[\w-]+)*:\d+|[\w-]+(\.[\w-]+)+|\[[0-9A-Fa-f:.]+\](:\d+)?", re.ASCII
)
_PLACE = re.compile(r"([\w.~-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?", re.ASCII)
_SOCKET = re.compile(r"unix:/(?!/)[^@?#\s]*")
NOT_SHOWN = "…"


def shown_address(address: str, path: bool = True) -> str:
    """Return the scheme, host, port and path of an address; `…` stands for what cannot be told from a secret.

    It is read as a URL, and not searched for passwords: whatever stands before the last `@`, or behind a `?`
    or `#`, is left out. Without `path`, that is left out too: of a webhook, it is the password.
    """
    scheme, colon, rest = address.strip().partition("://")
    if _SOCKET.fullmatch(address):  # as Nomad takes it, without the slashes
        return address
    if not colon:
        return address if _HOST_ALONE.fullmatch(address) else NOT_SHOWN
    scheme = scheme.lower()
    beginning = f"{scheme}://" if scheme in _SCHEMES else ""
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        place = parts.netloc.rpartition("@")[2]
        _ = parts.port  # raises ValueError for none
    except ValueError:
        return beginning + NOT_SHOWN
    behind = parts.path.partition(";")[0]
    # A password with a slash, a `?` or a `#` in it ends what is taken for the host.
    is_odd = "@" in f"{parts.path}{parts.query}{parts.fragment}" or not _PLACE.fullmatch(place)
    if not beginning or (is_odd and not (scheme == "unix" and not place and "@" not in address)):
        return beginning + NOT_SHOWN
    return f"{beginning}{place}{behind.rstrip('/') if path else f'/{NOT_SHOWN}'}"
