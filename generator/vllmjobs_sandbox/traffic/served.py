"""A release whose old version is asked all the while, for what goes wrong while a change is deployed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import Trickle, versions

OLD, NEW, NEWER = 1024, 2048, 1536
DEPLOYED, FAILED, NO_ROOM, REFUSED = 0, 1, 3, 4
SETTLED = 30.0  # seconds


@dataclass
class Life:
    """A release that several tests live through: between two of them, one version serves alone."""

    release: Release
    length: int = OLD
    """The max_model_len of what serves."""
    count: int = 1
    """The number of its instances."""

    @property
    def other(self) -> int:
        """Return a max_model_len to deploy."""
        return NEW if self.length == OLD else OLD

    @property
    def version(self) -> int:
        """Return the newest version of the job."""
        version: int = self.release.sandbox.nomad.job.get_job(self.release.job)["Version"]
        return version

    def settles_at(self, length: int) -> None:
        """Wait until one version serves alone; hold that no share is left at the balancer."""
        self.length = length
        wait_until(
            lambda: (
                len(self.release.allocations()) == self.count
                and versions(self.release.address, 20) == {length: 20}
            ),
            SETTLED,
            f"{self.count} of {length} serve alone",
            evidence=lambda: self.release.sandbox.evidence(self.release.job),
        )
        assert [key for key in keys(self.release.sandbox) if self.release.job in key] == []


class Served:
    """A life that is asked ten times a second during a test."""

    def __init__(self, life: Life, load: Trickle) -> None:
        self.life, self.release, self.sandbox, self._load = life, life.release, life.release.sandbox, load
        self.old = {one["ID"] for one in self.release.allocations()}
        self.old_length, self.new = life.length, life.other
        self.is_forgiven: Callable[[str], bool] = lambda _: False
        """A predicate for failures that are expected: of a canary that fails, not of the old version."""

    def is_unhurt(self) -> None:
        """Hold that no request failed that the old version was to answer."""
        assert self._load.answered > 0
        failures = [said for said in self._load.failures if not self.is_forgiven(said)]
        assert not failures, "\n".join(failures)

    def still_serves(self) -> None:
        """Hold that the very same old instances serve, and nothing else."""
        self.life.settles_at(self.old_length)
        assert {one["ID"] for one in self.release.allocations()} == self.old
        self.is_unhurt()

    def serves_the_new(self) -> None:
        """Hold that the new version serves alone."""
        self._is_deployed(self.new)

    def serves_the_old_again(self) -> None:
        """Hold that the old version serves alone, in instances that may be other ones."""
        self._is_deployed(self.old_length)

    def _is_deployed(self, length: int) -> None:
        self.life.settles_at(length)
        assert self.sandbox.deployment(self.release.job)["Status"] == "successful"
        self.is_unhurt()


def keys(sandbox: Sandbox) -> list[str]:
    """Return the keys of Consul that hold shares."""
    return [key for top in ("fabio/", "vllmjobs/") for key in sandbox.consul.kv.get(top, keys=True)[1] or ()]


def serving(release: Release, count: int = 1, /, **chat: Any) -> Life:
    """Run a release with so many instances, until it is routed."""
    release.run(**chat)
    release.wait_until_routed(OLD)
    return Life(release, count=count)


@contextmanager
def asking(life: Life) -> Iterator[Served]:
    """Ask it all the while."""
    with Trickle(life.release.address, per_second=10) as load:
        yield Served(life, load)


def on(operator: str, node: str) -> str:
    """Return the constraint for a node, or for any other."""
    return f'[{{attribute: "${{node.unique.name}}", operator: "{operator}", value: "{node}"}}]'


def anywhere_but(node: str) -> dict[str, Any]:
    """Return the settings that keep a release from a node."""
    return {"placement.constraints": on("!=", node)}


def failure(mode: str) -> dict[str, Any]:
    """Return the settings for a failure of the stand-in engine."""
    return {"env.VLLMJOBS_STANDIN_FAILURE": mode}


def slow(tokens_per_second: int) -> dict[str, Any]:
    """Return the settings for an engine of so many tokens a second."""
    return {"env.VLLMJOBS_STANDIN_TOKENS_PER_SECOND": tokens_per_second}


SILENT: dict[str, Any] = {"rollout.analysis.probe": "false"}
