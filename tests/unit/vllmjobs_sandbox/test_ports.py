"""Blocks of ports: each is one sandbox's."""

from vllmjobs_sandbox.cluster import ports


def test_blocks_of_ports_stay_out_of_the_ephemeral_range() -> None:
    usual = list(ports.starts((32768, 60999)))
    assert usual[0] == 10_000
    assert not [first for first in usual if first + ports.SIZE > 32768 and first <= 60999]
    assert min(ports.starts((1024, 60999))) > 60999


def test_a_block_in_use_is_left_to_its_sandbox() -> None:
    one = ports.take_block()
    other = ports.take_block()
    try:
        assert ports.lock(one.first) is None
        assert one.first != other.first
    finally:
        one.release()
        other.release()
    again = ports.lock(one.first)
    assert again
    again.release()
