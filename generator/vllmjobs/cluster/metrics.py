"""The metrics of instances, from themselves or a Prometheus; and real requests where there are no others."""

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from requests.utils import get_environ_proxies

from vllmjobs import __version__
from vllmjobs.environment.problems import UserError
from vllmjobs.rollout.samples import SERIES, Sample, SampleError, from_query, read
from vllmjobs.text.address import shown_address

_AT_ONCE = 16
_NOT_SERVED = (400, 404)  # by this route: a chat model's template is missing, or the task is another
_LABEL = re.compile(r"[A-Za-z_]\w*", re.ASCII)


UNANSWERED = "does not answer within"  # the words for an instance that takes a request, and is silent


class MetricsError(UserError):
    """A reason why an instance's metrics could not be read: one line, with the address."""


def scrape(
    addresses: Iterable[str], timeout: float, path: str = "/metrics"
) -> dict[str, Sample | MetricsError]:
    """Read the instances' own metrics, several at a time; by `host:port`, a sample or why there is none.

    `timeout`, in seconds, is for the connection and for each read.
    """

    def one(address: str) -> Sample | MetricsError:
        url = f"http://{address}{path}"
        try:
            response = _ask("GET", url, timeout)
            if response.status_code != 200:
                return MetricsError(f"{url} answers {_status(response)}")
            return read(response.text)
        except requests.RequestException as error:
            return MetricsError(f"{url} {_why(error, timeout)}")
        except SampleError as error:
            return MetricsError(f"{url} {error}")

    wanted = sorted(set(addresses))
    if not wanted:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(wanted))) as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))


class PrometheusApi:
    """A server that scrapes the instances, at an `address` as in `rollout.analysis.prometheus`."""

    def __init__(self, address: str, label: str = "instance", timeout: float = 10) -> None:
        """Take the label that holds an instance's `host:port`; raises `MetricsError` for no label."""
        if not _LABEL.fullmatch(label):
            raise MetricsError(f"{label!r} cannot be the name of a label: it takes letters, digits and _")
        self._url = f"{address.rstrip('/')}/api/v1/query"
        self._label = label
        self._timeout = timeout

    def samples(self, addresses: Iterable[str]) -> dict[str, Sample]:
        """Return the newest samples of these instances, by `host:port`, from one query.

        An instance that was not scraped in the last 5 minutes (query.lookback-delta) is absent. Raises
        `MetricsError`.
        """
        wanted = sorted(set(addresses))
        if not wanted:
            return {}
        query = f"{{{_one_of('__name__', SERIES)},{_one_of(self._label, wanted)}}}"
        shown_url = shown_address(self._url)
        try:
            response = _ask("POST", self._url, self._timeout, data={"query": query})
            answer = response.json()
        except requests.JSONDecodeError:
            message = f"{shown_url} answers {_status(response)}, and no JSON; is it a Prometheus?"
            raise MetricsError(message) from None
        except (requests.RequestException, ValueError) as error:  # the latter for what is no URL
            raise MetricsError(f"{shown_url} {_why(error, self._timeout)}") from error
        if not isinstance(answer, dict) or answer.get("status") != "success":
            why = answer.get("error") if isinstance(answer, dict) else None
            raise MetricsError(f"{shown_url} answers {_status(response)}: {why or response.text[:200]}")
        try:
            return from_query(answer["data"]["result"], self._label)
        except (SampleError, LookupError, TypeError) as error:
            raise MetricsError(f"{shown_url}: its answer {error}") from error


def probe(address: str, served_name: str, timeout: float, key: str | None = None) -> str | None:
    """Ask an instance for one token; return why it could not be asked, or None once it has answered.

    A 5xx is an answer, too, which its metrics count. `key` is one of vLLM's --api-key.
    """
    request = {"model": served_name, "max_tokens": 1, "temperature": 0}
    bodies: dict[str, Any] = {
        "/v1/completions": {**request, "prompt": "1"},
        "/v1/chat/completions": {**request, "messages": [{"role": "user", "content": "1"}]},
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    why = None
    for path, body in bodies.items():
        url = f"http://{address}{path}"
        try:
            response = _ask("POST", url, timeout, json=body, headers=headers)
        except requests.RequestException as error:
            return f"{url} {_why(error, timeout)}"
        if response.ok or response.status_code >= 500:
            return None
        if response.status_code == 401:
            way_out = "VLLM_API_KEY is not its key" if key else "set VLLM_API_KEY to its key"
            return f"{url} answers {_status(response)}: {way_out}"
        # The first complaint names the cause; that of the chat route may only be a missing template.
        why = why or f"{url} answers {_status(response)}: {_complaint(response)}"
        if response.status_code not in _NOT_SERVED:
            break
    return why


def _ask(method: str, url: str, timeout: float, headers: Any = None, **body: Any) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # a .netrc or proxy must not come between on the way to this machine
        headers = {"User-Agent": f"vllmjobs/{__version__}", "Accept": "*/*", **(headers or {})}
        proxies = {} if _is_loopback(url) else get_environ_proxies(url)
        return session.request(method, url, headers=headers, proxies=proxies, timeout=timeout, **body)


def _is_loopback(url: str) -> bool:
    return re.match(r"https?://([^/@]*@)?(localhost|127\.[\d.]+|\[::1\])(:|/|$)", url) is not None


def _one_of(label: str, values: Iterable[str]) -> str:
    """Return a matcher of exactly these, with RE2's quoting inside of PromQL's, which is Go's."""
    alternatives = "|".join(re.sub(r"([^\w:/-])", r"\\\1", value, flags=re.ASCII) for value in values)
    return f"{label}=~{json.dumps(alternatives, ensure_ascii=False)}"


def _why(error: Exception, timeout: float) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return f"cannot be reached within {timeout:g} s"
    if isinstance(error, requests.Timeout):
        return f"{UNANSWERED} {timeout:g} s"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached: nothing listens there, or the connection broke"
    return f"cannot be asked ({type(error).__name__})"  # its text holds the URL


def _status(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason}".strip()


def _complaint(response: requests.Response) -> str:
    """Return vLLM's message: {"error": {"message": …}}, or before 0.12 {"message": …}, too."""
    try:
        answer = response.json()
        error = answer.get("error", answer)
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError, KeyError):
        return response.text[:300].strip() or "no message"
