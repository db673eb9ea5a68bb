"""The state of an environment's job: Nomad is asked and, where there are canaries, the balancers."""

from collections.abc import Callable
from functools import partial

from vllmjobs.cluster.consul import ConsulApi
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.failures import ForbiddenError
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy import records
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import UserError
from vllmjobs.rollout.model import Record
from vllmjobs.rollout.overview import Command, Overview, Weight, overview

Warn = Callable[[str], None]


def read_overview(
    command: Command,
    environment: Environment,
    deployments: Deployments,
    where: Where,
    consul: Callable[[], ConsulApi],
    warn: Warn,
) -> Overview:
    """Return what runs of an environment; `command` returns what a person is to type for a command on it.

    Without a Consul to ask, the shares of canaries are unknown; without leave to read the records, the
    verdicts. Raises `NomadError`, and `UserError` where there is no such job.
    """
    job = deployments.cluster.job(*where)
    if job is None:
        raise no_job(command, deployments, where)
    job_deployments = deployments.of_job(where)
    newest = job_deployments[0] if job_deployments else None
    versions, allocations = deployments.versions(where), deployments.allocations(where)
    recorded = read_records(deployments, where, warn)
    seen = partial(overview, command, job, versions, newest, allocations, recorded)
    answer = seen()
    if any(group.weight for group in answer.groups):
        return seen(_weights(environment, consul, job["Version"]))
    return answer


def read_records(deployments: Deployments, where: Where, warn: Warn) -> list[Record]:
    """Return the records of a job; none, with a warning, where the token may not read them."""
    try:
        return records.read(deployments, where)
    except ForbiddenError as error:
        warn(f"the records of who released what, and with which verdict, cannot be read: {error}")
        return []


def no_job(command: Command, deployments: Deployments, where: Where) -> UserError:
    """Return the error for a job that does not exist."""
    return UserError(
        f'{deployments.address}: there is no job {where.id} in namespace "{where.namespace}"; '
        f"`{command('deploy')}` starts it"
    )


def _weights(
    environment: Environment, consul: Callable[[], ConsulApi], version: int
) -> dict[str, Weight] | None:
    """Return the shares by group; until one was asked for, canaries have `rollout.weight` by themselves."""
    try:
        traffic = Traffic(environment, consul(), version)
        asked, given = traffic.asked(), traffic.given()
    except UserError:
        return None
    return {
        group: Weight(asked=asked.get(group, model.rollout.weight), given=given.get(group))
        for group, model in environment.models.items()
    }
