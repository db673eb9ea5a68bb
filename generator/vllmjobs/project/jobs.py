"""The jobs of an environment as HCL."""

from vllmjobs.environment.model import Environment
from vllmjobs.render.job import Templates, jobs, render


def rendered(environment: Environment, templates: Templates, only: str | None = None) -> dict[str, str]:
    """Return every job of an environment as HCL, by its name for `render --job`; or `only` that one."""
    return {name: render(environment, name, templates) for name in ([only] if only else jobs(environment))}
