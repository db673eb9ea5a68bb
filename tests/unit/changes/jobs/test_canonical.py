"""Nomad's defaults are filled in, so that to write one is no change.

`tests/cluster/test_diff_effects.py` holds each to Nomad's own.
"""

import pytest

from vllmjobs.changes.jobs.canonical import canonicalize, is_nothing
from vllmjobs.changes.jobs.jobspec import read
from vllmjobs.changes.jobs.tree import Item, Tree, below


def full(body: str = "", group: str = "", task: str = "") -> Tree:
    return canonicalize(
        read(
            f'job "j" {{\n{body}\ngroup "g" {{\n{group}\ntask "t" {{\n{task}\n}}\n}}\n}}',
            "job",
        )
    )


def at(tree: Item, *path: str) -> Item:
    for word in path:
        tree = below(tree, word) if word != path[-1] else below({"": tree}, "").get(word)
    return tree


def test_a_job_that_says_nothing_has_nomads_defaults() -> None:
    job = full()
    assert [job[word] for word in ("type", "priority", "region", "namespace")] == [
        *("service", "50", "global", "default")
    ]
    assert at(job, "group", "g", "count") == "1"
    assert at(job, "group", "g", "update", "max_parallel") == "1"
    assert at(job, "group", "g", "task", "t", "resources") == {
        "cpu": "100",
        "memory": "300",
        "memory_max": "0",
    }


@pytest.mark.parametrize(
    ("kind", "attempts", "has_update", "has_reschedule"),
    [
        ("service", "2", True, True),
        ("system", "2", True, False),
        ("batch", "3", False, True),
        ("sysbatch", "3", False, False),
    ],
)
def test_defaults_differ_by_the_kind_of_job(
    kind: str, attempts: str, has_update: bool, has_reschedule: bool
) -> None:
    group = below(below(full(f'type = "{kind}"'), "group"), "g")
    assert at(group, "restart", "attempts") == attempts
    assert ("update" in group) == has_update
    assert ("reschedule" in group) == has_reschedule


def test_what_is_said_for_all_groups_is_said_in_each_and_may_be_said_otherwise() -> None:
    job = full("update {\ncanary = 2\nmax_parallel = 3\n}", "update {\ncanary = 1\n}")
    assert "update" not in job
    assert at(job, "group", "g", "update", "canary") == "1"
    assert at(job, "group", "g", "update", "max_parallel") == "3"


def test_a_tasks_restarts_are_its_groups_unless_it_says_otherwise() -> None:
    job = full("", "restart {\nattempts = 5\n}", 'restart {\ndelay = "1s"\n}')
    assert at(job, "group", "g", "task", "t", "restart", "attempts") == "5"
    assert at(job, "group", "g", "task", "t", "restart", "delay") == "1s"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('kill_timeout = "90s"', 'kill_timeout = "1m30s"'),
        ('kill_timeout = "1000ms"', 'kill_timeout = "1s"'),
        ('kill_timeout = "0.5h"', 'kill_timeout = "30m"'),
        ("leader = true", 'leader = "true"'),
        ("env {\nN = 1\n}", 'env {\nN = "1"\n}'),
        ("resources {\nmemory = 64\n}", 'resources {\nmemory = "64"\n}'),
        ('template {\nchange_mode = "signal"\n}',
         'template {\nchange_mode = "signal"\nchange_signal = "sighup"\n}'),
        ('service {\ncheck_restart {\nlimit = 2\n}\ncheck {\ntype = "tcp"\n}\n}',
         'service {\ncheck {\ntype = "tcp"\ncheck_restart {\nlimit = 2\n}\n}\n}'),
        ("identity {\nenv = true\n}", 'identity {\nname = "default"\nenv = true\n}'),
    ],
)  # fmt: skip
def test_two_ways_to_say_a_thing_are_the_same(one: str, other: str) -> None:
    was, now = full(task=one), full(task=other)
    for job in (was, now):
        below(below(below(below(below(job, "group"), "g"), "task"), "t"), "identity").pop("name", None)
        identity = below(below(below(below(below(job, "group"), "g"), "task"), "t"), "identity")
        below(identity, "default").pop("name", None)  # which is also its place
    assert was == now


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('env {\nT = "90s"\n}', 'env {\nT = "1m30s"\n}'),
        ('env {\ntimeout = "90s"\n}', 'env {\ntimeout = "1m30s"\n}'),
        ("config {\nport = 1\n}", 'config {\nport = "1"\n}'),
        ('config {\ntimeout = "90s"\n}', 'config {\ntimeout = "1m30s"\n}'),
        ('meta {\na = "1.0"\n}', 'meta {\na = "1"\n}'),
    ],
)
def test_what_nomad_only_hands_on_is_compared_as_it_is(one: str, other: str) -> None:
    assert full(task=one) != full(task=other)


def test_datacenters_are_a_set() -> None:
    assert full('datacenters = ["a", "b"]') == full('datacenters = ["b", "a"]')


def test_a_name_that_is_the_jobs_id_is_not_said() -> None:
    assert full('name = "j"') == full()


@pytest.mark.parametrize(
    ("path", "item", "expected"),
    [
        (("task", "t", "user"), "", True),
        (("service", "s", "tags"), [], True),
        (("service", "s", "enable_tag_override"), "false", True),
        (("task", "t", "env"), {}, True),
        (("task", "t", "resources", "cores"), "0", True),
        (("task", "t", "env", "EMPTY"), "", False),
        (("task", "t", "config", "debug"), "false", False),
        (("network", "port", "admin"), {}, False),
        (("task", "t", "vault"), {}, False),
        (("task", "t", "template", "x", "uid"), "0", False),
        (("task", "t", "user"), "root", False),
    ],
)
def test_to_say_nothing_is_no_change(path: tuple[str, ...], item: Item, expected: bool) -> None:
    assert is_nothing(path, item) == expected
