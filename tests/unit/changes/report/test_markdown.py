"""Reports as a pull request shows them; test_markdown_parsed.py reads them with a parser."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.changes.report.reports import CHAT, IMAGE, LARGE, PLANNED, group, job, report, reports
from vllmjobs.changes.model import EnvironmentChange, Field, Finding, GroupChange, Report, Unplaced
from vllmjobs.changes.report.markdown import LEAST, LIMIT, as_markdown
from vllmjobs.environment.problems import UserError


def headline(found: Report) -> str:
    """The first line that a reviewer reads."""
    return as_markdown(found).splitlines()[1]


def test_a_plan_as_a_reviewer_reads_it() -> None:
    assert (
        as_markdown(PLANNED)
        == """\
<!-- vllmjobs plan prod -->
### ⛔ `prod`: 2 of 2 canaries of `chat` cannot be placed

1 group replaced (canaries first), 1 scaled up, 1 unchanged · GPUs 24 → 32, 8 more, 2 extra while it rolls out · against `http://nomad.example.com:4646`

- **2 of 2 canaries of `chat` cannot be placed**: 4 nodes have nvidia/gpu, 1 GPU is free, each canary needs 1, train (15) holds the others. **Way out:** free 1 GPU on gpu-3, or set rollout.canaries: 1.

| job | group | what Nomad does | instances | GPUs now → then | extra GPUs while it rolls out |
|---|---|---|--:|--:|--:|
| `vllm-prod` | `chat` | ⛔ destructive: 2 canaries first, then the other 2 after the promotion | 4 | 4 | 2 |
| `vllm-prod` | `large` | scale up 4 → 6 | 4 → 6 | 16 → 24 | 0 |

- ⚠️ `vllm-prod`: running this job cancels deployment `1a2b3c4d` of version 7 (running; requires manual promotion; chat: 1 of 1 canaries healthy, not promoted)
- ⚠️ `vllm-prod`: to make room, Nomad stops 2 allocations of group `workers` of `train` in namespace `batch` on `gpu-3`
- ⚠️ `vllm-prod`: Nomad warns: kill_timeout is above max_kill_timeout
- ℹ️ `vllm-prod`: The balancer follows on its own.

<details><summary>check: 1 warning</summary>

- envs/prod.yaml:7:7: warning: models.chat.gpus.memory: 80 GiB leaves out NVIDIA H100 PCIe &#91;VJ324&#93;

</details>

<details><summary><code>vllm-prod</code> / <code>chat</code>: destructive: 2 canaries first, then the other 2 after the promotion</summary>

Nomad plans: 2 canary, 4 ignore

```diff
! task.vllm.config.image: vllm/vllm-openai:v0.32.0 → vllm/vllm-openai:v0.33.0  # forces replacement
! task.vllm.env.HF_TOKEN: changed, not shown: it may be a secret
! task.vllm.config.args:  # forces replacement
-   --max-num-seqs=32
+   --max-num-seqs=64
! task.nginx.template."local/nginx.conf".data:
    … from line 2
    http {
      upstream chat {
-       keepalive 32;
+       keepalive 64;
      }
      server {
```

</details>

<details><summary><code>vllm-prod</code> / <code>large</code>: scale up 4 → 6</summary>

Nomad plans: 2 place, 4 ignore

```diff
! count: 4 → 6
```

</details>

To make exactly this change:

```sh
vllmjobs render prod | nomad job run -check-index 12 -
```
"""  # noqa: E501
    )


ERROR = Finding(file="e", line=1, column=1, rule="VJ104", severity="error", path="", message="no")
TRIED = group("chat", "destructive", canaries=1)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (report(job(group(), action="none")), "✅ `prod`: no changes"),
        (report(job(TRIED, group("b"))), "🔵 `prod`: 1 group replaced (canaries first), 1 unchanged"),
        (report(job(group("chat", "in-place"))), "⚠️ `prod`: 1 group updated in place"),
        (report(job(group("chat", "destructive"))), "⚠️ `prod`: 1 group replaced (no canary first)"),
        (report(job(TRIED), findings=(ERROR,)), "⛔ `prod`: check finds 1 error"),
        (
            report(job(CHAT, LARGE), findings=(ERROR,)),
            "⛔ `prod`: 2 of 2 canaries of `chat` cannot be placed",
        ),
        (
            report(job(CHAT, group("b", unplaced=CHAT.unplaced))),
            "⛔ `prod`: 2 of 2 canaries of `chat` cannot be placed; no room either for 1 more group",
        ),
    ],
)
def test_the_headline_says_the_worst_thing_first(found: Report, words: str) -> None:
    assert headline(found) == f"### {words}"


def test_in_numbers_too_the_worst_comes_first() -> None:
    groups = [LARGE, group("b", "in-place"), group("c", "gone", count_after=None), TRIED, group("d")]
    field = Field(path=("priority",), before="50", after="80")
    assert headline(report(job(*groups, fields=(field,)))) == (
        "### ⚠️ `prod`: 1 group gone, 1 replaced (canaries first), 1 updated in place, 1 scaled up, "
        "1 value of the whole job, 1 unchanged"
    )


def test_several_environments_are_told_apart() -> None:
    found = Report(
        command="diff",
        environments=tuple(
            EnvironmentChange(name=name, against="main", jobs=(job(TRIED),)) for name in ("dev", "prod")
        ),
    )
    text = as_markdown(found)
    assert text.startswith(
        "<!-- vllmjobs diff -->\n### 🔵 2 environments: 2 groups replaced (canaries first)\n"
    )
    assert "| environment | job | group |" in text
    assert "| `prod` | `vllm-prod` | `chat` | destructive: 1 canary first" in text


def test_a_job_that_changes_as_a_whole_has_a_row_of_its_own() -> None:
    field = Field(path=("priority",), before="50", after="80")
    text = as_markdown(report(job(group(), fields=(field,))))
    assert "| `vllm-prod` | the whole job | 1 of its values |" in text
    assert "```diff\n! priority: 50 → 80\n```" in text


@pytest.mark.parametrize(
    "text", ["@octocat", "#1", "!1", "GH-1", "%1", "~bug", "$a$", "&1", "me@example.com"]
)
def test_sentences_of_others_mention_nobody_and_refer_to_nothing(text: str) -> None:
    found = as_markdown(report(job(TRIED, notes=(text,))))
    assert text not in found


def test_a_name_stands_in_code_and_cannot_leave_it() -> None:
    text = as_markdown(report(job(group("a`|@b\n<b>", "in-place"))))
    assert "| <code>a&#96;&#124;&#64;b&#92;n&#60;b&#62;</code> |" in text


def test_a_fence_is_longer_than_those_inside() -> None:
    field = Field(path=("data",), before="x", after="x\n````\n</details>")
    text = as_markdown(report(job(group("chat", "in-place", fields=(field,)))))
    assert "\n`````diff\n! data:\n    x\n+   ````\n+   </details>\n`````\n" in text


def test_the_marker_of_another_comment_is_not_repeated() -> None:
    field = Field(path=("data",), before="x", after="<!-- vllmjobs diff -->")
    text = as_markdown(report(job(group("chat", "in-place", fields=(field,)))))
    assert text.count("<!-- vllmjobs diff -->") == 1


def big(number: int) -> GroupChange:
    """A group with values of 10 KB, and an image."""
    lines = [f"{number} {line}" for line in range(1_000)]
    fields = (
        IMAGE,
        Field(path=("env", "A"), before="a" * 10_000, after="b" * 10_000),
        Field(path=("data",), before="\n".join(lines), after="\n".join(reversed(lines))),
    )
    return group(f"m{number}", "destructive", canaries=1, fields=fields)


def test_what_does_not_fit_is_left_out_with_a_note_the_longest_first() -> None:
    small = group("small", "destructive", canaries=1, fields=(IMAGE,))
    again = "vllmjobs diff prod --against main --set models.chat.replicas=3"
    text = as_markdown(report(job(*map(big, range(199)), small)), again=again)
    assert LIMIT * 0.8 < len(text.encode()) <= LIMIT
    assert text.count("| destructive:") == 200
    assert (
        "<code>small</code>: destructive: 1 canary first, then the other 3 after the promotion</summary>"
        in text
    )
    assert re.search(
        r"\n✂️ To fit into a comment, this report leaves out \d+ values and shortens \d+ values. "
        r"To print all of it:\n\n"
        rf"```sh\n{re.escape(again)}\n```\n$",
        text,
    )


def test_a_long_template_does_not_displace_the_image_beside_it() -> None:
    text = as_markdown(report(job(*map(big, range(40)))))
    assert text.count("vllm-openai:v0.33.0  # forces replacement") == 40


def test_what_cannot_be_placed_is_kept_to_the_last() -> None:
    why = Unplaced(wanted=1, failed=1, canaries=True)
    groups = [*map(big, range(100)), group("last", "destructive", canaries=1, unplaced=why)]
    text = as_markdown(report(job(*groups)), limit=LEAST)
    assert len(text.encode()) <= LEAST
    assert "### ⛔ `prod`: 1 of 1 canary of `last` cannot be placed" in text
    assert "| `vllm-prod` | `last` | ⛔ destructive" in text
    assert re.search(r"\n… and \d+ more rows\n", text)


def test_a_limit_below_what_a_headline_takes_is_refused() -> None:
    with pytest.raises(UserError, match="does not fit into a comment of 100 bytes; allow at least 8000"):
        as_markdown(PLANNED, limit=100)


@given(reports, st.integers(LEAST, LIMIT))
def test_any_report_fits_and_has_its_marker_once(found: Report, limit: int) -> None:
    text = as_markdown(found, limit)
    assert len(text.encode()) <= limit
    marker = text.splitlines()[0]
    assert re.fullmatch(r"<!-- vllmjobs (diff|plan)( [\w.-]*)* -->", marker)
    assert text.count("<!-- vllmjobs") == 1
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)  # of fences
    opened = re.findall("^<details", outside, re.MULTILINE)
    assert opened == ["<details"] * len(re.findall("^</details>$", outside, re.MULTILINE))
    assert all(line.isprintable() or "️" in line for line in text.split("\n"))
