"""The metrics of instances, from themselves or a Prometheus; and real requests where there are no others."""

import json
import re
from collections.abc import Iterable, MutableMapping
from typing import Any, NotRequired, TypedDict

import requests
from requests.utils import get_environ_proxies

from vllmjobs.cluster.answers import LITTLE, EndlessError, Session, ShapeError, decoded, side_by_side
from vllmjobs.environment.problems import UserError
from vllmjobs.rollout.samples import SERIES, Sample, SampleError, from_query, read
from vllmjobs.supervisor.core.asking import (
    AskedModel,
    ProbeAnswer,
    ProbeOutcome,
    ProbeRequest,
    ServerFacts,
    ask,
)
from vllmjobs.text.address import shown_address

_AT_ONCE = 16
_LABEL = re.compile(r"[A-Za-z_]\w*", re.ASCII)


UNANSWERED = "does not answer within"  # the words for an instance that takes a request, and does not end it


class _QueryData(TypedDict):
    """The data of an answer: a list of series."""

    result: list[Any]


class _QueryAnswer(TypedDict):
    """The answer of Prometheus to a query: prometheus.io/docs/prometheus/latest/querying/api."""

    status: str
    error: NotRequired[str]
    data: NotRequired[_QueryData]


class MetricsError(UserError):
    """A reason why an instance's metrics could not be read: one line, with the address."""


def scrape(
    addresses: Iterable[str], timeout: float, path: str = "/metrics"
) -> dict[str, Sample | MetricsError]:
    """Read the instances' own metrics, several at a time; by `host:port`, a sample or why there is none.

    `timeout`, in seconds, is for the connection, and for the whole page.
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
    return dict(zip(wanted, side_by_side(one, wanted, _AT_ONCE), strict=True))


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
            answer = decoded(response, _QueryAnswer)
        except ShapeError as error:
            message = f"{shown_url} answers {_status(response)}, and not what a Prometheus answers ({error})"
            raise MetricsError(f"{message}; is it a Prometheus?") from error
        except (requests.RequestException, ValueError) as error:  # the latter for what is no URL
            raise MetricsError(f"{shown_url} {_why(error, self._timeout)}") from error
        if answer["status"] != "success" or "data" not in answer:
            why = answer.get("error") or response.text[:200]
            raise MetricsError(f"{shown_url} answers {_status(response)}: {why}")
        try:
            return from_query(answer["data"]["result"], self._label)
        except SampleError as error:
            raise MetricsError(f"{shown_url}: its answer {error}") from error


def probe(
    address: str,
    served_name: str,
    timeout: float,
    key: str | None = None,
    model: str | None = None,
    known: MutableMapping[str, ServerFacts] | None = None,
) -> str | None:
    """Ask an instance for one token, or the like; return why it could not be asked, None once it answered.

    A 5xx is an answer, too, which its metrics count. `key` is one of vLLM's --api-key, `model` the one that
    the server was started for. What is found out is kept in `known` by address, and not asked again.
    """
    known = {} if known is None else known
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    asking = ask(AskedModel(served_name, model), known.get(address, ServerFacts()))
    try:
        wanted = next(asking)
        while True:
            wanted = asking.send(_answer(address, wanted, timeout, headers))
    except StopIteration as ended:
        outcome: ProbeOutcome = ended.value
    known[address] = outcome.facts
    if outcome.result == "answered" or (outcome.result == "refused" and _is_counted(outcome.status)):
        return None
    way_out = ""
    if outcome.status == 401:
        way_out = ": VLLM_API_KEY is not its key" if key else ": set VLLM_API_KEY to its key"
    return f"http://{address}{outcome.reason}{way_out}" if outcome.reason else None


def _is_counted(status: int | None) -> bool:
    """Tell whether an instance's metrics tell of an answer of this status."""
    return status is not None and (status < 300 or status >= 500)


def _answer(address: str, wanted: ProbeRequest, timeout: float, headers: dict[str, str]) -> ProbeAnswer:
    url = f"http://{address}{wanted.path}"
    typed = {"Content-Type": wanted.content_type} if wanted.content else {}
    try:
        response = _ask(wanted.method, url, timeout, headers=headers | typed, data=wanted.content)
    except requests.RequestException as error:
        return ProbeAnswer(None, reason=_why(error, timeout))
    return ProbeAnswer(response.status_code, response.content)


def _ask(method: str, url: str, timeout: float, headers: Any = None, **body: Any) -> requests.Response:
    with Session(LITTLE) as session:  # a .netrc or proxy must not come between on the way to this machine
        proxies = {} if _is_loopback(url) else get_environ_proxies(url)
        return session.request(method, url, headers=headers, proxies=proxies, timeout=timeout, **body)


def _is_loopback(url: str) -> bool:
    return re.match(r"https?://([^/@]*@)?(localhost|127\.[\d.]+|\[::1\])(:|/|$)", url) is not None


def _one_of(label: str, values: Iterable[str]) -> str:
    """Return a matcher of exactly these, with RE2's quoting inside of PromQL's, which is Go's."""
    alternatives = "|".join(re.sub(r"([^\w:/-])", r"\\\1", value, flags=re.ASCII) for value in values)
    return f"{label}=~{json.dumps(alternatives, ensure_ascii=False)}"


def _why(error: Exception, timeout: float) -> str:
    if isinstance(error, EndlessError):
        return str(error)
    if isinstance(error, requests.ConnectTimeout):
        return f"cannot be reached within {timeout:g} s"
    if isinstance(error, requests.Timeout):
        return f"{UNANSWERED} {timeout:g} s"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached: nothing listens there, or the connection broke"
    return f"cannot be asked ({type(error).__name__})"  # its text holds the URL


def _status(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason}".strip()
