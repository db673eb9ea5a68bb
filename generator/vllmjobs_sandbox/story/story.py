"""The story of a release, told while it happens: each command is the one that a person would type."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import click
import httpx
import openai

from vllmjobs_sandbox.cluster.errors import SandboxError
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import Answer, Trickle, ask, versions

JOB = "vllm-dev"
OLD, NEW = 1024, 2048
CHANGE = f"--set models.chat.max_model_len={NEW}"
CHANGED = f"vllmjobs render dev {CHANGE}"
# Minutes in production; here there is nothing to wait for.
ANALYSIS = "--set 'models.chat.rollout.analysis={window: 5s, interval: 1s, min_requests: 10}'"
SURE = 50  # requests


class Story:
    """The steps from the first run of `dev` to the promotion of a change to it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def tell(self) -> None:
        """Tell it all; the first step that fails ends it with an error that holds the evidence."""
        chapters: list[Callable[[], None]] = [
            self.run,
            self.keep_the_secret,
            self.chat,
            self.plan,
            self.deploy,
            self.ask_the_new_one,
            self.go_through_nginx,
        ]
        for number, chapter in enumerate(chapters, 1):
            title = (chapter.__doc__ or "").rstrip(".")
            click.secho(f"\n{number}. {title}", bold=True)
            began = time.monotonic()
            try:
                chapter()
            except (httpx.HTTPError, openai.OpenAIError) as error:
                raise self._failure(f"{type(error).__name__}: {error}") from error
            click.secho(f"   {time.monotonic() - began:.1f} s", dim=True)

    def run(self) -> None:
        """Render dev and run it."""
        self._type("vllmjobs render dev | nomad job run -detach -")
        deployment = self.sandbox.wait_until_healthy(JOB)
        self._expect(deployment["Status"] == "successful", "a first run needs no promotion")
        nodes = sorted(allocation["NodeName"] for allocation in self.sandbox.allocations(JOB))
        self._said(f"{len(nodes)} healthy, on {', '.join(nodes)}; nothing to promote")

    def keep_the_secret(self) -> None:
        """Look for the token: in the engine, and nowhere in the job."""
        allocation = self.sandbox.allocations(JOB)[0]["ID"][:8]
        token = self._type(f"nomad alloc exec -task vllm {allocation} printenv HF_TOKEN").strip()
        self._expect(token == self.sandbox.hf_token, "the engine has another token than the variable")
        self._said("the engine has what the Nomad Variable nomad/jobs holds")
        job = self._type(f"nomad job inspect {JOB}")
        self._expect(token not in job, "the token stands in the job")
        self._said(f"{len(job.splitlines())} lines, and the token in none of them")

    def chat(self) -> None:
        """Chat through Fabio with the openai client, streamed."""
        answer = self._ask(self.sandbox.fabio_address)
        self._expect(len(answer.pieces) > 1, "the answer came in one piece")
        self._expect(str(OLD) in answer.fingerprint, f"the answer is by {answer.fingerprint!r}")

    def plan(self) -> None:
        """Change the model length, and see what Nomad would do."""
        planned = self._type(f"{CHANGED} | nomad job plan -", allowed=1)
        diff = planned.partition("Scheduler dry-run")[0].strip()
        self._said(diff)
        self._expect("1 canary" in diff, "the change is not released as a canary")

    def deploy(self) -> None:
        """Deploy the change, with requests all the while: a canary, its share, the verdict, the promotion."""
        with Trickle(self.sandbox.fabio_address) as load:
            said = self._type(f"vllmjobs deploy dev --job vllm {CHANGE} {ANALYSIS}")
        self._said(said)
        self._expect("canaries are promoted" in said, "no canary was promoted")
        self._said(f"{load.answered} requests, {len(load.failures)} failed")
        self._expect(load.answered > 0 and not load.failures, "\n".join(load.failures[:5]) or "no requests")

    def ask_the_new_one(self) -> None:
        """See only the new version answer."""
        counts = versions(self.sandbox.fabio_address, SURE)
        self._typed(f"curl {self.sandbox.fabio_address}/v1/models   # {SURE} times")
        self._said(f"max_model_len={NEW}: {counts[NEW]} of {SURE}")
        self._expect(set(counts) == {NEW}, f"answers by others: {dict(counts)}")

    def go_through_nginx(self) -> None:
        """Ask the same through nginx."""
        answer = self._ask(self.sandbox.nginx_address)
        self._expect(str(NEW) in answer.fingerprint, f"the answer is by {answer.fingerprint!r}")

    def _ask(self, address: str) -> Answer:
        self._typed(f'openai.OpenAI(base_url="{address}/v1").chat.completions.create(…, stream=True)')
        answer = ask(address)
        self._said(
            f"{len(answer.pieces)} pieces in {answer.seconds:.2f} s, the first after "
            f"{answer.first_after:.2f} s, from {answer.fingerprint}: "
            f"{''.join(answer.pieces)[:40].strip()}…"
        )
        return answer

    def _type(self, command: str, allowed: int = 0) -> str:
        """Run a command line, after showing it; what it printed."""
        self._typed(command)
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env=self.sandbox.env,
            stdin=subprocess.DEVNULL,
            check=False,
            capture_output=True,
            text=True,
        )
        if ended.returncode not in (0, allowed):
            raise self._failure(f"exit code {ended.returncode}\n{ended.stderr or ended.stdout}")
        return ended.stdout

    def _expect(self, true: bool, otherwise: str) -> None:
        if not true:
            raise self._failure(otherwise)

    def _failure(self, message: str) -> SandboxError:
        return SandboxError(f"{message}\n{self.sandbox.evidence(JOB)}")

    def _typed(self, command: str) -> None:
        click.secho(f"   $ {command}", fg="cyan")

    def _said(self, text: str) -> None:
        click.echo("\n".join(f"   {line}" for line in text.splitlines()))
