import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.environment.quantity import duration, is_duration, mebibytes, seconds, size_bytes, spaced


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("1h30m", 5400), ("1.5m", 90), ("500ms", 0.5), ("1m500ms", 60.5)]
)
def test_durations_are_read_as_go_reads_them(text: str, value: float) -> None:
    assert is_duration(text)
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "90", "s", "1 h", "-5s", "1d", "1h30"])
def test_what_is_no_duration_is_told(text: str) -> None:
    assert not is_duration(text)


@given(st.integers(0, 10**7))
def test_a_duration_that_was_written_is_read_back(value: int) -> None:
    assert seconds(duration(value)) == value


def test_a_part_of_a_second_is_rounded_up() -> None:
    assert (duration(0.2), duration(60.5), duration(0)) == ("1s", "1m1s", "0s")


def test_sizes_know_binary_and_decimal_units() -> None:
    assert size_bytes("1 GiB") == 2**30
    assert size_bytes("1.5GB") == 1_500_000_000
    assert mebibytes("1 GB") == 954
    assert spaced("70GiB") == spaced("70 GiB") == "70 GiB"
