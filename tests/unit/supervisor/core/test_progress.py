"""An engine's progress, from its metrics and from two probes."""

import pytest

from vllmjobs.supervisor.core.progress import Load, ProbeResult, progressed, read_metrics


def test_the_counters_of_all_engines_and_labels_are_summed() -> None:
    page = rb"""# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a } b\" 7"} 100.0
vllm:generation_tokens_total{engine="1",model_name="a"} 1e+03
vllm:generation_tokens_created{engine="1",model_name="a"} 1.7e+09
vllm:prompt_tokens_total{engine="0"} 10.0
vllm:prompt_tokens_total_other{engine="0"} 5.0
vllm:request_success_total{engine="0",finished_reason="stop"} 2.0
vllm:request_success_total{engine="0",finished_reason="abort"} 50.0
vllm:request_success_total{engine="0",finished_reason="error"} 50.0
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 4.0
vllm:num_requests_waiting{engine="0"} 5.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 5.0
process_resident_memory_bytes 9.9e+09
"""
    assert read_metrics(page) == Load(tokens=1112, unanswered=12)


def test_a_page_of_something_else_says_nothing() -> None:
    assert read_metrics(b"") == Load(None, None)
    assert read_metrics(b"<html>vllm:num_requests_running 3</html>") == Load(None, None)
    assert read_metrics(b"vllm:num_requests_running NaN\nvllm:prompt_tokens_total nonsense\n") == Load(
        None, None
    )


@pytest.mark.parametrize("value", ["1.7e308", "9" * 5000, "1e999", "-1", "-1e999", "NaN", "0x10", "1e16"])
def test_a_number_that_nothing_can_have_counted_is_not_believed(value: str) -> None:
    page = f'vllm:num_requests_running {value}\nvllm:num_requests_running{{a="1"}} 3\n' * 2
    assert read_metrics(page.encode()) == Load(None, 6)


@pytest.mark.parametrize(
    ("before", "after", "progress"),
    [
        (ProbeResult(tokens=5), ProbeResult(health=200, tokens=6, unanswered=9), True),
        (ProbeResult(tokens=5), ProbeResult(health=None, tokens=6, unanswered=9), True),
        (ProbeResult(tokens=5), ProbeResult(health=200, tokens=5, unanswered=9), False),
        (ProbeResult(tokens=5), ProbeResult(health=200, tokens=5, unanswered=9, completion="answered"), True),
        (ProbeResult(tokens=5), ProbeResult(health=200, tokens=5, unanswered=0), True),
        (ProbeResult(tokens=5), ProbeResult(health=200, tokens=5, unanswered=0, completion="silent"), False),
        (ProbeResult(tokens=5), ProbeResult(health=200, tokens=5, unanswered=0, completion="refused"), True),
        (ProbeResult(tokens=5), ProbeResult(health=503, tokens=5, unanswered=0), False),
        (ProbeResult(tokens=5), ProbeResult(health=200), False),
        (ProbeResult(), ProbeResult(health=200, completion="unprobed"), True),
        (ProbeResult(), ProbeResult(health=503, completion="unprobed"), False),
        (ProbeResult(), ProbeResult(health=200, unanswered=1, completion="unprobed"), False),
        (None, ProbeResult(health=200, tokens=5, unanswered=9), False),
        (None, ProbeResult(health=200, tokens=5, unanswered=0), True),
    ],
)
def test_progress_is_a_token_an_answer_or_nothing_to_do(
    before: ProbeResult | None, after: ProbeResult, progress: bool
) -> None:
    assert progressed(before, after) is progress
