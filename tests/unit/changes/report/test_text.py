"""Reports as a terminal shows them."""

import re

import pytest
from hypothesis import given

from unit.changes.report.reports import IMAGE, PLANNED, group, job, report, reports
from vllmjobs.changes.model import Field, GroupChange, Report, Unplaced, Updates
from vllmjobs.changes.report.text import as_text


def said(*groups: GroupChange) -> str:
    """Return the text about groups, less the headline."""
    return as_text(report(job(*groups)), color=False).partition("\n")[2]


def field(before: str | None, after: str | None) -> str:
    """Return the text about one value."""
    found = Field(path=("task", "vllm", "env", "A"), before=before, after=after)
    return said(group("chat", "destructive", gpus=0, fields=(found,))).partition("\n")[2]


def test_a_plan_as_a_person_reads_it() -> None:
    assert (
        as_text(PLANNED, color=False)
        == """\
prod: vllm-prod changes: 1 group replaced (canaries first), 1 scaled up, 1 unchanged (against http://nomad.example.com:4646)
  chat   destructive: 2 canaries first, then the other 2 after the promotion
    2 of 2 canaries of chat cannot be placed: 4 nodes have nvidia/gpu, 1 GPU is free, each canary needs 1, train (15) holds the others
    way out: free 1 GPU on gpu-3, or set rollout.canaries: 1
    GPUs: 4 (4 × 1), 2 extra while it rolls out
    Nomad plans: 2 canary, 4 ignore
    ~ task.vllm.config.image: vllm/vllm-openai:v0.32.0 → vllm/vllm-openai:v0.33.0  # forces replacement
    ~ task.vllm.env.HF_TOKEN: changed, not shown: it may be a secret
    ~ task.vllm.config.args:  # forces replacement
    -   --max-num-seqs=32
    +   --max-num-seqs=64
    ~ task.nginx.template."local/nginx.conf".data:
        … from line 2
        http {
          upstream chat {
    -       keepalive 32;
    +       keepalive 64;
          }
          server {
  large  scale up 4 → 6
    GPUs: 16 → 24 (4 × 4 → 6 × 4), 8 more
    Nomad plans: 2 place, 4 ignore
    ~ count: 4 → 6
  unchanged: embed
  warning: running this job cancels deployment 1a2b3c4d of version 7 (running; requires manual promotion; chat: 1 of 1 canaries healthy, not promoted)
  warning: to make room, Nomad stops 2 allocations of group workers of train in namespace batch on gpu-3
  warning: Nomad warns: kill_timeout is above max_kill_timeout
  note: The balancer follows on its own.
  to make this change: vllmjobs render prod | nomad job run -check-index 12 -

prod: fabio-prod: no changes (against http://nomad.example.com:4646)

prod: check finds 1 warning
  envs/prod.yaml:7:7: warning: models.chat.gpus.memory: 80 GiB leaves out NVIDIA H100 PCIe [VJ324]
"""  # noqa: E501
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (group("chat", "new", count_before=None, count=2), "chat  new: 2 instances"),
        (group("chat", "gone", count_after=None, count=1), "chat  gone: 1 instance stops"),
        (group("chat", "in-place"), "chat  in place: all 4 instances at once, no canary tries it"),
        (group("chat", "in-place", count=1), "chat  in place: the one instance, no canary tries it"),
        (group("chat", "scale-down", count_after=1), "chat  scale down 4 → 1"),
        (group("chat", "destructive"), "chat  destructive: all 4 instances, no canary tries it first"),
        (
            group("chat", "destructive", count=1, canaries=1),
            "chat  destructive: 1 canary first, then the old one stops after the promotion",
        ),
        (
            group("chat", "destructive", canaries=4),
            "chat  destructive: 4 canaries first, then all old ones stop after the promotion",
        ),
        (
            group("chat", "destructive", "scale-up", canaries=1, count_after=6),
            "chat  destructive: 1 canary first, then the other 5 after the promotion; scale up 4 → 6",
        ),
        (
            group("chat", fields=(IMAGE,)),
            "chat  leaves the instances as they are",
        ),
        (group("chat", updates=Updates(place=1)), "chat  places 1 missing instance"),
    ],
)
def test_what_nomad_does_is_said_in_plain_words(given: GroupChange, words: str) -> None:
    assert said(given).startswith(f"  {words}\n")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (group("chat", "in-place", gpus=2), "8 (4 × 2)"),
        (group("chat", "new", count_before=None, gpus_before=None), "0 → 4 (0 → 4 × 1), 4 more"),
        (group("chat", "gone", count_after=None, gpus_after=None), "4 → 0 (4 × 1 → 0), 4 fewer"),
        (
            group("chat", "destructive", canaries=2, gpus_after=2),
            "4 → 8 (4 × 1 → 4 × 2), 4 more, 4 extra while it rolls out",
        ),
    ],
)
def test_gpus_that_move_are_counted(given: GroupChange, words: str) -> None:
    assert f"    GPUs: {words}\n" in said(given)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("1", "2", "~ task.vllm.env.A: 1 → 2"),
        (None, "1", "+ task.vllm.env.A: 1"),
        ("1", None, "- task.vllm.env.A: 1"),
        ("", "1", '~ task.vllm.env.A: "" → 1'),
        ("1", "1 ", '~ task.vllm.env.A: 1 → "1 "'),
        ("user", "us\u200ber", "~ task.vllm.env.A: user → us\\u200ber"),
        ("us\u200ber", "us\\u200ber", "~ task.vllm.env.A: 'us\\u200ber' → 'us\\\\u200ber'"),
        ("caf\xe9", "cafe\u0301", "~ task.vllm.env.A: 'caf\\xe9' → 'cafe\\u0301'"),
        ("a\x1b[2Jb", "b", "~ task.vllm.env.A: a\\x1b[2Jb → b"),
        (
            "x" * 2000 + "old" + "y" * 2000,
            "x" * 2000 + "new" + "y" * 2000,
            f"~ task.vllm.env.A: …{'x' * 20}old{'y' * 20}… → …{'x' * 20}new{'y' * 20}…",
        ),
        (None, "x" * 4000, f"+ task.vllm.env.A: {'x' * 120}… (3,880 characters more)"),
        ("a\nb ", "a\nb", '~ task.vllm.env.A:\n        a\n    -   "b "\n    +   b'),
    ],
)
def test_a_difference_is_always_seen(before: str | None, after: str | None, shown: str) -> None:
    assert field(before, after) == f"    {shown}\n"


def test_of_a_long_template_only_what_differs_is_shown() -> None:
    before = [f"line {number}" for number in range(10_000)]
    after = before.copy()
    after[7_000] = "another"
    assert field("\n".join(before), "\n".join(after)) == (
        "    ~ task.vllm.env.A:\n"
        "        … from line 6999\n"
        "        line 6998\n"
        "        line 6999\n"
        "    -   line 7000\n"
        "    +   another\n"
        "        line 7001\n"
        "        line 7002\n"
    )


def test_a_new_template_does_not_flood_the_terminal() -> None:
    shown = field(None, "x\n" * 4000)
    assert shown.endswith("    +   x\n        … 3,941 lines more\n")
    assert shown.count("\n") == 62


def test_what_cannot_be_placed_is_said_of_instances_too() -> None:
    found = Unplaced(wanted=1, failed=1, canaries=False)
    assert "    1 of 1 instance of chat cannot be placed\n" in said(group("chat", unplaced=found))


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("new", "is new, with 1 group"),
        ("gone", "is gone from here, with 1 group"),
    ],
)
def test_jobs_come_and_go(action: str, words: str) -> None:
    found = as_text(report(job(group(), action=action, namespace="ml", region="eu")), color=False)
    assert found.startswith(f"prod: vllm-prod (namespace ml, region eu) {words} (against main)\n")


def test_of_a_job_that_is_gone_nothing_stops() -> None:
    gone = job(group("chat", "gone", count_after=None, gpus_after=None), action="gone")
    assert as_text(report(gone), color=False).splitlines()[1:] == [
        "  chat  gone: 4 instances keep running",
        "    GPUs: 4 (4 × 1)",
    ]


def test_of_a_template_only_the_line_with_a_secret_is_hidden() -> None:
    path = ("task", "vllm", "template", "x", "data")
    found = Field(path=path, before="A=1\nTOKEN=(hidden)", after="A=2\nTOKEN=(hidden)", hidden=True)
    assert said(group("chat", "in-place", gpus=0, fields=(found,))).splitlines()[1:] == [
        "    ~ task.vllm.template.x.data:",
        "    -   A=1",
        "    +   A=2",
        "        TOKEN=(hidden)",
    ]


def test_what_waits_for_a_place_is_said_of_an_unchanged_job() -> None:
    found = as_text(report(job(group("chat", updates=Updates(place=2)), action="none")), color=False)
    assert found.startswith("prod: vllm-prod is unchanged: 1 group waiting for a place (against main)\n")


def test_many_unchanged_groups_take_one_line() -> None:
    groups = [group(f"m{number}") for number in range(200)]
    last = said(group("chat", "in-place"), *groups).splitlines()[-1]
    assert last.endswith("m9, m10, m11 and 188 more")


def test_colours_are_there_only_when_asked_for() -> None:
    colored = as_text(PLANNED, color=True)
    assert "\x1b[31m-   --max-num-seqs=32\x1b[0m" in colored
    assert re.sub(r"\x1b\[\d*m", "", colored) == as_text(PLANNED, color=False)


def test_signs_that_the_terminal_lacks_are_written_in_ascii() -> None:
    text = as_text(PLANNED, color=False, encoding="ascii")
    assert "scale up 4 -> 6" in text
    assert "(4 x 4 -> 6 x 4)" in text
    assert text.isascii()


def test_a_token_in_a_value_is_never_shown() -> None:
    token = "hf_" + "a" * 30
    assert field(f"x {token}", f"y {token}") == "    ~ task.vllm.env.A: x … → y …\n"
    shown = field(token, token.upper().replace("HF_", "hf_"))
    assert shown == "    ~ task.vllm.env.A: changed, not shown: it may be a secret\n"
    assert "aaaa" not in field("x" * 99 + f" {token}", "x" * 99 + f"\n{token}")


@given(reports)
def test_nothing_in_a_report_reaches_the_terminal_as_a_command(hostile: Report) -> None:
    text = as_text(hostile, color=False)
    assert all(line.isprintable() for line in text.split("\n"))
