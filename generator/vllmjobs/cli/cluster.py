"""The parts that commands which ask a cluster share: the place of the models' job, and Nomad's plans."""

import msgspec

from vllmjobs.changes.model import EnvironmentChange
from vllmjobs.cli.common import Selection
from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.deployments import where
from vllmjobs.cluster.nomad import Where
from vllmjobs.project.differences import findings
from vllmjobs.project.plan import plans
from vllmjobs.terminal.printing import show_json, tell


def models_job(selection: Selection) -> Where:
    """Return where the models' job of an environment is."""
    environment = selection.environment
    assert environment.job
    return where(environment.job, environment.nomad.namespace, environment.nomad.region)


def planned(selection: Selection, cluster: Cluster) -> EnvironmentChange:
    """Return what the cluster would do with the selected jobs, and what `check` finds in the environment."""
    namespace = selection.environment.nomad.namespace
    render = selection.of_all_jobs().words("render")
    return EnvironmentChange(
        name=selection.path.stem,
        against=cluster.address,
        jobs=plans(selection.selected_jobs, cluster, namespace, render),
        findings=findings(selection.checked),
    )


def print_json(value: object) -> None:
    """Print what was observed as JSON."""
    show_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def warn(text: str) -> None:
    """Print a warning on stderr."""
    tell(f"warning: {text}")
