"""A project on a forge: its environments on a sandbox, and its pipeline, run as GitHub and GitLab do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vllmjobs.vllm.releases import NEWEST
from vllmjobs_sandbox.cluster import ports
from vllmjobs_sandbox.cluster.programs import CHECKOUT
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.fakes.forge import CI, Forge, Ran, forge, run_github, run_gitlab

DEV = """\
extends: base.yaml
job: {prefix}-dev
nomad:
  max_kill_timeout: 2m
balancer:
  driver: raw_exec # vllmjobs: ignore VJ505 a sandbox has no other
  consul: {consul}
  port: {port}
  admin_port: {admin_port}
  placement:
    constraints: [{{attribute: "${{meta.balancer}}", value: "true"}}]
defaults:
  driver: raw_exec # vllmjobs: ignore VJ505 a sandbox has no other
  vllm: {newest}
  entrypoint: [stand-in-engine, serve]
  cache: null
models:
  chat:
    model: facebook/opt-125m
    max_model_len: 1024
    gpu_memory_utilization: 0.7
    gpus: {{memory: 7 GiB}}
    resources: {{cpu: 100, memory: 256 MiB, disk: 100 MiB}}
    route: {{path: /{prefix}/v1/, strip: /{prefix}}}
    health: {{interval: 1s, timeout: 1s}}
    drain: {{longest_stream: 10s, shutdown_delay: 3s}} # vllmjobs: ignore VJ405 nobody waits here
    pull_time: 1s
    load_time: 4s
    env: {{VLLMJOBS_STANDIN_LOAD_SECONDS: "0.5", VLLMJOBS_STANDIN_EXIT_SECONDS: "0.2"}}
    rollout:
      steps: [0.5]
      analysis: {{interval: 1s, window: 3s, min_requests: 5}} # vllmjobs sends the requests itself
      min_healthy_time: 1s
      healthy_deadline: 2m
      progress_deadline: 3m
"""
OTHER = """\
extends: dev.yaml
job: {prefix}-{name}
balancer: {{kind: none}}
models: {{chat: {{rollout: {{steps: []}}}}}} # nobody could send canaries another share
"""
ENVIRONMENTS = ("dev", "staging", "prod")


class Project:
    """A user's working copy, its remote, and the forge that both are on."""

    def __init__(
        self, folder: Path, prefix: str, sandbox: Sandbox, there: Forge, balancer: tuple[int, int]
    ) -> None:
        self.folder, self.prefix, self.sandbox, self.there = folder / "work", prefix, sandbox, there
        own = ("GITHUB_", "GITLAB_", "CI_", "GIT_", "VLLMJOBS_")
        outside = {key: value for key, value in sandbox.env.items() if not key.startswith(own)}
        self.env = outside | {
            "NOMAD_TOKEN": "",
            "no_proxy": "*",
            **{
                f"GIT_{who}_{what}": "ada@example.com"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin.git"), at=folder)
        self.git("clone", "--quiet", str(folder / "origin.git"), str(self.folder), at=folder)
        self.git("checkout", "--quiet", "-b", "main")
        self._lay_out(*balancer)
        self.commit("Three environments")
        self.git("push", "--quiet", "origin", "main")

    def git(self, *words: str, at: Path | None = None) -> str:
        """Run git in the working copy, or elsewhere."""
        return subprocess.check_output(
            ["git", *words], cwd=at or self.folder, env=self.env, text=True
        ).strip()

    def commit(self, message: str) -> None:
        """Commit all that is there."""
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", message)

    def change(self, before: str, after: str) -> None:
        """Commit a change of envs/dev.yaml, which the others extend."""
        dev = self.folder / "envs/dev.yaml"
        text = dev.read_text()
        assert before in text
        dev.write_text(text.replace(before, after))
        self.commit(after)

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """Work on a branch, and then be on main again."""
        self.git("checkout", "--quiet", "-b", name)
        try:
            yield
        finally:
            self.git("checkout", "--quiet", "--force", "main")

    def newest(self, name: str) -> dict[str, Any]:
        """Return the newest deployment of an environment's models."""
        return self.sandbox.deployment(f"{self.prefix}-{name}")

    def max_model_len(self, name: str) -> str:
        """Return what the engines that run were started with."""
        job = self.sandbox.nomad.job.get_job(f"{self.prefix}-{name}")
        (task,) = (task for task in job["TaskGroups"][0]["Tasks"] if task["Name"] == "vllm")
        (said,) = (arg for arg in task["Config"]["args"] if arg.startswith("--max-model-len"))
        assert isinstance(said, str)
        return said.partition("=")[2]

    def statuses(self, name: str, after: int = -1) -> dict[int, str]:
        """Return how the deployments of an environment's models ended, by version."""
        found = self.sandbox.nomad.job.get_deployments(f"{self.prefix}-{name}")
        return {one["JobVersion"]: one["Status"] for one in found if one["JobVersion"] > after}

    def jobs(self) -> set[str]:
        """Return the jobs that Nomad knows of this project, throwaway ones included."""
        known = (job["ID"] for job in self.sandbox.nomad.jobs.get_jobs())
        return {job for job in known if job.startswith((f"{self.prefix}-", "vllm-ci-"))}

    def _lay_out(self, port: int, admin_port: int) -> None:
        """Write the three environments; dev has a balancer with these ports."""
        envs = self.folder / "envs"
        envs.mkdir()
        shutil.copy(CHECKOUT / "envs/base.yaml", envs)
        consul = self.sandbox.consul_address.removeprefix("http://")
        dev = DEV.format(prefix=self.prefix, consul=consul, port=port, admin_port=admin_port, newest=NEWEST)
        (envs / "dev.yaml").write_text(dev)
        for name in ("staging", "prod"):
            (envs / f"{name}.yaml").write_text(OTHER.format(prefix=self.prefix, name=name))
        shutil.copytree(CI, self.folder / "ci")
        (self.folder / ".gitignore").write_text("/rendered/\n/diff.md\n/plan.md\n/security.sarif\n")


class OnGitHub(Project):
    """A project whose pipeline GitHub Actions runs."""

    def deploy(self, name: str, cancel_at: str | None = None) -> Ran:
        """Run the job that deploys an environment, as after a merge."""
        return self.run(f"deploy-{name}", "push", cancel_at=cancel_at)

    def run(
        self,
        job: str,
        event: str = "pull_request",
        head: str = "ada/llms",
        cancel_at: str | None = None,
        **matrix: str,
    ) -> Ran:
        """Run a job; lint decides first whether the pull request is trusted."""
        request = {"number": 7, "head": {"repo": {"full_name": head}}, "user": {"login": "ada"}}
        context: dict[str, Any] = {
            "github": {
                "event_name": event,
                "repository": "ada/llms",
                "run_id": 4711,
                "token": "of-the-bot",
                "event": {"pull_request": request} if event == "pull_request" else {},
            },
            "vars": {
                "NOMAD_ADDR": self.sandbox.nomad_address,
                "CONSUL_HTTP_ADDR": self.sandbox.consul_address,
                "REVIEWED": "yes",
            },
            "secrets": {},
            "matrix": matrix,
            "needs": {"lint": {"outputs": {"trusted": "true" if head == "ada/llms" else "false"}}},
        }
        summary = self.folder.parent / "summary.md"
        env = {
            **{key: value for key, value in self.env.items() if not key.startswith(("NOMAD_", "CONSUL_"))},
            **self.there.github(),
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_BASE_REF": "main",
        }
        return run_github(job, self.folder, env, context, cancel_at)


class OnGitLab(Project):
    """A project whose pipeline GitLab runs."""

    def deploy(self, name: str) -> Ran:
        """Run the job that deploys an environment, as after a merge."""
        return self.run(f"deploy-{name}", CI_ENVIRONMENT_NAME=name)

    def run(self, job: str, **variables: str) -> Ran:
        """Run a job with these variables of GitLab's."""
        base = self.git("merge-base", "origin/main", "HEAD")
        env = {**self.env, **self.there.gitlab(), "CI_MERGE_REQUEST_DIFF_BASE_SHA": base, "CI_JOB_ID": "4711"}
        return run_gitlab(job, self.folder, env | variables)


P = TypeVar("P", bound=Project)


@contextmanager
def pipeline(kind: type[P], prefix: str, sandbox: Sandbox, folder: Path) -> Iterator[P]:
    """Make a project whose jobs begin with the prefix, and take them away at the end."""
    block = ports.take_block()
    with forge() as there:
        made = kind(folder, prefix, sandbox, there, (block.take(), block.take()))
        yield made
        sandbox.purge(*made.jobs())
    block.release()


def passed(ran: Ran) -> str:
    """Return what a job printed, once it is known that it was run and ended well."""
    assert not ran.skipped
    assert ran.exit_code == 0, ran.output
    return ran.output
