"""A client of Consul's API on top of py-consul, which reaches it as the `consul` command does."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import consul
import requests
from consul.exceptions import ConsulException

from vllmjobs.balancers.instances import ServiceInstance
from vllmjobs.cluster.answers import ShapeError, shaped
from vllmjobs.cluster.reasons import Deadline, FailedError, Failure, is_endless, is_lost, reason, retry
from vllmjobs.cluster.session import FALSE, TRUE, Names, connect
from vllmjobs.cluster.shapes import HealthEntry, KeyValue
from vllmjobs.environment.problems import UserError

TIMEOUT = (5.0, 10.0)  # seconds until connected, and for an answer
# Seconds between attempts, 30 in all: an agent that is restarted answers after about ten, an election takes
# a few.
PAUSES = (0.5, 1.0, 2.0, 4.0, 7.5, 15.0)


class ConsulError(UserError):
    """A refusal of Consul, or why it cannot be asked: one line, with the address and the way out."""


NAMES = Names(
    server="Consul",
    error=ConsulError,
    default_address="http://127.0.0.1:8500",
    addr="CONSUL_HTTP_ADDR",
    http_auth="CONSUL_HTTP_AUTH",
    cacert="CONSUL_CACERT",
    capath="CONSUL_CAPATH",
    client_cert="CONSUL_CLIENT_CERT",
    client_key="CONSUL_CLIENT_KEY",
    tls_server_name="CONSUL_TLS_SERVER_NAME",
    unverified=("CONSUL_HTTP_SSL_VERIFY", FALSE),
    token="CONSUL_HTTP_TOKEN",
    token_file="CONSUL_HTTP_TOKEN_FILE",
)


class Key(NamedTuple):
    """The value that is stored under a key, with its flags and its index."""

    value: str
    flags: int
    modify_index: int  # the index for a check-and-set


class ConsulApi:
    """A client of the Consul behind CONSUL_HTTP_ADDR, for one thread at a time.

    Every method raises `ConsulError`. Each call is repeated after growing pauses, half a minute in all, where
    that may help: there is no leader, no answer in time, or nobody listens any more at an address that has
    answered before.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        timeout: tuple[float, float] = TIMEOUT,
        pauses: tuple[float, ...] = PAUSES,
        sleep: Callable[[float], None] = time.sleep,
        deadline: Deadline | None = None,
    ) -> None:
        """Read CONSUL_NAMESPACE, CONSUL_PARTITION, CONSUL_HTTP_SSL, and what `connect` reads.

        No call is repeated after the `deadline`.
        """
        connection = connect(environ, NAMES, _address(environ))
        self.address = connection.address
        self._timeout, self._pauses, self._sleep = timeout, pauses, sleep
        self._deadline = deadline or Deadline()
        self._has_answered = False
        self._answer: requests.Response | None = None
        # Given a host, it leaves CONSUL_HTTP_ADDR to us; CONSUL_HTTP_TOKEN it reads in any case.
        self._consul = consul.Consul(host="127.0.0.1", connections_timeout=timeout)
        self._consul.token = connection.token or None
        self._consul.http.session = connection.session
        self._consul.http.base_uri = connection.url
        self._consul.http.verify = connection.verify
        connection.session.hooks["response"].append(self._keep)
        within = {"ns": environ.get("CONSUL_NAMESPACE"), "partition": environ.get("CONSUL_PARTITION")}
        given = {name: value for name, value in within.items() if value}
        # Else a server that has just become the leader may answer that nothing is registered, before it has
        # read its log (agent/consul/rpc.go isReadyForConsistentReads). py-consul does not have it for health.
        connection.session.params = {"consistent": ""} | given

    def read(self, prefix: str) -> dict[str, Key]:
        """Return every key that begins so. Needs key:read; keys that the token may not read are left out."""
        needs = f'key_prefix "{prefix}" {{ policy = "read" }}'
        keys = self._list(needs, list[KeyValue], lambda: self._consul.kv.get(prefix, recurse=True))
        return {
            one["Key"]: Key((one["Value"] or b"").decode(errors="replace"), one["Flags"], one["ModifyIndex"])
            for one in keys
        }

    def put(self, key: str, value: str, flags: int = 0, index: int | None = None) -> bool:
        """Store a value; with `index`, only over what has that ModifyIndex (0: nothing). Needs key:write.

        Returns False where something else is there by now: perhaps the same, when the answer to an earlier
        attempt got lost.
        """
        needs = f'key "{key}" {{ policy = "write" }}'
        content = value.encode()
        return bool(self._ask(needs, lambda: self._consul.kv.put(key, content, cas=index, flags=flags)))

    def delete(self, key: str, index: int | None = None) -> bool:
        """Remove a key, if it is there; with `index`, only that version of it. Needs key:write."""
        needs = f'key "{key}" {{ policy = "write" }}'
        return bool(self._ask(needs, lambda: self._consul.kv.delete(key, cas=index)))

    def services(self) -> dict[str, list[str]]:
        """Return the names of all services, each with all tags of its instances. Needs service:read."""
        needs = 'service_prefix "" { policy = "read" }'
        services = self._list(needs, dict[str, list[str] | None], self._consul.catalog.services)
        return {name: services[name] or [] for name in services}

    def instances(self, service: str) -> list[ServiceInstance]:
        """Return every instance of a service, well or not. Needs service:read, and node:read for nodes."""
        needs = f'service "{service}" {{ policy = "read" }} and node_prefix "" {{ policy = "read" }}'
        instances = self._list(needs, list[HealthEntry], lambda: self._consul.health.service(service))
        return [
            ServiceInstance(
                id=one["Service"]["ID"],
                node=one["Node"]["Node"],
                address=one["Service"]["Address"] or one["Node"]["Address"],
                port=one["Service"].get("Port") or 0,  # left out where a service has none
                tags=tuple(one["Service"]["Tags"] or ()),
                passing=all(check["Status"] == "passing" for check in one["Checks"] or ()),
            )
            for one in instances
        ]

    def _keep(self, response: requests.Response, *_args: Any, **_kwargs: Any) -> None:
        """Keep an answer: py-consul's exceptions tell neither the status nor the headers."""
        self._answer = response

    def _list(self, needs: str, shape: Any, call: Callable[[], Any]) -> Any:
        """Return what Consul lists; nothing, unless it hides all that there is: agent/http.go setMeta."""
        found = self._ask(needs, lambda: shaped(call()[1], shape | None))
        if found:
            return found
        answer = self._answer
        if answer is not None and answer.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true":
            raise ConsulError(f"{self.address}: the ACLs hide the whole answer; {self._lacks(needs)}")
        return {}

    def _ask(self, needs: str, call: Callable[[], Any]) -> Any:
        """Return what the call returns; `needs` is the rule of a policy that the token needs for it."""

        def attempt() -> Any:
            self._answer = None
            self._consul.http.connections_timeout = self._deadline.within(self._timeout)
            try:
                return call()
            except (ConsulException, requests.RequestException) as error:
                # py-consul's own exceptions are about an answer.
                raise FailedError(self._answer if self._answer is not None else error) from error
            except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
                # So py-consul ends, which reads answers by itself; `ShapeError` is a ValueError.
                why = str(error) if isinstance(error, ShapeError) else "it is not the JSON that it should be"
                raise self._is_no_consul(why) from error

        def delay(failure: Failure, pause: float) -> float | None:
            return pause if self._may_pass(failure) else None

        try:
            result = retry(attempt, self._pauses, delay, self._sleep, self._deadline)
        except FailedError as error:
            raise self._refusal(needs, error.failure) from error
        self._has_answered = True
        return result

    def _may_pass(self, failure: Failure) -> bool:
        if isinstance(failure, requests.Response):
            return failure.status_code == 429 or failure.status_code >= 500
        if is_endless(failure):
            return False
        is_gone = self._has_answered and isinstance(failure, requests.ConnectionError)
        return is_gone or is_lost(failure)

    def _refusal(self, needs: str, failure: Failure) -> ConsulError:
        if isinstance(failure, requests.Response):
            if "ACL not found" in failure.text:
                unknown = "CONSUL_HTTP_TOKEN is not, or no longer, a token of this cluster"
                return ConsulError(f"{self.address}: ACL not found; {unknown}")
            if failure.status_code == 403:
                return ConsulError(f"{self.address}: Permission denied; {self._lacks(needs)}")
            if failure.status_code < 400 or failure.status_code == 404:
                return self._is_no_consul()
        return ConsulError(f"{self.address}: {reason(failure, self._consul.http.connections_timeout, NAMES)}")

    def _is_no_consul(self, why: str = "") -> ConsulError:
        path = urlsplit(self._answer.url).path if self._answer is not None else ""
        told = f" ({path.lstrip('/')}: {why})" if why else ""
        hint = f"answers, but not as Consul's HTTP API does{told}; is CONSUL_HTTP_ADDR right?"
        return ConsulError(f"{self.address}: {hint}")

    def _lacks(self, needs: str) -> str:
        if not self._consul.token:
            return f"set CONSUL_HTTP_TOKEN to a token with the policy {needs}"
        return f"the policies of CONSUL_HTTP_TOKEN lack {needs}"


def _address(environ: Mapping[str, str]) -> str:
    """Return the address with its scheme; without one, CONSUL_HTTP_SSL tells it: consul/api/api.go."""
    address = environ.get("CONSUL_HTTP_ADDR") or NAMES.default_address
    scheme, _, place = address.rpartition("://")
    if scheme in ("", "http"):
        scheme = "https" if environ.get("CONSUL_HTTP_SSL") in TRUE else "http"
    return f"{scheme}://{place}"
