"""A cluster: its nodes and their GPUs, and its jobs as they run, are read and are planned."""

from collections.abc import Mapping
from typing import Any

from vllmjobs.cluster.failures import ForbiddenError
from vllmjobs.cluster.job_shapes import CanonicalJob, ParsedJob, Plan, RegisteredJob
from vllmjobs.cluster.nomad import DEFAULT_NAMESPACE, DEFAULT_REGION, NomadApi, in_namespace
from vllmjobs.cluster.shapes import HeldAllocation, JobDeployment, ListedNode, WholeNode
from vllmjobs.gpus import cards
from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs.text.json import Json
from vllmjobs.text.states import ENDED

# The scheduler frees devices by this status alone: nomad/structs/devices.go AddAllocs.
_NOT_ENDED = " and ".join(f'ClientStatus != "{status}"' for status in ENDED)


class Cluster:
    """The nodes of a cluster, and its jobs. All methods only read, `plan` too, and raise `NomadError`."""

    def __init__(self, nomad: NomadApi) -> None:
        self.nomad, self.address = nomad, nomad.address

    def devices(self, region: str | None = None) -> list[cards.Card]:
        """Return every GPU of every node of a region, and the allocations that hold it: see `nodes`."""
        return cards.in_cluster(*self.nodes(region))

    def nodes(self, region: str | None = None) -> tuple[list[Json], list[Json] | None]:
        """Return every node of a region, and the allocations on them in all namespaces, with their resources.

        A node that a supervisor has fenced has its Meta, too, which Nomad has in no list.

        Needs the ACL capability node:read. Allocations need read-job: a token that has it nowhere gets None;
        for one that has it in some namespaces, Nomad hides those of the others without a word, so that what
        they hold looks free (nomad/alloc_endpoint.go List).
        """
        scope, api, read = self.nomad.scope("*", region), self.nomad.api, self.nomad.read
        nodes: list[Json] = read(
            "node:read", list[ListedNode], api.nodes, params={**scope, "resources": True}
        )
        # The filter is asked of whole nodes: nomad/node_endpoint.go List.
        is_fenced = {**scope, "filter": f'"{FENCE_META}" in Meta'}
        fenced: list[Json] = read("node:read", list[ListedNode], api.nodes, params=is_fenced)
        meta = {one["ID"]: self._meta(one["ID"], scope) for one in fenced}
        nodes = [{**node, "Meta": meta.get(node["ID"])} for node in nodes]
        held = {**scope, "resources": True, "task_states": False, "filter": _NOT_ENDED}
        try:
            allocations: list[Json] = read(
                "namespace:read-job", list[HeldAllocation], api.allocations, params=held
            )
        except ForbiddenError:
            return nodes, None
        return nodes, allocations

    def _meta(self, node: str, scope: Mapping[str, str]) -> Json | None:
        """Return a node's Meta; None where there is no such node any more."""
        answer: Json | None = self.nomad.read(
            "node:read", WholeNode | None, self.nomad.api.node, node, params={**scope}
        )
        return (answer or {}).get("Meta")

    def parse(self, hcl: str, namespace: str | None = None) -> Json:
        """Return a job as Nomad's API has it, with all defaults.

        It is in the namespace and region in which `nomad job plan` would plan it: its own, else
        NOMAD_NAMESPACE and NOMAD_REGION. Needs parse-job or submit-job, in whichever namespace is given; by
        default in NOMAD_NAMESPACE. Raises `InvalidJobError` where it is no jobspec.
        """
        job = self._parse(hcl, namespace, canonicalize=True)
        ours = (self.nomad.namespace or DEFAULT_NAMESPACE, self.nomad.region or DEFAULT_REGION)
        if ours != (DEFAULT_NAMESPACE, DEFAULT_REGION):
            written = self._parse(hcl, namespace, canonicalize=False)  # which are not just defaults
            job["Namespace"] = written.get("Namespace") or ours[0]
            job["Region"] = written.get("Region") or ours[1]
        return job

    def _parse(self, hcl: str, namespace: str | None, canonicalize: bool) -> Json:
        scope = self.nomad.scope(namespace)
        needed = f"parse-job or submit-job {in_namespace(scope)}"
        body = {"JobHCL": hcl, "Canonicalize": canonicalize}
        shape = CanonicalJob if canonicalize else ParsedJob
        job: Json = self.nomad.read(
            needed, shape, self.nomad.api.jobs, "parse", method="post", json=body, params=scope
        )
        return job

    def plan(self, job: Json) -> Json:
        """Return the scheduler's dry run of a job that `parse` returned, with its diff.

        It is a JobPlanResponse of nomad/api. Needs plan-job or submit-job. Raises `InvalidJobError` where
        Nomad would not take the job.
        """
        scope = self.nomad.scope(job["Namespace"], job["Region"])
        needed = f"plan-job (submit-job before Nomad 1.11.2) {in_namespace(scope)}"
        body = {"Job": job, "Diff": True}
        planned: Json = self.nomad.read(
            needed, Plan, self.nomad.api.job, job["ID"], "plan", method="post", json=body, params=scope
        )
        return planned

    def job(self, id: str, namespace: str | None = None, region: str | None = None) -> Json | None:
        """Return the job as it runs, or last ran; None if there is none. Needs read-job."""
        return self._read_job(RegisteredJob | None, (id,), namespace, region)

    def deployment(self, id: str, namespace: str | None = None, region: str | None = None) -> Json | None:
        """Return the latest deployment of a job, ended or not; None if there is none. Needs read-job."""
        return self._read_job(JobDeployment | None, (id, "deployment"), namespace, region)

    def _read_job(
        self, shape: Any, path: tuple[str, ...], namespace: str | None, region: str | None
    ) -> Json | None:
        scope = self.nomad.scope(namespace, region)
        needed = f"read-job {in_namespace(scope)}"
        answer: Json | None = self.nomad.read(needed, shape, self.nomad.api.job, *path, params=scope)
        return answer
