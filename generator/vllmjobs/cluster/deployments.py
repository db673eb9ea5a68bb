"""What a release asks of Nomad: to register, promote, fail and revert, and what became of it."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import requests
from nomad.api.exceptions import BaseNomadException

from vllmjobs.cluster import failures
from vllmjobs.cluster.failures import ConflictError, DeploymentEndedError, NotHealthyError, UnsureError
from vllmjobs.cluster.nomad import PAUSES, TIMEOUT, ForbiddenError, Json, NomadError, Where, segment
from vllmjobs.cluster.task_logs import Logs

__all__ = [
    "ConflictError",
    "DeploymentEndedError",
    "ForbiddenError",
    "Json",
    "NomadError",
    "NotHealthyError",
    "Releases",
    "Token",
    "UnsureError",
    "Where",
    "of",
    "where",
]

_PATIENT_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds at most, of which the last is repeated
UPDATE_ATTEMPTS = 10  # each that fails is somebody else's success
_SLACK = 15.0  # seconds that an answer may take above what a blocking query waits: it adds wait / 16
# nomad/structs/acl.go ACLsDisabledToken and AnonymousACLToken.
_NO_ACLS, _ANONYMOUS = "acls-disabled", "anonymous"


class Token(NamedTuple):
    """Who asks, where ACLs are on."""

    accessor: str
    name: str
    """What its owner called it; may be empty."""


def of(job: Json) -> Where:
    """Where a job is that `Cluster.parse` or Nomad returned."""
    return Where(job["ID"], job.get("Namespace") or "", job.get("Region") or "")


def where(
    job: str,
    namespace: str | None = None,
    region: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Where:
    """Where a job is that was not read yet: as an environment says, else NOMAD_NAMESPACE and NOMAD_REGION."""
    return Where(
        job,
        namespace or environ.get("NOMAD_NAMESPACE") or "default",
        region or environ.get("NOMAD_REGION") or "",
    )


class Releases(Logs):
    """The cluster behind NOMAD_ADDR, and its jobs' releases; every method raises `NomadError`.

    A read is asked again as by `Cluster`; a write only where Nomad has surely not begun with it.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        timeout: tuple[float, float] = TIMEOUT,
        pauses: tuple[float, ...] = PAUSES,
        sleep: Callable[[float], None] = time.sleep,
        *,
        patience: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `patience`, what cannot be asked is asked again for so many seconds: while a server restarts,
        its port refuses connections, and other agents answer 5xx in many words. Without, see `Cluster`.
        """  # fmt: skip
        super().__init__(environ, timeout, pauses, sleep)
        self._patience, self._clock = patience, clock

    def register(self, job: Json, check_index: int, source: str | None = None) -> Json:
        """Register a job that `parse` returned, where its JobModifyIndex is still this; 0: it must not exist.

        Returns EvalID, JobModifyIndex and Warnings. `source` is its HCL, which Nomad's UI shows. Raises
        `ConflictError`, `UnsureError`, `InvalidJobError`. Needs submit-job, since Nomad 1.11.2 register-job
        (developer.hashicorp.com/nomad/api-docs/jobs, nomad/job_endpoint.go Register).
        """
        asked: Json = {"Job": job, "EnforceIndex": True, "JobModifyIndex": check_index}
        if source is not None:
            asked["Submission"] = {"Source": source, "Format": "hcl2"}
        there = of(job)
        return self._write(
            f"submit-job (or register-job, since Nomad 1.11.2) {_in(self._at(there))}",
            lambda: self._nomad.jobs.request(json=asked, params=self._at(there), method="post"),
        )

    def promote(self, deployment_id: str, where: Where) -> Json:
        """Promote all canaries of a deployment; once more changes nothing while it has not ended.

        Raises `NotHealthyError`, `DeploymentEndedError`, `UnsureError`. Needs submit-job, since Nomad 1.11.2
        promote-deployment (api-docs/deployments; nomad/state/state_store.go UpdateDeploymentPromotion).
        """
        # Without All and Groups, Nomad answers 200 and promotes none.
        asked = {"DeploymentID": deployment_id, "All": True}
        return self._write(
            f"submit-job (or promote-deployment, since Nomad 1.11.2) {_in(self._at(where))}",
            lambda: self._nomad.deployment.request(
                "promote", segment(deployment_id), json=asked, params=self._at(where), method="post"
            ),
        )

    def fail(self, deployment_id: str, where: Where) -> Json:
        """Fail a deployment: its canaries are stopped, and with auto_revert the last stable version is
        registered anew; RevertedJobVersion says which.

        Raises `DeploymentEndedError`, `UnsureError`. Needs submit-job, since Nomad 1.11.2 fail-deployment
        (api-docs/deployments; nomad/deployment_endpoint.go Fail).
        """
        return self._write(
            f"submit-job (or fail-deployment, since Nomad 1.11.2) {_in(self._at(where))}",
            lambda: self._nomad.deployment.request(
                "fail", segment(deployment_id), json={}, params=self._at(where), method="post"
            ),
        )

    def revert(self, where: Where, version: int, prior_version: int) -> Json:
        """Register an old version anew, where the job's version is still `prior_version`; see `register`.

        Raises `ConflictError`, `UnsureError`. Needs submit-job, since Nomad 1.11.2 revert-job (api-docs/jobs;
        nomad/job_endpoint.go Revert).
        """
        asked = {"JobID": where.id, "JobVersion": version, "EnforcePriorVersion": prior_version}
        return self._write(
            f"submit-job (or revert-job, since Nomad 1.11.2) {_in(self._at(where))}",
            lambda: self._nomad.job.request(
                segment(where.id), "revert", json=asked, params=self._at(where), method="post"
            ),
        )

    def write_variable(self, path: str, items: Mapping[str, str], index: int, where: Where) -> None:
        """Write a Nomad Variable, where its ModifyIndex is still this; 0: it must not exist.

        Raises `ConflictError`, `UnsureError`. Needs the capability `write` on the path (api-docs/variables).
        All items together may have 64 KiB (nomad/structs/variables.go).
        """
        params = {**self._at(where), "cas": index}
        self._write(
            f'write on variable "{path}" {_in(params)}',
            lambda: self._nomad.variable.request(
                quote(path), json={"Items": dict(items)}, params=params, method="post"
            ),
        )

    def update_variable(
        self, path: str, where: Where, change: Callable[[dict[str, str]], dict[str, str] | None]
    ) -> None:
        """Write what `change` makes of the items of a Nomad Variable, unless that is None.

        Again, of what is there by then, where somebody else was faster or the answer got lost. Raises as
        `variable` and `write_variable`.
        """
        for left in reversed(range(UPDATE_ATTEMPTS)):
            items, index = self.variable(path, where)
            if (changed := change(items)) is None:
                return
            try:
                self.write_variable(path, changed, index, where)
            except (ConflictError, UnsureError):
                if not left:
                    raise
            else:
                return

    def versions(self, where: Where) -> list[Json]:
        """The versions of a job that Nomad keeps, the newest first; none where there is no job.

        Needs read-job (api-docs/jobs, List Job Versions).
        """
        found: Json | None = self._read(
            where, dict, lambda at: self._nomad.job.request(segment(where.id), "versions", **at)
        )
        return sorted((found or {}).get("Versions") or (), key=lambda one: one["Version"], reverse=True)

    def deployment_by_id(
        self, id: str, where: Where, index: int = 0, wait: float = 0.0
    ) -> tuple[Json | None, int]:
        """A deployment, and the index with which to wait for the next change of it.

        With an index, Nomad answers when the deployment is newer than that, or after `wait` seconds, at most
        600 (api-docs, Blocking Queries). The index is 0 again where Nomad's went back, as after a restore;
        and there is no waiting for a deployment that is not there: None and 0, at once. Needs read-job.
        """
        waiting = {"index": index, "wait": f"{round(wait * 1000)}ms"} if index and wait else {}
        timeout = (self._timeout[0], max(self._timeout[1], wait * 17 / 16 + _SLACK if waiting else 0))

        def ask() -> tuple[Json, int]:
            answer = self._nomad.deployment.request(
                segment(id), params={**self._at(where), **waiting}, timeout=timeout, method="get"
            )
            return answer.json(), int(answer.headers.get("X-Nomad-Index") or 0)

        found: tuple[Json, int] | None = self._ask(_read_job(self._at(where)), (tuple, type(None)), ask)
        if found is None:
            return None, 0
        if not isinstance(found[0], dict):
            raise self._is_no_nomad()
        return found[0], found[1] if found[1] >= index else 0

    def deployments(self, where: Where) -> list[Json]:
        """The deployments of a job that Nomad keeps, the newest first. Needs read-job (api-docs/jobs)."""
        found: list[Json] | None = self._read(
            where, list, lambda at: self._nomad.job.request(segment(where.id), "deployments", **at)
        )
        return sorted(found or (), key=lambda one: one["CreateIndex"], reverse=True)

    def allocations(self, where: Where) -> list[Json]:
        """The allocations of a job that Nomad keeps, with AllocatedResources, DeploymentStatus, TaskStates.

        Needs read-job (api-docs/allocations; those under /v1/job come without resources).
        """
        params = {"resources": True, "task_states": True, "filter": f"JobID == {json.dumps(where.id)}"}
        found: list[Json] = self._read(
            where, list, lambda at: self._nomad.allocations.request(**at), **params
        )
        return found

    def evaluations(self, where: Where) -> list[Json]:
        """The evaluations of a job that Nomad keeps, the newest first. Needs read-job (api-docs/jobs)."""
        found: list[Json] | None = self._read(
            where, list, lambda at: self._nomad.job.request(segment(where.id), "evaluations", **at)
        )
        return sorted(found or (), key=lambda one: one["CreateIndex"], reverse=True)

    def variable(self, path: str, where: Where) -> tuple[dict[str, str], int]:
        """The items of a Nomad Variable and its ModifyIndex; nothing and 0 where there is none.

        Needs the capability `read` on the path (api-docs/variables).
        """
        params = self._at(where)
        found: Json | None = self._ask(
            f'read on variable "{path}" {_in(params)}',
            (dict, type(None)),
            lambda: self._nomad.variable.request(quote(path), params=params, method="get").json(),
        )
        return (found["Items"], found["ModifyIndex"]) if found else ({}, 0)

    def token(self) -> Token | None:
        """Whose NOMAD_TOKEN is; None where ACLs are off. Needs no capability (api-docs/acl/tokens).

        Raises `ForbiddenError` without a token, with an unknown one, and with a workload identity, which has
        no name (nomad/acl_endpoint.go WhoAmI).
        """
        if (self._nomad.token or "").count(".") == 2:  # a JWT
            said = "NOMAD_TOKEN is a workload identity, which is nobody's; set it to an ACL token"
            raise ForbiddenError(f"{self.address}: {said}")
        try:
            found: Json = self._ask(
                "", (dict,), lambda: self._nomad.acl.request("token", "self", method="get").json()
            )
        except NomadError as error:
            if "ACL support disabled" in str(error):  # of a Nomad before 1.5
                return None
            raise
        if found.get("AccessorID") == _NO_ACLS:
            return None
        if found.get("AccessorID") == _ANONYMOUS:
            raise ForbiddenError(
                f"{self.address}: this cluster has ACLs; set NOMAD_TOKEN, which says who asks"
            )
        return Token(found["AccessorID"], found.get("Name") or "")

    def _read(self, where: Where, kind: type, request: Callable[[Any], Any], **params: Any) -> Any:
        """What a GET under the job's namespace returns; None where it is not there."""
        at = self._at(where)
        asked = {"params": {**at, **params}, "method": "get"}
        return self._ask(_read_job(at), (kind, type(None)), lambda: request(asked).json())

    def _write(self, capability: str, request: Callable[[], requests.Response]) -> Json:
        for pause in self._tries():
            try:
                answer = request().json()
            except BaseNomadException as error:
                failure = error.nomad_resp
                if pause is None or not self._not_begun(failure):
                    raise self._refused(capability, failure) from error
                self._sleep(pause)
            except requests.RequestException as error:
                raise self._is_no_nomad() from error
            else:
                if not isinstance(answer, dict):
                    raise self._is_no_nomad()
                return answer
        raise AssertionError

    def _refused(self, capability: str, failure: failures.Failure) -> NomadError:
        """Why a write failed."""
        if failures.may_be_done(failure):
            said = failures.reason(failure, self._timeout)
            return UnsureError(f"{self.address}: {said} (whether it was done is not known)")
        if refused := failures.refused_write(failure):
            kind, said = refused
            return kind(f"{self.address}: {said}")
        return self._refusal(capability, failure)

    def _tries(self) -> Iterator[float | None]:
        if not self._patience:
            yield from super()._tries()
            return
        until = self._clock() + self._patience
        for pause in itertools.chain(_PATIENT_PAUSES, itertools.repeat(_PATIENT_PAUSES[-1])):
            yield pause if self._clock() < until else None

    def _passes(self, failure: failures.Failure) -> bool:
        if super()._passes(failure):
            return True
        if isinstance(failure, requests.Response):
            return bool(self._patience) and failure.status_code >= 500
        return bool(self._patience) and failures.is_unreachable(failure)

    def _not_begun(self, failure: failures.Failure) -> bool:
        if failures.is_unreachable(failure):
            return bool(self._patience)
        return failures.is_not_begun(failure)


def _in(at: Mapping[str, Any]) -> str:
    return f'in namespace "{at["namespace"]}"'


def _read_job(at: Mapping[str, Any]) -> str:
    return f"read-job {_in(at)}"
