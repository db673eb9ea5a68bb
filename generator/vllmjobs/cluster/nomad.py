"""A Nomad cluster, through python-nomad; reached as the `nomad` command reaches it."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import nomad
import requests
from nomad.api.exceptions import BaseNomadException

from vllmjobs.cluster import failures
from vllmjobs.cluster.failures import ForbiddenError, InvalidJobError, NomadError, Version
from vllmjobs.cluster.session import way
from vllmjobs.gpus import cards

__all__ = ["Cluster", "ForbiddenError", "InvalidJobError", "Json", "NomadError", "Where"]

Json = dict[str, Any]
TIMEOUT = (5.0, 30.0)  # seconds until connected, and between two pieces of an answer
PAUSES = (1.0, 4.0, 10.0)  # seconds at most between two attempts at a read; an election takes a few
LONGEST_PAUSE = 10.0  # seconds, however long a server asks for in Retry-After
# The scheduler frees devices by this status alone: nomad/structs/devices.go AddAllocs.
_NOT_ENDED = " and ".join(f'ClientStatus != "{status}"' for status in cards.ENDED)
_DEFAULTS = ("default", "global")  # of a job's namespace and region: nomad/api/jobs.go Canonicalize
_UNKNOWN = "NOMAD_TOKEN is not, or no longer, a token of this cluster"


class Where(NamedTuple):
    """A job, and where it is."""

    id: str
    namespace: str
    region: str
    """`global` and the empty one are that of the agent that is asked; see `Cluster.plan`."""


class Cluster:
    """The cluster behind NOMAD_ADDR; every method raises `NomadError`.

    All of them only read, a plan too, so each is asked again after a pause where that may help: no answer in
    time, a connection that was cut, too many requests, a proxy without Nomad, a cluster without a leader.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        timeout: tuple[float, float] = TIMEOUT,
        pauses: tuple[float, ...] = PAUSES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Read NOMAD_REGION, _NAMESPACE and _TOKEN, and the rest of the way there: `nomad_session.way`."""
        there = way(environ)
        self.address = there.address
        self._timeout, self._pauses, self._sleep = timeout, pauses, sleep
        self._namespace, self._region = environ.get("NOMAD_NAMESPACE"), environ.get("NOMAD_REGION")
        if not re.fullmatch(r"[!-~]*", token := environ.get("NOMAD_TOKEN", "")):
            raise NomadError("NOMAD_TOKEN has a blank, a line break or another character that no token has")
        self._nomad = nomad.Nomad(
            address=there.url,
            namespace=self._namespace,
            region=self._region,
            token=token,
            timeout=timeout,
            verify=there.verify,
            session=there.session,
        )

    def devices(self, region: str | None = None) -> list[cards.Card]:
        """Every GPU of every node of a region, and the allocations that hold it: see `nodes`."""
        return cards.in_cluster(*self.nodes(region))

    def nodes(self, region: str | None = None) -> tuple[list[Json], list[Json] | None]:
        """Every node of a region, and the allocations on them, in whatever namespace, with their resources.

        Of a node that a supervisor has fenced with its Meta, too, which Nomad has in no list.

        Needs the ACL capability node:read. Allocations need read-job: a token that has it nowhere gets None;
        of one that has it in some namespaces, Nomad hides those of the others without a word, so that what
        they hold looks free (nomad/alloc_endpoint.go List).
        """
        where = self._where("*", region)
        nodes: list[Json] = self._ask(
            "node:read",
            (list,),
            lambda: self._nomad.nodes.request(params={**where, "resources": True}, method="get").json(),
        )
        # The filter is asked of whole nodes: nomad/node_endpoint.go List.
        fenced: list[Json] = self._ask(
            "node:read",
            (list,),
            lambda: self._nomad.nodes.request(
                params={**where, "filter": f'"{cards.FENCE}" in Meta'}, method="get"
            ).json(),
        )
        meta = {one["ID"]: self._meta(one["ID"], where) for one in fenced}
        nodes = [{**node, "Meta": meta.get(node["ID"])} for node in nodes]
        held = {**where, "resources": True, "task_states": False, "filter": _NOT_ENDED}
        try:
            allocations: list[Json] = self._ask(
                "namespace:read-job",
                (list,),
                lambda: self._nomad.allocations.request(params=held, method="get").json(),
            )
        except ForbiddenError:
            return nodes, None
        return nodes, allocations

    def _meta(self, node: str, where: Mapping[str, str]) -> Json | None:
        """A node's; None where there is no such node any more."""
        found: Json | None = self._ask(
            "node:read",
            (dict, type(None)),
            lambda: self._nomad.node.request(segment(node), params=where, method="get").json(),
        )
        return (found or {}).get("Meta")

    def version(self) -> Version | None:
        """The oldest server's, of the region; None where it cannot be learned. Needs node:read."""
        try:
            answer = self._ask(
                "node:read", (dict,), lambda: self._nomad.agent.request("members", method="get").json()
            )
        except ForbiddenError:
            return None
        builds = [
            re.match(r"(\d+)\.(\d+)\.(\d+)", member["Tags"].get("build", ""))
            for member in answer.get("Members") or ()
            if member["Tags"].get("region") == (self._region or answer.get("ServerRegion"))
        ]
        return min(((int(b[1]), int(b[2]), int(b[3])) for b in builds if b), default=None)

    def parse(self, hcl: str, namespace: str | None = None) -> Json:
        """A job as Nomad's API has it, with all defaults, in the namespace and region in which `nomad job
        plan` would plan it: its own, else NOMAD_NAMESPACE and NOMAD_REGION.

        Needs parse-job or submit-job, in whichever namespace is given; by default in NOMAD_NAMESPACE. Raises
        `InvalidJobError` where it is no jobspec.
        """
        job = self._parse(hcl, namespace, canonicalize=True)
        ours = (self._namespace or _DEFAULTS[0], self._region or _DEFAULTS[1])
        if ours != _DEFAULTS:
            said = self._parse(hcl, namespace, canonicalize=False)  # which of the two are not just defaults
            job["Namespace"] = said.get("Namespace") or ours[0]
            job["Region"] = said.get("Region") or ours[1]
        return job

    def _parse(self, hcl: str, namespace: str | None, canonicalize: bool) -> Json:
        where = self._where(namespace, None)
        job: Json = self._ask(
            f'parse-job or submit-job in namespace "{where["namespace"]}"',
            (dict,),
            lambda: self._nomad.jobs.request(
                "parse", json={"JobHCL": hcl, "Canonicalize": canonicalize}, params=where, method="post"
            ).json(),
        )
        return job

    def plan(self, job: Json) -> Json:
        """The scheduler's dry run of a job that `parse` returned, with its diff (nomad/api JobPlanResponse).

        Needs plan-job or submit-job. Raises `InvalidJobError` where Nomad would not take the job.
        """
        where = self._where(job["Namespace"], job["Region"])
        planned: Json = self._ask(
            f'plan-job (submit-job before Nomad 1.11.2) in namespace "{where["namespace"]}"',
            (dict,),
            lambda: self._nomad.job.request(
                segment(job["ID"]), "plan", json={"Job": job, "Diff": True}, params=where, method="post"
            ).json(),
        )
        return planned

    def job(self, id: str, namespace: str | None = None, region: str | None = None) -> Json | None:
        """The job as it runs, or last ran; None if there is none. Needs read-job."""
        return self._of_job((id,), namespace, region)

    def deployment(self, id: str, namespace: str | None = None, region: str | None = None) -> Json | None:
        """The latest deployment of a job, ended or not; None if there is none. Needs read-job."""
        return self._of_job((id, "deployment"), namespace, region)

    def _of_job(self, path: tuple[str, ...], namespace: str | None, region: str | None) -> Json | None:
        where = self._where(namespace, region)
        found: Json | None = self._ask(
            f'read-job in namespace "{where["namespace"]}"',
            (dict, type(None)),
            lambda: self._nomad.job.request(*map(segment, path), params=where, method="get").json(),
        )
        return found

    def _where(self, namespace: str | None, region: str | None) -> dict[str, str]:
        region = region or self._region
        return {
            "namespace": namespace or self._namespace or _DEFAULTS[0],
            # Nomad plans a job in "global" in the region of whichever agent it asks (regionForJob in
            # command/agent/job_endpoint.go); what is read has to come from there, too.
            "region": region if region and region != _DEFAULTS[1] else "",
        }

    def _ask(self, capability: str, kinds: tuple[type, ...], call: Callable[[], Any]) -> Any:
        """What the call returns, of these types; `capability` is what the token needs for it."""
        for pause in self._tries():
            try:
                answer = call()
            except BaseNomadException as error:
                failure = error.nomad_resp
                if pause is None or not self._passes(failure):
                    if type(None) in kinds and failures.is_absent(failure):
                        return None
                    raise self._refusal(capability, failure) from error
                pause *= random.uniform(0.5, 1)  # so that many that failed at once do not come back at once
                self._sleep(max(pause, min(failures.retry_after(failure), LONGEST_PAUSE)))
            except requests.RequestException as error:  # no JSON, which python-nomad reads outside of its try
                raise self._is_no_nomad() from error
            else:
                break
        if not isinstance(answer, kinds):
            raise self._is_no_nomad()
        return answer

    def _tries(self) -> Iterator[float | None]:
        """The seconds to wait after each attempt that failed; None after the last."""
        yield from self._pauses
        yield None

    def _passes(self, failure: failures.Failure) -> bool:
        """Whether to ask again."""
        return failures.passes(failure)

    def _is_no_nomad(self) -> NomadError:
        return NomadError(f"{self.address}: answers, but not as Nomad's HTTP API does; is NOMAD_ADDR right?")

    def _refusal(self, capability: str, failure: failures.Failure) -> NomadError:
        """Nomad says "Permission denied" to a token that it does not know, too."""
        if failures.is_unknown_token(failure):
            return ForbiddenError(f"{self.address}: Permission denied; {_UNKNOWN}")
        if isinstance(failure, requests.Response):
            if failure.status_code == 403 and failure.text.strip() == "Permission denied":
                return ForbiddenError(f"{self.address}: Permission denied; {self._lacks(capability)}")
            if failure.status_code == 404:
                return self._is_no_nomad()
            if errors := failures.job_errors(failure, self._version_of(failure)):
                return InvalidJobError(f"{self.address}: the job {errors}")
        return NomadError(f"{self.address}: {failures.reason(failure, self._timeout)}")

    def _lacks(self, capability: str) -> str:
        token = self._nomad.token
        if not token:
            return f"set NOMAD_TOKEN to a token with the ACL capability {capability}"
        if token.count(".") == 2:  # a JWT, of which Nomad does not tell what it is
            return f"NOMAD_TOKEN, a workload identity, lacks the ACL capability {capability}, or has expired"
        try:
            self._nomad.acl.get_self_token()
        except BaseNomadException as error:
            if isinstance(error.nomad_resp, requests.Response):
                return _UNKNOWN
        except requests.RequestException:
            pass
        return f"NOMAD_TOKEN lacks the ACL capability {capability}"

    def _version_of(self, failure: requests.Response) -> Version | None:
        """Asked for only where it says more."""
        try:
            return self.version() if failures.names_unexpected(failure) else None
        except NomadError:
            return None


def segment(text: str) -> str:
    """One part of a path: an ID may have slashes, and python-nomad escapes nothing."""
    return quote(text, safe="")
