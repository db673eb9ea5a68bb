"""Reports as people and programs may read them: without tokens."""

from typing import Any

import msgspec
from msgspec.structs import replace

from vllmjobs.changes.model import Field, JobChange, Report
from vllmjobs.environment.secrets import without_secrets


def for_people(report: Report) -> Report:
    """Return the report without tokens, and with a job that is gone as it runs on: nobody stops it."""
    report = without_tokens(report)
    environments = (
        replace(environment, jobs=tuple(map(_running_on, environment.jobs)))
        for environment in report.environments
    )
    return replace(report, environments=tuple(environments))


def without_tokens(report: Report) -> Report:
    """Return the report, less what looks like a token in any of its texts.

    This comes before anything is cut or escaped: half a token is not known for one. A value that differs in
    nothing else is marked hidden, so that it does not look equal.
    """
    return msgspec.convert(_redacted(msgspec.to_builtins(report)), Report)


def _running_on(job: JobChange) -> JobChange:
    if job.action != "gone":
        return job
    groups = (replace(one, count_after=one.count_before, gpus_after=one.gpus_before) for one in job.groups)
    return replace(job, groups=tuple(groups))


def _redacted(item: Any) -> Any:
    if isinstance(item, str):
        return without_secrets(item)
    if isinstance(item, list | tuple):
        return [_redacted(each) for each in item]
    if not isinstance(item, dict):
        return item
    redacted = {key: _redacted(each) for key, each in item.items()}
    if item.keys() == set(Field.__struct_fields__):
        before, after = redacted["before"], redacted["after"]
        is_redacted = (before, after) != (item["before"], item["after"])
        redacted["hidden"] |= is_redacted and before == after
    return redacted
