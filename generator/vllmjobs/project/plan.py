"""Plans: what the cluster's scheduler would do with the jobs of an environment."""

import shlex
from collections.abc import Mapping, Sequence
from functools import cache

from vllmjobs.changes.model import JobChange
from vllmjobs.changes.planned import planned
from vllmjobs.changes.room.fleet import Node, in_cluster
from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.failures import ForbiddenError, InvalidJobError
from vllmjobs.text.json import Json


class Planner:
    """A reader of plans, which reads the nodes only where something has no room."""

    def __init__(self, cluster: Cluster, namespace: str | None, render: Sequence[str]) -> None:
        """Take the namespace of the jobs, and the command that prints them, without its `--job`."""
        self._cluster, self._namespace, self._render = cluster, namespace, render
        self._nodes = cache(self._read_nodes)

    def plan(self, name: str, hcl: str) -> JobChange:
        """Return the scheduler's dry run of a job, by its name for `render --job`. Raises `NomadError`."""
        return self.plan_parsed(name, self._cluster.parse(hcl, self._namespace))

    def plan_parsed(self, name: str, job: Json) -> JobChange:
        """Return what `plan` does, for a job as Nomad's API has it."""
        where = (job["ID"], job["Namespace"], job["Region"])
        running = self._cluster.job(*where)
        if running and running["Type"] != job["Type"]:  # a plan says nothing of it: nomad/job_endpoint.go
            raise InvalidJobError(
                f"{self._cluster.address}: {job['ID']} runs as a {running['Type']} job, and Nomad refuses to "
                f"make it a {job['Type']} one; give it another name, or stop it with -purge first"
            )
        plan = self._cluster.plan(job)
        return planned(
            name=name,
            job=job,
            running=running,
            plan=plan,
            deployment=self._cluster.deployment(*where) if running else None,
            run=self._run(name, job, plan["JobModifyIndex"] if running else 0),
            nodes=self._nodes(job["Region"]) if plan.get("FailedTGAllocs") else None,
        )

    def _run(self, name: str, job: Json, index: int) -> str:
        render = [*self._render, *([] if name == "vllm" else ["--job", name])]
        options = ["-namespace", job["Namespace"]] if job["Namespace"] != "default" else []
        options += ["-region", job["Region"]] if job["Region"] != "global" else []
        run = ["nomad", "job", "run", *options, "-check-index", str(index), "-"]
        return f"{shlex.join(render)} | {shlex.join(run)}"

    def _read_nodes(self, region: str) -> list[Node] | None:
        try:
            return in_cluster(*self._cluster.nodes(region))
        except ForbiddenError:  # why there is no room can then only be told in part
            return None


def plans(
    jobs: Mapping[str, str], cluster: Cluster, namespace: str | None, render: Sequence[str]
) -> tuple[JobChange, ...]:
    """Return the plan of each job, which is HCL by its name for `render --job`; see `Planner`."""
    planner = Planner(cluster, namespace, render)
    return tuple(planner.plan(name, hcl) for name, hcl in jobs.items())
