"""What may be taken of an instance that Consul names."""

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.balancers.instances import IP_PATTERN, PORT_PATTERN

LIKE_AN_ADDRESS = st.one_of(
    st.lists(st.sampled_from(["", "0", "1", "ab", "ffff", "12345", "g"]), max_size=10).map(":".join),
    st.lists(st.sampled_from(["", "0", "1", "01", "99", "255", "256"]), max_size=5).map(".".join),
    st.ip_addresses().map(str),
    st.text(max_size=20),
)


@given(LIKE_AN_ADDRESS)
def test_only_an_ip_address_is_one(text: str) -> None:
    try:
        given = ipaddress.ip_address(text)
    except ValueError:
        is_address = False
    else:
        # Less what nobody listens on, and two spellings that nginx and Prometheus need not know.
        is_address = text != "::" and not (given.version == 6 and set(text) & {"%", "."})
    assert bool(re.fullmatch(IP_PATTERN, text)) == is_address


@pytest.mark.parametrize(
    "text", ["127.0.0.1\n", "127.0.0.1 ", "127.0.0.1;", "127.0.0.1:80", "[::1]", "a.invalid"]
)
def test_an_ip_address_with_anything_else_is_none(text: str) -> None:
    assert not re.fullmatch(IP_PATTERN, text)


def test_a_port_is_1_to_65535() -> None:
    found = [number for number in range(-1, 70_000) if re.fullmatch(PORT_PATTERN, str(number))]
    assert found == [*range(1, 65_536)]
