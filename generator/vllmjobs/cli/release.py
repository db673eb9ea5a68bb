"""`promote`, `abort`, `rollback`: one line each, at night."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from vllmjobs.balancers import balancer_of
from vllmjobs.cli.cluster import models_job
from vllmjobs.cli.common import Selection, environment_options
from vllmjobs.cli.following import DURATION, end, follow_options, following, timeout_words
from vllmjobs.cluster.consul import ConsulApi, ConsulError
from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.cluster.reasons import Deadline
from vllmjobs.deploy.deploy import PATIENCE_S
from vllmjobs.deploy.manual import Manual
from vllmjobs.deploy.release import Clients
from vllmjobs.deploy.reporter import Reporter
from vllmjobs.deploy.traffic import Traffic
from vllmjobs.environment.model import Environment
from vllmjobs.rollout.model import Outcome

_Act = Callable[..., Outcome]


def _on_models_job(act: _Act) -> Callable[..., None]:
    """Make a command of what a person decides about the models' job of ENV."""

    @wraps(act)
    def run(
        selection: Selection, timeout: float | None, in_json: bool, hooks: tuple[str, ...], **decision: Any
    ) -> None:
        environment, where = selection.environment, models_job(selection)
        typed = [*_words(**decision), *timeout_words(timeout)]
        resume = selection.command(act.__name__, *typed)
        with following(selection, resume, in_json, hooks) as reporter:
            deadline = Deadline(timeout)
            deployments = Deployments(NomadApi(patience=PATIENCE_S, deadline=deadline))
            clients = Clients(deployments, _traffic(environment, reporter, deadline), reporter)
            outcome = act(Manual(environment, where, clients, selection.command, timeout), **decision)
        end(outcome)

    timed = click.option("--timeout", type=DURATION, metavar="DURATION",
                         help="Longest time for the whole command, such as 45m.")  # fmt: skip
    return environment_options(timed(follow_options(run)))


def _words(version: int | None = None, force: bool = False) -> list[str]:
    return [*([] if version is None else [str(version)]), *(["--force"] if force else [])]


def _traffic(environment: Environment, reporter: Reporter, deadline: Deadline) -> Traffic | None:
    """Return the shares of the canaries; None, with a warning, where Consul cannot be asked."""
    if not balancer_of(environment).gives_shares:
        return None
    try:
        traffic = Traffic(environment, ConsulApi(deadline=deadline), 0)
        traffic.asked()
    except ConsulError as error:
        reporter.warn(f"the shares of the canaries cannot be removed from Consul: {error}")
        return None
    return traffic


@click.command()
@_on_models_job
def promote(manual: Manual) -> Outcome:
    """Promote the canaries of ENV, whatever the verdict.

    The command waits until the old instances have finished their streams.
    """
    return manual.promote()


@click.command()
@_on_models_job
@click.option("--force", is_flag=True, help="Abort even where no other instance is healthy.")
def abort(manual: Manual, force: bool) -> Outcome:
    """Stop the canaries of ENV; the old version serves on.

    Nomad marks the deployment as failed. The job goes back to the last version that was deployed with
    success.
    """
    return manual.abort(force)


@click.command()
@_on_models_job
@click.argument("version", type=click.IntRange(0), required=False)
def rollback(manual: Manual, version: int | None) -> Outcome:
    """Go back to an old version of ENV.

    Without VERSION, this is the last other version that was deployed with success. The old version becomes a
    new deployment, and is promoted as soon as its canaries are healthy. Before a promotion, the canaries are
    stopped at once instead. If the command is interrupted, run it again, and it goes on. `vllmjobs history`
    lists the versions.
    """
    return manual.rollback(version)
