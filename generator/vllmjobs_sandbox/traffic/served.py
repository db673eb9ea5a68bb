"""A release whose old version is asked all the while, for what goes wrong while a change is deployed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.release import Release
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.requests import Load, versions

OLD, NEW, NEWER = 1024, 2048, 1536
DEPLOYED, FAILED, NO_ROOM, REFUSED = 0, 1, 3, 4
SETTLED = 30.0  # seconds


class Served:
    """A release whose old version is asked ten times a second."""

    def __init__(self, release: Release, load: Load) -> None:
        self.release, self.sandbox, self._load = release, release.sandbox, load
        self.old = {one["ID"] for one in release.allocations()}
        self.is_forgiven: Callable[[str], bool] = lambda _: False
        """A predicate for failures that are expected: of a canary that fails, not of the old version."""

    def is_unhurt(self) -> None:
        """Hold that no request failed that the old version was to answer."""
        assert self._load.answered > 0
        failures = [said for said in self._load.failures if not self.is_forgiven(said)]
        assert not failures, "\n".join(failures)

    def still_serves(self) -> None:
        """Hold that the very same old instances serve, and nothing else; no share is left at the balancer."""
        self._settles_at(OLD)
        assert {one["ID"] for one in self.release.allocations()} == self.old
        self.is_unhurt()

    def serves_the_new(self) -> None:
        """Hold that the new version serves alone."""
        self._settles_at(NEW)
        assert self.sandbox.deployment(self.release.job)["Status"] == "successful"
        self.is_unhurt()

    def serves_the_old_again(self) -> None:
        """Hold that the old version serves alone, in instances that may be other ones."""
        self._settles_at(OLD)
        assert self.sandbox.deployment(self.release.job)["Status"] == "successful"
        self.is_unhurt()

    def _settles_at(self, length: int) -> None:
        wait_until(
            lambda: (
                len(self.release.allocations()) == 2 and versions(self.release.address, 20) == {length: 20}
            ),
            SETTLED,
            f"two instances of {length} serve alone",
            evidence=lambda: self.sandbox.evidence(self.release.job),
        )
        left = [key for key in keys(self.sandbox) if self.release.job in key]
        assert left == []


def keys(sandbox: Sandbox) -> list[str]:
    """Return the keys of Consul that hold shares."""
    return [key for top in ("fabio/", "vllmjobs/") for key in sandbox.consul.kv.get(top, keys=True)[1] or ()]


@contextmanager
def serving(release: Release, **chat: Any) -> Iterator[Served]:
    """Run a release, and ask it all the while."""
    release.run(**chat)
    release.wait_until_routed(OLD)
    with Load(release.address, per_second=10) as load:
        yield Served(release, load)


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


SILENT = {"rollout.analysis.probe": "false"}
