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

    def __init__(self, cluster: Cluster, render: Sequence[str]) -> None:
        """Take the command that prints the jobs, without its `--job`."""
        self._cluster, self._render = cluster, render
        self._nodes = cache(self._read_nodes)

    def plan(self, name: str, job: Json) -> JobChange:
        """Return the scheduler's dry run of a job; `name` is for `render --job`. Raises `NomadError`."""
        where = (job["ID"], job["Namespace"], job["Region"])
        running = self._cluster.job(*where)
        if running and running["Type"] != job["Type"]:  # a plan says nothing of it: nomad/job_endpoint.go
            raise InvalidJobError(
                f"{self._cluster.address}: {job['ID']} runs as a {running['Type']} job, and Nomad refuses to "
                f"make it a {job['Type']} job; give it another name, or run `nomad job stop -purge` first"
            )
        plan = self._cluster.plan(job)
        render = [*self._render, *([] if name == "vllm" else ["--job", name])]
        options = ["-namespace", job["Namespace"]] if job["Namespace"] != "default" else []
        options += ["-region", job["Region"]] if job["Region"] != "global" else []
        index = str(plan["JobModifyIndex"] if running else 0)
        run = ["nomad", "job", "run", *options, "-check-index", index, "-"]
        return planned(
            name=name,
            job=job,
            running=running,
            plan=plan,
            deployment=self._cluster.deployment(*where) if running else None,
            run=f"{shlex.join(render)} | {shlex.join(run)}",
            nodes=self._nodes(job["Region"]) if plan.get("FailedTGAllocs") else None,
        )

    def _read_nodes(self, region: str) -> list[Node] | None:
        try:
            return in_cluster(*self._cluster.nodes(region))
        except ForbiddenError:  # why there is no room can then only be told in part
            return None


def plans(
    jobs: Mapping[str, str], cluster: Cluster, namespace: str | None, render: Sequence[str]
) -> tuple[JobChange, ...]:
    """Return the plan of each job, which is HCL by its name for `render --job`; see `Planner`."""
    planner = Planner(cluster, render)
    return tuple(planner.plan(name, cluster.parse(hcl, namespace)) for name, hcl in jobs.items())
