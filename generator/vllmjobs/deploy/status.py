"""What runs of an environment's job, looked up in Nomad and, where there are canaries, at the balancers."""

from __future__ import annotations

from collections.abc import Callable

from vllmjobs.cluster.consul import Consul
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import ForbiddenError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy import records
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import UserError
from vllmjobs.rollout.model import Entry
from vllmjobs.rollout.overview import Command, Overview, Weight, overview

Warn = Callable[[str], None]


class NoJobError(UserError):
    """There is nothing to look at yet."""


def look(
    command: Command,
    environment: Environment,
    releases: Deployments,
    where: Where,
    consul: Callable[[], Consul],
    warn: Warn,
) -> Overview:
    """What runs of an environment; `command` returns what a person is to type for a command on it.

    Without a Consul to ask, the shares of canaries are unknown; without leave to read the records, the
    verdicts. Raises `NomadError`, and `NoJobError` where there is no such job.
    """
    job = releases.cluster.job(*where)
    if job is None:
        raise absent(command, releases, where)
    deployments = releases.deployments(where)
    versions, allocations = releases.versions(where), releases.allocations(where)
    entries = remembered(releases, where, warn)

    def seen(weights: dict[str, Weight] | None) -> Overview:
        newest = deployments[0] if deployments else None
        return overview(command, job, versions, newest, allocations, entries, weights)

    found = seen(None)
    return (
        seen(_weights(environment, consul, job["Version"]))
        if any(group.weight for group in found.groups)
        else found
    )


def remembered(releases: Deployments, where: Where, warn: Warn) -> list[Entry]:
    """The records of a job; none, with a warning, where the token may not read them."""
    try:
        return records.read(releases, where)
    except ForbiddenError as error:
        warn(f"without records of who released what, and with which verdict: {error}")
        return []


def absent(command: Command, releases: Deployments, where: Where) -> NoJobError:
    """What to say where there is no such job."""
    return NoJobError(
        f'{releases.address}: there is no job {where.id} in namespace "{where.namespace}"; '
        f"`{command('deploy')}` starts it"
    )


def _weights(
    environment: Environment, consul: Callable[[], Consul], version: int
) -> dict[str, Weight] | None:
    """By group; until a share was asked for, canaries are to have `rollout.weight` by themselves."""
    try:
        traffic = Traffic(environment, consul(), version)
        asked, given = traffic.asked(), traffic.given()
    except UserError:
        return None
    return {
        group: Weight(asked=asked.get(group, model.rollout.weight), given=given.get(group))
        for group, model in environment.models.items()
    }
