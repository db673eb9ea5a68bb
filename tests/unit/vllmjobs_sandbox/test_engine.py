"""The pure half of the stand-in engine: its flags, its knobs, and its prefix cache."""

import pytest

from vllmjobs_sandbox.engine import flags, knobs, text

ONE_LINE = r"\A[^\n]+\Z"


@pytest.mark.parametrize(
    "argv",
    [
        "serve m --max-model-len 1k --served-model-name a b --tensor-parallel-size 2 --shutdown-timeout 60",
        "--max_model_len=1000 --served_model_name a b --tensor_parallel_size=2 --shutdown_timeout=60 m --x",
        "--model m -tp 2 --some 1 2 --served-model-name a b --max-model-len 1k --shutdown-timeout 60",
    ],
)
def test_flags_are_spelt_in_all_of_vllms_ways(argv: str) -> None:
    told = flags.parse(argv.split(), {})
    assert (told.model, told.served_model_name, told.max_model_len) == ("m", ("a", "b"), 1000)
    assert (told.tensor_parallel_size, told.shutdown_timeout) == (2, 60)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ("serve", "which model?"),
        ("m --port http", "--port http: must be a whole number"),
        ("m --gpu-memory-utilization 1.5", "--gpu-memory-utilization 1.5: must be above 0 and at most 1"),
        ("m --port 1 2", "unrecognized arguments: 2"),
        ("m --port", "expected one value"),
    ],
)
def test_a_flag_that_vllm_would_refuse_is_refused(argv: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=ONE_LINE) as refused:
        flags.parse(argv.split(), {})
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("LOAD_SECOND", "1", "no such knob; did you mean LOAD_SECONDS?"),
        ("LOAD_SECONDS", "soon", "must be a number of seconds, 0 or more"),
        ("TOKENS_PER_SECOND", "0", "must be a number above 0"),
        ("FAILURE", "hangs", "no failure mode 'hangs'; did you mean hang?"),
        ("FAILURE", "hang,error-rate=2", "error-rate must be a share between 0 and 1"),
        ("FAILURE", "exit-0-after", "exit-0-after needs a value"),
        ("FAILURE", "hang=1", "hang takes no value"),
    ],
)
def test_a_wrong_knob_is_one_line_that_names_it(name: str, value: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=ONE_LINE) as refused:
        knobs.read({knobs.PREFIX + name: value})
    assert str(refused.value).startswith(knobs.PREFIX + name)
    assert complaint in str(refused.value)


def test_the_table_of_knobs_names_each_knob_and_mode() -> None:
    assert knobs.__doc__ is not None
    for name in (*knobs._KNOBS, *knobs._MODES):
        assert name in knobs.__doc__


def test_prefix_blocks_are_shared_only_from_the_start() -> None:
    cache = text.PrefixCache(blocks=100)
    words = [str(number) for number in range(64)]
    assert cache.hits(words) == 0
    assert cache.hits(words[:40]) == 32
    assert cache.hits([*words[:16], "other", *words[17:]]) == 16
    assert cache.hits(words[16:]) == 0
