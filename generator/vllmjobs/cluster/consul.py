"""Consul, through py-consul; reached as the `consul` command reaches it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import consul
import requests
from consul.exceptions import ConsulException

from vllmjobs.cluster import failures
from vllmjobs.cluster.session import Way, way
from vllmjobs.environment.problems import UserError
from vllmjobs.rollout.routes import Instance

__all__ = ["Consul", "ConsulError", "Instance", "Key"]

TIMEOUT = (5.0, 10.0)  # seconds until connected, and between two pieces of an answer
# Seconds between attempts, 30 in all: an agent that is restarted answers after about ten, an election takes
# a few.
PAUSES = (0.5, 1.0, 2.0, 4.0, 7.5, 15.0)
DEFAULT_ADDRESS = "127.0.0.1:8500"
_TRUE = ("1", "t", "T", "TRUE", "true", "True")  # Go's strconv.ParseBool
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
# What `nomad_session` calls what Consul has, too.
_NAMES = {
    "NOMAD_ADDR": "CONSUL_HTTP_ADDR",
    "NOMAD_HTTP_AUTH": "CONSUL_HTTP_AUTH",
    "NOMAD_CACERT": "CONSUL_CACERT",
    "NOMAD_CAPATH": "CONSUL_CAPATH",
    "NOMAD_CLIENT_CERT": "CONSUL_CLIENT_CERT",
    "NOMAD_CLIENT_KEY": "CONSUL_CLIENT_KEY",
    "NOMAD_TLS_SERVER_NAME": "CONSUL_TLS_SERVER_NAME",
    "NOMAD_TOKEN": "CONSUL_HTTP_TOKEN",
    "Nomad": "Consul",
    ":4646": ":8500",
}


class ConsulError(UserError):
    """What Consul refuses, or why it cannot be asked: one line, with the address and the way out."""


class Key(NamedTuple):
    """What is stored under a key."""

    value: str
    flags: int
    modify_index: int
    """For a check-and-set."""


class Consul:
    """The Consul behind CONSUL_HTTP_ADDR; every method raises `ConsulError`. For one thread at a time.

    Each call is repeated after growing pauses, half a minute in all, where that may help: there is no leader,
    no answer in time, or nobody listens any more at an address that has answered before.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        timeout: tuple[float, float] = TIMEOUT,
        pauses: tuple[float, ...] = PAUSES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Read CONSUL_HTTP_TOKEN, _TOKEN_FILE, CONSUL_NAMESPACE, CONSUL_PARTITION, and the way there."""
        there = _way(environ)
        self.address = there.address
        self._timeout, self._pauses, self._sleep = timeout, pauses, sleep
        self._has_answered = False
        self._answer: requests.Response | None = None
        # Given a host, it leaves CONSUL_HTTP_ADDR to us; CONSUL_HTTP_TOKEN it reads in any case.
        self._consul = consul.Consul(host="127.0.0.1", connections_timeout=timeout)
        self._consul.token = _token(environ)
        self._consul.http.session = there.session
        self._consul.http.base_uri = there.url
        self._consul.http.verify = there.verify
        there.session.hooks["response"].append(self._note)
        within = {"ns": environ.get("CONSUL_NAMESPACE"), "partition": environ.get("CONSUL_PARTITION")}
        # Else a server that has just become the leader may answer that nothing is registered, before it has
        # read its log (agent/consul/rpc.go isReadyForConsistentReads). py-consul does not have it for health.
        there.session.params = {"consistent": ""} | {name: value for name, value in within.items() if value}

    def read(self, prefix: str) -> dict[str, Key]:
        """Every key that begins so. Needs key:read; keys that the token may not read are left out."""
        needs = f'key_prefix "{prefix}" {{ policy = "read" }}'
        _, found = self._ask(needs, lambda: self._consul.kv.get(prefix, recurse=True))
        return {
            one["Key"]: Key((one["Value"] or b"").decode(errors="replace"), one["Flags"], one["ModifyIndex"])
            for one in found or self._nothing(needs)
        }

    def put(self, key: str, value: str, flags: int = 0, index: int | None = None) -> bool:
        """Store a value; with `index`, only over what has that ModifyIndex (0: nothing). Needs key:write.

        False where something else is there by now: perhaps the same, when the answer to an earlier attempt
        got lost.
        """
        needs = f'key "{key}" {{ policy = "write" }}'
        done: bool = self._ask(
            needs, lambda: self._consul.kv.put(key, value.encode(), cas=index, flags=flags)
        )
        return done

    def delete(self, key: str, index: int | None = None) -> bool:
        """Remove a key, if it is there; with `index`, only that version of it. Needs key:write."""
        needs = f'key "{key}" {{ policy = "write" }}'
        done: bool = self._ask(needs, lambda: self._consul.kv.delete(key, cas=index))
        return done

    def services(self) -> dict[str, list[str]]:
        """The names of all services, with the tags that any of their instances has. Needs service:read."""
        needs = 'service_prefix "" { policy = "read" }'
        _, found = self._ask(needs, self._consul.catalog.services)
        return {name: tags or [] for name, tags in (found or self._nothing(needs)).items()}

    def instances(self, service: str) -> list[Instance]:
        """Every instance of a service, well or not. Needs service:read, and node:read for their nodes."""
        needs = f'service "{service}" {{ policy = "read" }} and node_prefix "" {{ policy = "read" }}'
        _, found = self._ask(needs, lambda: self._consul.health.service(service))
        return [
            Instance(
                id=one["Service"]["ID"],
                node=one["Node"]["Node"],
                address=one["Service"]["Address"] or one["Node"]["Address"],
                port=one["Service"].get("Port", 0),  # left out where a service has none
                tags=tuple(one["Service"]["Tags"] or ()),
                passing=all(check["Status"] == "passing" for check in one["Checks"]),
            )
            for one in found or self._nothing(needs)
        ]

    def _note(self, response: requests.Response, *_args: Any, **_kwargs: Any) -> None:
        """py-consul's exceptions tell neither the status nor the headers."""
        self._answer = response

    def _nothing(self, needs: str) -> Any:
        """Consul hides what a token may not see: agent/http.go setMeta."""
        answer = self._answer
        if answer is not None and answer.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true":
            raise ConsulError(f"{self.address}: all of the answer is hidden; {self._lacks(needs)}")
        return {}

    def _ask(self, needs: str, call: Callable[[], Any]) -> Any:
        """What the call returns; `needs` is the rule of a policy that the token needs for it."""
        for pause in (*self._pauses, None):
            self._answer = None
            try:
                answer = call()
            except (ConsulException, requests.RequestException) as error:
                # py-consul's own exceptions are about an answer.
                failure = self._answer if self._answer is not None else error
                if pause is None or not self._passes(failure):
                    raise self._refusal(needs, failure) from error
                self._sleep(pause)
            else:
                self._has_answered = True
                return answer
        raise AssertionError("the last attempt has no pause after it")

    def _passes(self, failure: failures.Failure) -> bool:
        if isinstance(failure, requests.Response):
            return failure.status_code == 429 or failure.status_code >= 500
        is_gone = self._has_answered and isinstance(failure, requests.ConnectionError)
        return is_gone or failures.passes(failure)

    def _refusal(self, needs: str, failure: failures.Failure) -> ConsulError:
        if isinstance(failure, requests.Response):
            if "ACL not found" in failure.text:
                said = "CONSUL_HTTP_TOKEN is not, or no longer, a token of this cluster"
                return ConsulError(f"{self.address}: ACL not found; {said}")
            if failure.status_code == 403:
                return ConsulError(f"{self.address}: Permission denied; {self._lacks(needs)}")
            if failure.status_code in (200, 404):
                said = "answers, but not as Consul's HTTP API does; is CONSUL_HTTP_ADDR right?"
                return ConsulError(f"{self.address}: {said}")
        return ConsulError(f"{self.address}: {_renamed(failures.reason(failure, self._timeout))}")

    def _lacks(self, needs: str) -> str:
        if not self._consul.token:
            return f"set CONSUL_HTTP_TOKEN to a token with the policy {needs}"
        return f"the policies of CONSUL_HTTP_TOKEN lack {needs}"


def _way(environ: Mapping[str, str]) -> Way:
    """As api.go of consul/api has it: an address may lack its scheme, which CONSUL_HTTP_SSL tells then."""
    given = environ.get("CONSUL_HTTP_ADDR") or DEFAULT_ADDRESS
    tls = environ.get("CONSUL_HTTP_SSL") in _TRUE
    scheme, _, place = given.rpartition("://")
    theirs = {name: environ[ours] for name, ours in _NAMES.items() if ours in environ}
    theirs["NOMAD_ADDR"] = f"{'https' if tls and scheme in ('', 'http') else scheme or 'http'}://{place}"
    if environ.get("CONSUL_HTTP_SSL_VERIFY") in _FALSE:
        theirs["NOMAD_SKIP_VERIFY"] = "1"
    try:
        return way(theirs)
    except failures.NomadError as error:
        raise ConsulError(_renamed(str(error))) from error


def _token(environ: Mapping[str, str]) -> str | None:
    """A file's wins, unless it is empty: NewClient in consul/api/api.go."""
    token = environ.get("CONSUL_HTTP_TOKEN")
    if file := environ.get("CONSUL_HTTP_TOKEN_FILE"):
        try:
            token = Path(file).read_text().strip() or token
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConsulError(f"CONSUL_HTTP_TOKEN_FILE is {file}: {said}") from error
    if not re.fullmatch(r"[!-~]*", token or ""):
        raise ConsulError(
            "CONSUL_HTTP_TOKEN has a blank, a line break or another character that no token has"
        )
    return token or None


def _renamed(text: str) -> str:
    return re.sub("|".join(map(re.escape, _NAMES)), lambda found: _NAMES[found[0]], text)
