"""Deployments: what a release asks of Nomad, to register, promote, fail and revert, and what became of it."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.failures import ConflictError, ForbiddenError, NomadError, UnsureError
from vllmjobs.cluster.job_shapes import JobVersions
from vllmjobs.cluster.nomad import DEFAULT_NAMESPACE, NomadApi, Where, in_namespace
from vllmjobs.cluster.shapes import Evaluation, JobAllocation, JobDeployment, KeptVariable, TokenSelf
from vllmjobs.text.json import Json

UPDATE_ATTEMPTS = 10  # each that fails is somebody else's success
_SLACK = 15.0  # seconds that an answer may take above what a blocking query waits: it adds wait / 16
# nomad/structs/acl.go ACLsDisabledToken and AnonymousACLToken.
_NO_ACLS, _ANONYMOUS = "acls-disabled", "anonymous"


class Token(NamedTuple):
    """The person or program that asks, where ACLs are on."""

    accessor: str
    name: str  # the name that its owner gave the token; may be empty


def where_of(job: Json) -> Where:
    """Return where a job is that `Cluster.parse` or Nomad returned."""
    return Where(job["ID"], job.get("Namespace") or "", job.get("Region") or "")


def where(
    job: str, namespace: str | None = None, region: str | None = None, environ: Mapping[str, str] = os.environ
) -> Where:
    """Return where an unread job is: as an environment says, else in NOMAD_NAMESPACE and NOMAD_REGION."""
    namespace = namespace or environ.get("NOMAD_NAMESPACE") or DEFAULT_NAMESPACE
    return Where(job, namespace, region or environ.get("NOMAD_REGION") or "")


class Deployments:
    """The deployments of a cluster, and what belongs to their jobs; every method raises `NomadError`."""

    def __init__(self, nomad: NomadApi) -> None:
        self.nomad, self.address = nomad, nomad.address
        self.cluster = Cluster(nomad)

    def register(self, job: Json, check_index: int, source: str | None = None) -> Json:
        """Register a job that `parse` returned, where its JobModifyIndex is still this; 0: it must not exist.

        Returns EvalID, JobModifyIndex and Warnings. `source` is its HCL, which Nomad's UI shows. Raises
        `ConflictError`, `UnsureError`, `InvalidJobError`. Needs submit-job, since Nomad 1.11.2 register-job
        (developer.hashicorp.com/nomad/api-docs/jobs, nomad/job_endpoint.go Register).
        """
        body: Json = {"Job": job, "EnforceIndex": True, "JobModifyIndex": check_index}
        if source is not None:
            body["Submission"] = {"Source": source, "Format": "hcl2"}
        return self._write("register-job", where_of(job), self.nomad.api.jobs, json=body)

    def promote(self, deployment_id: str, where: Where) -> Json:
        """Promote all canaries of a deployment; once more changes nothing while it has not ended.

        Raises `NotHealthyError`, `DeploymentEndedError`, `UnsureError`. Needs submit-job, since Nomad 1.11.2
        promote-deployment (api-docs/deployments; nomad/state/state_store.go UpdateDeploymentPromotion).
        """
        # Without All and Groups, Nomad answers 200 and promotes none.
        body = {"DeploymentID": deployment_id, "All": True}
        api = self.nomad.api
        return self._write("promote-deployment", where, api.deployment, "promote", deployment_id, json=body)

    def fail(self, deployment_id: str, where: Where) -> Json:
        """Fail a deployment: its canaries are stopped.

        With auto_revert, the last stable version is registered anew; RevertedJobVersion says which. Raises
        `DeploymentEndedError`, `UnsureError`. Needs submit-job, since Nomad 1.11.2 fail-deployment
        (api-docs/deployments; nomad/deployment_endpoint.go Fail).
        """
        api = self.nomad.api
        return self._write("fail-deployment", where, api.deployment, "fail", deployment_id, json={})

    def revert(self, where: Where, version: int, prior_version: int) -> Json:
        """Register an old version anew, where the job's version is still `prior_version`; see `register`.

        Raises `ConflictError`, `UnsureError`. Needs submit-job, since Nomad 1.11.2 revert-job (api-docs/jobs;
        nomad/job_endpoint.go Revert).
        """
        body = {"JobID": where.id, "JobVersion": version, "EnforcePriorVersion": prior_version}
        return self._write("revert-job", where, self.nomad.api.job, where.id, "revert", json=body)

    def write_variable(self, path: str, items: Mapping[str, str], index: int, where: Where) -> None:
        """Write a Nomad Variable, where its ModifyIndex is still this; 0: it must not exist.

        Raises `ConflictError`, `UnsureError`. Needs the capability `write` on the path (api-docs/variables).
        All items together may have 64 KiB (nomad/structs/variables.go).
        """
        params = {**self._scope(where), "cas": index}
        needed, body = f'write on variable "{path}" {in_namespace(params)}', {"Items": dict(items)}
        self.nomad.write(needed, self.nomad.api.variable, *path.split("/"), json=body, params=params)

    def update_variable(
        self, path: str, where: Where, change: Callable[[dict[str, str]], dict[str, str] | None]
    ) -> None:
        """Write what `change` makes of the items of a Nomad Variable, unless that is None.

        Where somebody else was faster or the answer got lost, `change` is called again with what is there by
        then. Raises as `variable` and `write_variable`.
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
        """Return the versions of a job, newest first; none without a job. Needs read-job (api-docs/jobs)."""
        answer: Json | None = self._read(where, JobVersions, self.nomad.api.job, where.id, "versions")
        return sorted((answer or {}).get("Versions") or (), key=lambda one: one["Version"], reverse=True)

    def deployment_by_id(
        self, id: str, where: Where, index: int = 0, wait: float = 0.0
    ) -> tuple[Json | None, int]:
        """Return a deployment, and the index with which to wait for the next change of it.

        With an index, Nomad answers when the deployment is newer than that, or after `wait` seconds, at most
        600 (api-docs, Blocking Queries). The index is 0 again where Nomad's went back, as after a restore;
        and there is no waiting for a deployment that is not there: None and 0, at once. Needs read-job.
        """
        deadline = self.nomad.deadline
        wait = min(wait, deadline.left() or wait)
        waiting = {"index": index, "wait": f"{round(wait * 1000)}ms"} if index and wait else {}
        connect, answer_s = deadline.within(self.nomad.timeout)
        deployment, newest = self.nomad.read_with_index(
            _read_job(scope := self._scope(where)),
            JobDeployment | None,
            self.nomad.api.deployment,
            id,
            params={**scope, **waiting},
            timeout=(connect, max(answer_s, wait * 17 / 16 + _SLACK if waiting else 0)),
        )
        return deployment, newest if newest >= index else 0

    def of_job(self, where: Where) -> list[Json]:
        """Return the deployments of a job that Nomad keeps, newest first. Needs read-job (api-docs/jobs)."""
        return self._newest(where, JobDeployment, "deployments")

    def evaluations(self, where: Where) -> list[Json]:
        """Return the evaluations of a job that Nomad keeps, newest first. Needs read-job (api-docs/jobs)."""
        return self._newest(where, Evaluation, "evaluations")

    def allocations(self, where: Where) -> list[Json]:
        """Return the allocations of a job that Nomad keeps, with resources, DeploymentStatus and TaskStates.

        Needs read-job (api-docs/allocations; those under /v1/job come without resources).
        """
        params = {"resources": True, "task_states": True, "filter": f"JobID == {json.dumps(where.id)}"}
        scope, api = self._scope(where), self.nomad.api.allocations
        allocations: list[Json] = self.nomad.read(
            _read_job(scope), list[JobAllocation], api, params=scope | params
        )
        return allocations

    def variable(self, path: str, where: Where) -> tuple[dict[str, str], int]:
        """Return items and ModifyIndex of a Nomad Variable, or nothing and 0. Needs `read` on the path."""
        scope = self._scope(where)
        needed = f'read on variable "{path}" {in_namespace(scope)}'
        variable: Json | None = self.nomad.read(
            needed, KeptVariable | None, self.nomad.api.variable, *path.split("/"), params=scope
        )
        return (variable["Items"], variable["ModifyIndex"]) if variable else ({}, 0)

    def token(self) -> Token | None:
        """Return whose NOMAD_TOKEN is; None where ACLs are off. Needs no capability (api-docs/acl/tokens).

        Raises `ForbiddenError` without a token, with an unknown one, and with a workload identity, which has
        no name (nomad/acl_endpoint.go WhoAmI).
        """
        if (self.nomad.api.token or "").count(".") == 2:  # a JWT
            message = "NOMAD_TOKEN is a workload identity, which stands for no person; set it to an ACL token"
            raise ForbiddenError(f"{self.address}: {message}")
        try:
            token: Json = self.nomad.read("", TokenSelf, self.nomad.api.acl, "token", "self")
        except NomadError as error:
            if "ACL support disabled" in str(error):  # of a Nomad before 1.5
                return None
            raise
        if token.get("AccessorID") == _NO_ACLS:
            return None
        if token.get("AccessorID") == _ANONYMOUS:
            way_out = "set NOMAD_TOKEN to your token, so that Nomad knows who you are"
            raise ForbiddenError(f"{self.address}: this cluster has ACLs; {way_out}")
        return Token(token["AccessorID"], token.get("Name") or "")

    def _scope(self, where: Where) -> dict[str, Any]:
        return self.nomad.scope(where.namespace, where.region)

    def _newest(self, where: Where, shape: Any, name: str) -> list[Json]:
        objects: list[Json] | None = self._read(where, list[shape], self.nomad.api.job, where.id, name)
        return sorted(objects or (), key=lambda one: one["CreateIndex"], reverse=True)

    def _read(self, where: Where, shape: Any, endpoint: Any, *path: str) -> Any:
        """Return what is read with read-job in the job's namespace; None where it is not there."""
        scope = self._scope(where)
        return self.nomad.read(_read_job(scope), shape | None, endpoint, *path, params=scope)

    def _write(self, capability: str, where: Where, endpoint: Any, *path: str, json: Json) -> Json:
        """Write with submit-job or, since Nomad 1.11.2, the capability of this one request."""
        scope = self._scope(where)
        needed = f"submit-job (or {capability}, since Nomad 1.11.2) {in_namespace(scope)}"
        return self.nomad.write(needed, endpoint, *path, json=json, params=scope)


def _read_job(scope: Mapping[str, Any]) -> str:
    return f"read-job {in_namespace(scope)}"
