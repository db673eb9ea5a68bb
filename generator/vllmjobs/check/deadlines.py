"""VJ301 to VJ305: deadlines that Nomad refuses, or that end an instance which is well."""

from vllmjobs.check.rule import Findings, model_rule
from vllmjobs.check.subject import Subject
from vllmjobs.environment.problems import KeyPath
from vllmjobs.environment.quantity import duration, seconds
from vllmjobs.environment.supervision import is_supervised, load_timeout


@model_rule("VJ301", "error")
def deadlines_are_in_order(subject: Subject) -> Findings:
    """Find deadlines in an order that Nomad refuses.

    Nomad wants min_healthy_time < healthy_deadline < progress_deadline, which is at least kill_timeout
    (nomad/structs/structs.go, UpdateStrategy.Validate and TaskGroup.Validate).
    """
    d = subject.deadlines
    healthy, progress = d.healthy_deadline, d.progress_deadline
    is_short = healthy <= d.min_healthy_time
    for key, value, is_wrong, how, bound in (
        ("min_healthy_time", d.min_healthy_time, is_short, "not below healthy_deadline", healthy),
        ("progress_deadline", progress, 0 < progress <= healthy, "not above healthy_deadline", healthy),
        ("progress_deadline", progress, 0 < progress < d.kill_timeout, "below kill_timeout", d.kill_timeout),
    ):
        if is_wrong:
            yield ("rollout", key), f"{duration(value)} is {how} {duration(bound)}; Nomad refuses it"


@model_rule("VJ302", "error")
def kill_timeout_is_kept(subject: Subject) -> Findings:
    """Find a `kill_timeout` that the clients cut in silence. Their max_kill_timeout cuts longer ones."""
    kill_timeout, cap = subject.deadlines.kill_timeout, subject.environment.nomad.max_kill_timeout
    if kill_timeout > seconds(cap):
        yield (
            _kill_timeout(subject),
            f"kill_timeout would be {duration(kill_timeout)}, but Nomad silently cuts it to the clients' "
            f"max_kill_timeout, {cap}; raise that in the clients' configuration and write it in "
            f"nomad.max_kill_timeout, or shorten drain.longest_stream",
        )


@model_rule("VJ303", "error")
def streams_may_end(subject: Subject) -> Findings:
    """Find a `kill_timeout` shorter than the longest answer. Nomad kills then, and vLLM needs time to end."""
    d = subject.deadlines
    if d.kill_timeout <= d.longest_stream:
        yield (
            _kill_timeout(subject),
            f"kill_timeout {duration(d.kill_timeout)} is not above longest_stream "
            f"{duration(d.longest_stream)}: the last streams would be cut; leave it out, or make it longer",
        )


@model_rule("VJ304", "error")
def loading_is_waited_for(subject: Subject) -> Findings:
    """Find deadlines that end while the model still loads.

    The healthy_deadline counts from before the image is pulled, the grace of a task's service from its start
    (nomad/client/allocrunner/taskrunner/service_hook.go); a group's service differs, hashicorp/nomad#25318.
    """
    d, load = subject.deadlines, seconds(subject.model.load_time)
    least = d.start + d.min_healthy_time
    if d.healthy_deadline < least:
        yield (
            ("rollout", "healthy_deadline"),
            f"{duration(d.healthy_deadline)} is shorter than pull_time + load_time + min_healthy_time = "
            f"{duration(least)}: Nomad would fail the instance while it loads; leave it out, or raise it",
        )
    health = subject.model.health
    if is_supervised(subject.environment, subject.model):
        restarted, who = load_timeout(subject.model), "the supervisor restarts"
    else:
        # nomad/client/serviceregistration/checks and command/agent/consul/check_watcher.go
        restarted = d.grace + seconds(health.interval) * (health.restart_after - 1)
        who = "failed checks restart" if health.restart_after else ""
    if who and restarted < load:
        yield (
            ("health", "grace"),
            f"{who} the instance after {duration(restarted)}, but it loads for "
            f"{duration(load)}; leave grace out, or make it longer",
        )


@model_rule("VJ305", "error")
def health_checks_are_valid(subject: Subject) -> Findings:
    """Find checks more often than Nomad allows. See minCheckInterval in nomad/structs/services.go."""
    health = subject.model.health
    for key, value in (("interval", health.interval), ("timeout", health.timeout)):
        if seconds(value) < 1:
            yield ("health", key), f"must be at least 1s (got {value}); Nomad refuses less"


def _kill_timeout(subject: Subject) -> KeyPath:
    return ("drain", "kill_timeout" if subject.model.drain.kill_timeout else "longest_stream")
