"""`promote`, `abort`, `rollback`: one line each, at night."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vllmjobs.cli.common import environment_options, models_job
from vllmjobs.cli.following import DURATION, end, follow_options, following

if TYPE_CHECKING:
    from vllmjobs.deploy.manual import Back
    from vllmjobs.rollout.model import Outcome

_Does = Callable[..., "Outcome"]


def _on(command: _Does) -> Callable[..., None]:
    """A command on the models' job of ENV, with the options of all that follow."""

    @wraps(command)
    def run(
        env: str,
        settings: tuple[str, ...],
        project: Path,
        timeout: float | None,
        in_json: bool,
        hooks: tuple[str, ...],
        **others: Any,
    ) -> None:
        from vllmjobs.balancers import balancer_of  # noqa: PLC0415
        from vllmjobs.cluster.consul import Consul, ConsulError  # noqa: PLC0415 (these take 200 ms)
        from vllmjobs.cluster.deployments import Deployments  # noqa: PLC0415
        from vllmjobs.cluster.nomad import Nomad  # noqa: PLC0415
        from vllmjobs.deploy.deploy import PATIENCE_S  # noqa: PLC0415
        from vllmjobs.deploy.manual import Back  # noqa: PLC0415
        from vllmjobs.deploy.release import Cluster  # noqa: PLC0415
        from vllmjobs.deploy.traffic import Traffic  # noqa: PLC0415

        environment, job = models_job(project, env, settings)
        version = "" if others.get("version") is None else f" {others['version']}"
        words = f"{command.__name__} {env}{version}"
        with following(words, env, in_json, hooks) as reporter:
            traffic = None
            if balancer_of(environment).gives_shares:
                try:
                    traffic = Traffic(environment, Consul(), 0)
                    traffic.asked()
                except ConsulError as error:  # at night, what can be done is done
                    reporter.warn(f"shares of canaries stay in Consul: {error}")
                    traffic = None
            cluster = Cluster(Deployments(Nomad(patience=PATIENCE_S)), traffic, reporter)
            outcome = command(Back(environment, job, cluster, timeout), **others)
        end(outcome)

    timed = click.option("--timeout", type=DURATION, metavar="DURATION", help="For all of it, such as 45m.")
    return environment_options(timed(follow_options(run)))


@click.command()
@_on
def promote(back: "Back") -> "Outcome":
    """Promote the canaries of ENV, whatever the verdict.

    Follows until the old instances have ended their streams.
    """
    return back.promote()


@click.command()
@_on
@click.option("--force", is_flag=True, help="Also where no other instance is healthy.")
def abort(back: "Back", force: bool) -> "Outcome":
    """Stop the canaries of ENV; the old version serves on.

    The deployment is failed, and the last version that was deployed with success is the job's again.
    """
    return back.abort(force)


@click.command()
@_on
@click.argument("version", type=click.IntRange(0), required=False)
def rollback(back: "Back", version: int | None) -> "Outcome":
    """Go back to an old version of ENV.

    To VERSION, or to the last other one that was deployed with success. A new deployment of the old
    version, followed and promoted as soon as its canaries are healthy. Before a
    promotion it is at once: the canaries are stopped. Interrupted and run again, it goes on.
    `vllmjobs history` lists the versions.
    """
    return back.rollback(version)
