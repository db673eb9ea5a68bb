"""An address shows where it leads to, and nothing with which one gets in."""

import pytest

from vllmjobs.cluster.consul import ConsulApi, ConsulError
from vllmjobs.cluster.failures import NomadError
from vllmjobs.cluster.metrics import MetricsError, PrometheusApi
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.text.address import shown_address

WITH_SECRETS = [
    "http://user:hun$ter2@127.0.0.1:1", "http://user:hun'ter2@127.0.0.1:1", 'http://user:hun"ter2@127.0.0.1:1',
    "http://user:hun@ter2@127.0.0.1:1", "http://:hunter2@127.0.0.1:1", "http://hunter2@127.0.0.1:1",
    "http://hunter2:@127.0.0.1:1", "http://127.0.0.1:1/?token=hunter2", "http://127.0.0.1:1?hunter2",
    "http://user:hun/ter2@127.0.0.1:1", "http://user:hun?ter2@127.0.0.1:1", "http://user:hun#ter2@127.0.0.1:1",
    "http://user:hunter2@[::1", "http://user:hunter2@127.0.0.1:port", "http://user:hun ter2@127.0.0.1:1",
    "http://user:%68unter2@127.0.0.1:1", "http://hun:ter2@127.0.0.1:1", "http://user:hunter2@",
    "http://127.0.0.1:1/v1;token=hunter2", "http://127.0.0.1:1/#hunter2", "http:/user:hunter2@127.0.0.1:1",
    "user:hunter2@127.0.0.1:1", "HTTP://user:hunter2@127.0.0.1:1", "http://user:hunter2\\@127.0.0.1:1",
    "hunter2://127.0.0.1:1", "http://user:hun\tter2@127.0.0.1:1", "//user:hunter2@127.0.0.1:1", "hunter2",
    "http://user:hun[ter2@127.0.0.1:1", "https://user:hunter2@127.0.0.1:1", "http://user:hun\u2100ter2@127.0.0.1:1",
]  # fmt: skip
PIECES = ("hunter2", "ter2", "hun", "user", "token")


@pytest.mark.parametrize("address", WITH_SECRETS)
def test_no_name_password_or_query_is_shown(address: str) -> None:
    for shown in (shown_address(address), shown_address(address, path=False)):
        assert not [piece for piece in PIECES if piece in shown], shown


@pytest.mark.parametrize("address", [one for one in WITH_SECRETS if one != "hunter2"])  # a host's name
def test_no_error_of_a_server_shows_one(address: str) -> None:
    texts = []
    for ask, error in (
        (lambda: NomadApi({"NOMAD_ADDR": address}, pauses=()).version(), NomadError),
        (lambda: ConsulApi({"CONSUL_HTTP_ADDR": address}, pauses=()).services(), ConsulError),
        (lambda: PrometheusApi(address, timeout=1).samples(["127.0.0.1:1"]), MetricsError),
    ):
        with pytest.raises(error) as raised:
            ask()
        texts.append(str(raised.value))
    assert not [piece for piece in ("hunter2", "ter2", "hun") if piece in "".join(texts)], texts


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://127.0.0.1:4646", "http://127.0.0.1:4646"),
        ("https://ann:hunter2@nomad.example.com/", "https://nomad.example.com"),
        ("https://prometheus.example.com/select/0?x=1", "https://prometheus.example.com/select/0"),
        ("http://[::1]:8500", "http://[::1]:8500"),
        ("unix:///var/run/nomad.sock", "unix:///var/run/nomad.sock"),
        ("unix:/var/run/nomad.sock", "unix:/var/run/nomad.sock"),
        ("127.0.0.1:4646", "127.0.0.1:4646"),
        ("nomad.example.com", "nomad.example.com"),
        ("ftp://nomad.example.com", "ftp://nomad.example.com"),
    ],
)
def test_where_an_address_leads_to_is_shown(address: str, shown: str) -> None:
    assert shown_address(address) == shown
