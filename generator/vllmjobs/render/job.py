"""An environment and a template are rendered into the HCL of one job."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllmjobs.balancers import balancer_of
from vllmjobs.balancers.nginx import without_container
from vllmjobs.environment.model import Environment
from vllmjobs.environment.problems import UserError
from vllmjobs.render.context import FILTERS, vllm_context
from vllmjobs.render.hcl import align
from vllmjobs.render.model_cache import cache_context, cached_models
from vllmjobs.render.monitoring import prometheus_context

_DATA = {str, int, float, bool, type(None), list, tuple, dict}
_MISSING = object()


class Templates(NamedTuple):
    """The source of templates."""

    read: Callable[[str], tuple[str, str] | None]  # a template's text and path, by its name; None without one
    compiled: jinja2.BytecodeCache | None = None  # the cache of compiled templates between runs


class RenderError(UserError):
    """A job or a template that cannot be rendered; the message says where and why."""


def jobs(environment: Environment) -> list[str]:
    """Return the jobs of this environment: `vllm`, its balancer, and the Prometheus that watches them."""
    prometheus = "prometheus" if environment.monitoring.prometheus else None
    return [job for job in ("vllm", balancer_of(environment).job, prometheus) if job]


def jobs_on_demand(environment: Environment) -> list[str]:
    """Return the jobs that do nothing until somebody dispatches them, and that no release watches."""
    if not cached_models(environment):
        return []
    return ["prefetch", *(["cache-backup", "cache-restore"] if environment.cache_backup else [])]


def render(environment: Environment, job: str, templates: Templates, model: str | None = None) -> str:
    """Return the HCL of one job, laid out as `nomad fmt` would.

    `model` keeps only that model's group. Raises `RenderError` for a job or a model that the
    environment does not have, and for a template that is missing or at fault.
    """
    known = [*jobs(environment), *jobs_on_demand(environment)]
    if job not in known:
        raise RenderError(f"{environment.job} has no job {job!r}; it has {', '.join(known)}")
    if model is not None and model not in environment.models:
        raise RenderError(f"{environment.job} has no model {model!r}; it has {', '.join(environment.models)}")
    if model is not None and job != "vllm":
        raise RenderError(f"--model is for job vllm only; job {job!r} is rendered whole: leave --model out")
    return align(_filled(f"{job}.nomad.hcl.j2", _context(environment, job, model), templates))


def nginx_conf(
    environment: Environment, templates: Templates, instances: Sequence[Mapping[str, str]], *, metrics: bool
) -> str:
    """Return the configuration of an nginx that is no container, on any machine.

    Each of the `instances` has a route of its own: a `name`, a `path` and an `address`. `metrics` tells
    whether nginx shows them, where the environment does not say so of an nginx. Raises `RenderError` as
    `render` does.
    """
    context = without_container(environment, metrics=metrics).context()
    return _filled("nginx.conf.ctmpl.j2", {**context, "instances": instances}, templates)


def _context(environment: Environment, job: str, model: str | None) -> dict[str, Any]:
    if job == "vllm":
        return vllm_context(environment, model)
    if job in jobs_on_demand(environment):
        return cache_context(environment, job)
    return prometheus_context(environment) if job == "prometheus" else balancer_of(environment).context()


def _filled(name: str, context: Mapping[str, Any], templates: Templates) -> str:
    try:
        return _jinja(templates).get_template(name).render(context)
    except jinja2.TemplateNotFound as error:
        why = f"jobs/{error.name} does not exist, and vllmjobs ships no such template"
        raise RenderError(f"{_place(error)}{why}") from error
    except jinja2.TemplateSyntaxError as error:
        raise RenderError(f"{error.filename}:{error.lineno}: {error.message}") from error
    except jinja2.exceptions.SecurityError as error:
        why = f"{str(error).rstrip('.')}: a template reads values, runs nothing and changes nothing"
        raise RenderError(f"{_place(error)}{why}") from error
    except Exception as error:  # whatever an expression of a user's template raises is the template's fault
        raise RenderError(f"{_place(error)}{error}") from error


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, quicker: data cannot be called, so that of its attribute the name alone is looked at.

    Jinja compares each value with nine types and four abstract classes, half of the time of a large job.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return what a template reads of an object; see `jinja2.sandbox.SandboxedEnvironment`."""
        if not attribute.startswith("_"):
            value = getattr(obj, attribute, _MISSING)
            if type(value) in _DATA or isinstance(value, msgspec.Struct):
                return value
        return super().getattr(obj, attribute)


@lru_cache(maxsize=2)  # a diff renders many environments, each on two sides
def _jinja(templates: Templates) -> jinja2.Environment:
    """Return Jinja with `[[ ]]`, `[% %]` and `[# #]`: Nomad's own `{{ }}` and `${ }` stay readable.

    A template may be somebody else's, of a commit that is only looked at, so Jinja's sandbox fills it in.
    """
    jinja = _Sandbox(
        loader=jinja2.FunctionLoader(
            lambda name: (*template, None) if (template := templates.read(name)) else None
        ),
        bytecode_cache=templates.compiled,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the output is HCL; every value goes through `hcl`
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        comment_start_string="[#",
        comment_end_string="#]",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(FILTERS)
    return jinja


def _place(error: Exception) -> str:
    """Return the innermost line of a template that the error passed through, if any."""
    place, trace = "", error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        place, trace = f"{file}:{trace.tb_lineno}: " if file.endswith(".j2") else place, trace.tb_next
    return place
