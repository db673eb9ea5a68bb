"""A client of S3, and of what speaks its protocol, in Python alone: vLLM's image has no client.

The address, the region and the keys are in the variables that AWS's own tools read.
"""

import hashlib
import hmac
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException, InvalidURL
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request
from xml.etree import ElementTree

from vllmjobs.model_cache.answers import OPENER, WAIT_S, pieces, text
from vllmjobs.model_cache.files import CacheError

PART = 64 << 20  # 10,000 of them may make a file
PARTED = "<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>"
TRIES = 4
Fields = Mapping[str, str]
To = Path | None
NO: Fields = {}
DIGEST = "x-amz-meta-sha256"


class Bucket:
    """The files below `s3://BUCKET/PREFIX`."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.address = address.rstrip("/")
        self.region = os.environ.get("AWS_REGION", "us-east-1")
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or f"https://s3.{self.region}.amazonaws.com"
        self.url = "/".join(filter(None, [endpoint.rstrip("/"), parts.netloc, quote(parts.path.strip("/"))]))
        self.keys = [os.environ.get(f"AWS_{name}", "") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")]
        if not all(self.keys):
            raise CacheError(f"{address} needs the secrets AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")

    def __str__(self) -> str:
        return self.address

    def has(self, name: str, digest: str, size: int) -> bool:
        """Tell whether a file has this size, and was written with this digest; S3 checks its own disks."""
        with suppress(FileNotFoundError):
            _, found = self._ask("HEAD", name)
            return (found.get(DIGEST), found.get("content-length")) == (digest, str(size))
        return False

    def put(self, source: Path, name: str, digest: str) -> None:
        """Write a file, in parts where it is large; S3 checks each part."""
        if source.stat().st_size <= PART:
            self._ask("PUT", name, body=source.read_bytes(), head={DIGEST: digest})
            return
        upload = _text(self._ask("POST", name, {"uploads": ""}, head={DIGEST: digest})[0], "UploadId")
        try:
            parts: list[str] = []
            with source.open("rb") as file:
                while body := file.read(PART):
                    query = {"partNumber": str(len(parts) + 1), "uploadId": upload}
                    parts.append(self._ask("PUT", name, query, body)[1].get("etag", ""))
            listed = "".join(PARTED.format(number, etag) for number, etag in enumerate(parts, 1))
            whole = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
            # It may say OK, and then that it is not.
            _text(self._ask("POST", name, {"uploadId": upload}, whole)[0], "ETag")
        except BaseException:
            self._ask("DELETE", name, {"uploadId": upload})
            raise

    def get(self, name: str, to: Path) -> None:
        """Read into a file, which the caller checks."""
        with suppress(FileNotFoundError):
            self._ask("GET", name, to=to)

    def read(self, name: str) -> str | None:
        """Return a short text; None where there is none."""
        with suppress(FileNotFoundError):
            try:
                return self._ask("GET", name)[0].decode()
            except UnicodeDecodeError as error:
                raise CacheError(f"{self}/{name} is damaged: it is no text") from error
        return None

    def write(self, name: str, text: str) -> None:
        """Write a short text."""
        self._ask("PUT", name, body=text.encode())

    def _ask(
        self, method: str, name: str, query: Fields = NO, body: bytes = b"", head: Fields = NO, to: To = None
    ) -> tuple[bytes, dict[str, str]]:
        """Return the body of an answer, and its headers in lower case."""
        url = f"{self.url}/{quote(name)}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        for left in reversed(range(TRIES)):
            signed = sign(method, url, body, head, self.keys, self.region, datetime.now(UTC))
            request = Request(url, body if method in ("PUT", "POST") else None, signed, method=method)
            try:
                with OPENER.open(request, timeout=WAIT_S) as answer:
                    if to:
                        with to.open("wb") as file:
                            for piece in pieces(answer):
                                file.write(piece)
                    return text(answer), {key.lower(): value for key, value in answer.headers.items()}
            except HTTPError as error:
                if error.code == 404 and method in ("GET", "HEAD"):
                    raise FileNotFoundError(name) from error
                if error.code < 500 or not left:
                    raise CacheError(f"{method} {self}/{name}: {_refusal(error)}") from error
            except (OSError, HTTPException, ValueError) as error:
                if not left:
                    host = urlsplit(self.url).hostname  # alone: names and passwords stand beside it
                    why = type(error).__name__ if isinstance(error, InvalidURL | ValueError) else error
                    raise CacheError(f"{method} {self}/{name} at {host}: {why}") from error
            time.sleep(TRIES - left)
        raise AssertionError


def sign(
    method: str, url: str, body: bytes, headers: Fields, keys: Sequence[str], region: str, now: datetime
) -> dict[str, str]:
    """Return headers with AWS's Signature Version 4, for a URL that is quoted and whose query is sorted."""
    parts, at = urlsplit(url), now.strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    every = {**headers, "host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": at}
    signed = sorted((key.lower(), value) for key, value in every.items())
    names = ";".join(key for key, _ in signed)
    lines = [f"{key}:{value}\n" for key, value in signed]
    canonical = "\n".join([method, parts.path, parts.query, "".join(lines), names, digest])
    scope = f"{at[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", at, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{keys[1]}".encode()
    for part in (*scope.split("/"), to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"AWS4-HMAC-SHA256 Credential={keys[0]}/{scope}"
    return {**every, "Authorization": f"{credential},SignedHeaders={names},Signature={key.hex()}"}


def _refusal(error: HTTPError) -> str:
    said = ""
    with suppress(OSError, HTTPException, ValueError):
        said = " ".join(text(error)[:300].decode(errors="replace").split())
    if error.code in (301, 302, 303, 307, 308):  # it is not followed: the signature is for this server
        way_out = "the bucket is elsewhere; set region or endpoint of cache_backup"
        return f"{error.code} {error.reason}: {way_out} {said}".rstrip()
    return f"{error.code} {error.reason} {said}"


def _text(answer: bytes, tag: str) -> str:
    found = None
    with suppress(
        ElementTree.ParseError, LookupError, ValueError
    ):  # of no XML, of an encoding that there is not
        every = ElementTree.fromstring(answer).iter()
        found = next((one.text for one in every if one.tag.endswith(tag)), None)
    if not found:
        raise CacheError(f"S3 answers without {tag}: {answer[:300].decode(errors='replace')}")
    return found
