"""Everything that a person does with the jobs of a sandbox: render, run, wait, look, promote, purge."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nomad
from consul import Consul

from vllmjobs.cli.common import Selection
from vllmjobs.cli.render import render as render_command
from vllmjobs.render.job import render
from vllmjobs.text.json import Json
from vllmjobs_sandbox.cluster import evidence
from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.process import wait_until

HEALTHY = 180.0  # seconds for a deployment
GONE = 90.0  # seconds for allocations to end
ENDED = ("complete", "failed", "lost")


def holder(
    group: str, gpus: int = 1, count: int = 1, node: str = "", memory: int = 32, more: str = ""
) -> str:
    """Return a group of a job whose instances only hold GPUs and MiB of memory, on a node if one is named."""
    device = f'device "nvidia/gpu" {{\n          count = {gpus}\n        }}' if gpus else ""
    constraint = f"""constraint {{
      attribute = "${{node.unique.name}}"
      value     = "{node}"
    }}"""
    return f"""
  group "{group}" {{
    count = {count}
    {constraint if node else ""}
    {more}
    task "sleep" {{
      driver = "raw_exec"
      config {{
        command = "sleep"
        args    = ["600"]
      }}
      resources {{
        cpu    = 50
        memory = {memory}
        {device}
      }}
    }}
  }}
"""


class Jobs:
    """The jobs of one running sandbox."""

    folder: Path
    env: dict[str, str]  # of a shell in which `nomad`, `consul` and `vllmjobs` reach the sandbox
    nomad: nomad.Nomad
    consul: Consul

    def render(self, *args: str) -> str:
        """Render a job as `vllmjobs render` with these arguments; `dev` is the sandbox's own environment."""
        words = ["--project", str(self.folder), *args]
        given = render_command.make_context("render", words).params
        selection = Selection(given["env"], given["settings"], given["project"])
        return render(selection.environment, given["job"] or "vllm", selection.templates, given["model"])

    def nomad_cli(self, *args: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the `nomad` command."""
        return subprocess.run(
            [self.folder / "bin" / "nomad", *args],
            input=input,
            env=self.env,
            check=False,
            capture_output=True,
            text=True,
        )

    def run(self, hcl: str) -> None:
        """Run a job, as in `vllmjobs render … | nomad job run -detach -`."""
        job = self.nomad.jobs.parse(hcl) | {"ConsulToken": self.env.get("CONSUL_HTTP_TOKEN", "")}
        body = {"Job": job, "Submission": {"Source": hcl, "Format": "hcl2"}}
        # register_job knows one namespace, which is not the job's own.
        self.nomad.jobs.request(json=body, params={"namespace": job["Namespace"]}, method="post")

    def plan(self, hcl: str) -> Json:
        """Ask what running this job would do; Diff, Annotations and FailedTGAllocs tell."""
        job = self.nomad.jobs.parse(hcl)
        planned: Json = self.nomad.job.plan_job(job["ID"], {"Job": job}, diff=True)
        return planned

    def deployment(self, job: str) -> Json:
        """Return the newest deployment of a job; empty when there is none."""
        return self.nomad.job.get_deployment(job) or {}

    def allocations(self, job: str) -> list[Json]:
        """List a job's allocations that have not ended."""
        found: list[Json] = self.nomad.job.get_allocations(job)
        return [allocation for allocation in found if allocation["ClientStatus"] not in ENDED]

    def wait_until_healthy(self, job: str, seconds: float = HEALTHY) -> Json:
        """Wait until a job is as healthy as it gets without a promotion; return the deployment."""
        return wait_until(
            lambda: self._healthy(job), seconds, f"{job} is healthy", evidence=lambda: self.evidence(job)
        )

    def promote(self, job: str) -> None:
        """Promote the canaries of the newest deployment."""
        self.nomad.deployment.promote_deployment_all(self.deployment(job)["ID"])

    def purge(self, *jobs: str) -> None:
        """Stop and forget jobs, and wait until nothing of them runs."""
        for job in jobs:
            # python-nomad's deregister_job cannot ask for no_shutdown_delay.
            self.nomad.job.request(job, params={"no_shutdown_delay": "true"}, method="delete")
        wait_until(
            lambda: not any(map(self.allocations, jobs)),
            GONE,
            f"{', '.join(jobs)} stopped",
            evidence=lambda: "\n".join(map(self.evidence, jobs)),
        )
        for job in jobs:  # only now: from a purge on, Nomad lists none of its allocations, running or not
            self.nomad.job.deregister_job(job, purge="true")

    def evidence(self, job: str) -> str:
        """Say what a person would look at when a job does not get healthy."""
        return evidence.of_job(self.nomad, job, self.folder)

    def node(self, name: str) -> Json:
        """Return a node by its name."""
        ids = {node["Name"]: node["ID"] for node in self.nomad.nodes.get_nodes()}
        found: Json = self.nomad.node.get_node(ids[name])
        return found

    def gpus(self, node: str) -> dict[str, bool]:
        """Return the GPUs that Nomad sees on a node: their IDs, and whether they are healthy."""
        groups: Sequence[Json] = self.node(node)["NodeResources"]["Devices"] or []
        return {gpu["ID"]: gpu["Healthy"] for group in groups for gpu in group["Instances"]}

    def _healthy(self, job: str) -> Json | None:
        spec = self.nomad.job.get_job(job)
        deployment = self.deployment(job)
        if deployment.get("JobVersion") != spec["Version"] or not is_settled(deployment):
            return None
        if deployment["Status"] in ("failed", "cancelled"):
            said = f"the deployment of {job} is {deployment['Status']}: {deployment['StatusDescription']}"
            raise SandboxError(f"{said}\n{self.evidence(job)}")
        return deployment

    def _run(self, command: list[str], input: str | None = None) -> str:
        program = self.folder / "bin" / command[0]
        ended = subprocess.run(
            [program, *command[1:]], input=input, env=self.env, check=False, capture_output=True, text=True
        )
        if ended.returncode:
            said = (ended.stderr or ended.stdout).strip()
            raise SandboxError(f"exit code {ended.returncode} from: {' '.join(command)}\n{said}")
        return ended.stdout


def is_settled(deployment: Mapping[str, Any]) -> bool:
    """Tell whether nothing more happens to a deployment before somebody promotes it."""
    if deployment["Status"] != "running":
        return True
    canaries = [group for group in deployment["TaskGroups"].values() if group["DesiredCanaries"]]
    return bool(canaries) and all(
        not group["Promoted"] and group["HealthyAllocs"] >= group["DesiredCanaries"] for group in canaries
    )
