"""The GPUs of a real cluster, and every way in which it cannot be asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from vllmjobs.cluster.cluster import Cluster
from vllmjobs.cluster.failures import NomadError
from vllmjobs.cluster.nomad import NomadApi
from vllmjobs.gpus.cards import Card
from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs_sandbox.cluster.jobs import holder
from vllmjobs_sandbox.cluster.process import wait_until
from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.cluster.secured import Secured, secured_server
from vllmjobs_sandbox.fakes.listening import listening
from vllmjobs_sandbox.gpus.plugin.devices import Health

SEEN = 30.0  # seconds until Nomad sees a change
UNKNOWN_TOKEN = "11111111-2222-3333-4444-555555555555"
JOB = f'job "holds.gpus" {{\n  namespace = "team"\n{holder("two.chats", count=2)}}}\n'


@pytest.fixture
def cluster(sandbox: Sandbox) -> Cluster:
    return Cluster(NomadApi({"NOMAD_ADDR": sandbox.nomad_address}))


@pytest.fixture
def team(sandbox: Sandbox) -> Iterator[None]:
    """A job in a namespace of its own, which has gone afterwards."""
    sandbox.nomad.namespace.create_namespace({"Name": "team"})
    try:
        sandbox.run(JOB)
        yield
    finally:
        cluster = Cluster(NomadApi({"NOMAD_ADDR": sandbox.nomad_address}))
        sandbox.nomad_cli("job", "stop", "-detach", "-namespace", "team", "holds.gpus")
        wait_until(lambda: not held(cluster), SEEN, "its GPUs are free", evidence=lambda: str(held(cluster)))
        sandbox.nomad_cli("job", "stop", "-detach", "-purge", "-namespace", "team", "holds.gpus")
        sandbox.nomad.namespace.delete_namespace("team")


def held(cluster: Cluster) -> dict[str, Card]:
    """The GPUs that the job holds, by the holder's name."""
    return {
        holder.name: card
        for card in cluster.devices()
        for holder in card.holders or ()
        if holder.name.startswith("holds.gpus/")
    }


def test_every_gpu_of_every_node_is_listed(sandbox: Sandbox, cluster: Cluster) -> None:
    cards = cluster.devices()
    assert [card.node for card in cards] == ["gpu-1"] * 4 + ["gpu-2"] * 4
    for name in ("gpu-1", "gpu-2"):
        ids = [card.uuid for card in cards if card.node == name]
        assert ids == sorted(sandbox.gpus(name))
    assert {
        (card.node_status, card.node_eligible, card.model, card.memory_mib, card.driver_version, card.health)
        for card in cards
    } == {("ready", True, "NVIDIA H100 80GB HBM3", 81559, "570.124.06", "ok")}


@pytest.mark.usefixtures("team")
def test_the_holder_is_named_in_whatever_namespace_it_runs(sandbox: Sandbox, cluster: Cluster) -> None:
    names = ["holds.gpus/two.chats[0]", "holds.gpus/two.chats[1]"]
    wait_until(lambda: sorted(held(cluster)) == names, SEEN, "two GPUs are held")
    allocations = sandbox.nomad.job.request(
        "holds.gpus", "allocations", params={"namespace": "team"}, method="get"
    ).json()
    for allocation in allocations:
        devices = sandbox.nomad.allocation.request(
            allocation["ID"], params={"namespace": "team"}, method="get"
        ).json()["AllocatedResources"]["Tasks"]["sleep"]["Devices"]
        card = held(cluster)[f"holds.gpus/two.chats{allocation['Name'][-3:]}"]
        assert card.holders
        assert (card.node, [card.uuid]) == (allocation["NodeName"], devices[0]["DeviceIDs"])
        assert [(holder.allocation, holder.namespace) for holder in card.holders] == [
            (allocation["ID"], "team")
        ]


def test_an_unhealthy_gpu_and_a_node_that_takes_nothing_are_shown_as_such(
    sandbox: Sandbox, cluster: Cluster
) -> None:
    gpu, *others = sorted(sandbox.gpus("gpu-2"))
    node = sandbox.node("gpu-2")["ID"]
    sandbox.set_gpu_health("gpu-2", gpu, Health.UNHEALTHY)
    sandbox.nomad.node.eligible_node(node, eligible=False)
    try:
        wait_until(lambda: not sandbox.gpus("gpu-2")[gpu], SEEN, "Nomad sees it fail")
        cards = {card.uuid: card for card in cluster.devices()}
        assert (cards[gpu].health, cards[gpu].health_reason) == ("failed", "the health file says so")
        assert {cards[other].health for other in others} == {"ok"}
        eligible = {card.node: card.node_eligible for card in cards.values()}
        assert eligible == {"gpu-1": True, "gpu-2": False}
    finally:
        sandbox.set_gpu_health("gpu-2", gpu, Health.HEALTHY)
        sandbox.nomad.node.eligible_node(node, eligible=True)
    wait_until(lambda: sandbox.gpus("gpu-2")[gpu], SEEN, "Nomad sees it well again")


def test_a_node_that_is_fenced_is_shown_with_what_its_supervisor_wrote(
    sandbox: Sandbox, cluster: Cluster
) -> None:
    said = "GPU-7 XID 79 (GPU has fallen off the bus) 2026-11-28T03:00:00Z"
    change = ("node", "meta", "apply", "-node-id", sandbox.node("gpu-2")["ID"])

    def fences() -> dict[str | None, str | None]:
        return {card.node: card.node_fenced for card in cluster.devices()}

    assert fences() == {"gpu-1": None, "gpu-2": None}
    sandbox.nomad_cli(*change, f"{FENCE_META}={said}")
    try:
        wait_until(lambda: fences() == {"gpu-1": None, "gpu-2": said}, SEEN, "it is shown")
    finally:
        sandbox.nomad_cli(*change, "-unset", FENCE_META)
    wait_until(lambda: fences() == {"gpu-1": None, "gpu-2": None}, SEEN, "it is lifted")


# A cluster that cannot be asked


def refusal(**environ: str) -> str:
    with pytest.raises(NomadError) as error:
        Cluster(NomadApi(environ, timeout=(2, 0.2), sleep=lambda _: None)).devices()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_no_server_is_named_with_its_address(listener: socket.socket) -> None:
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    for slash in ("", "/"):
        assert refusal(NOMAD_ADDR=address + slash) == (
            f"{address}: cannot be reached (Connection refused); is NOMAD_ADDR right, and Nomad running?"
        )


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert (
        refusal(NOMAD_ADDR=f"http://127.0.0.1:{port}") == f"http://127.0.0.1:{port}: no answer within 0.2 s"
    )


@pytest.mark.parametrize(
    ("body", "why"), [("<html>", "it is no JSON"), ('{"nodes": []}', "Expected `array`, got `object`")]
)
def test_a_server_that_is_no_nomad_is_told(body: str, why: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    with listening(Other) as address:
        said = refusal(NOMAD_ADDR=address)
    assert f"answers, but not as Nomad's HTTP API does (nodes: {why}" in said
    assert said.endswith("; is NOMAD_ADDR right?")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("127.0.0.1:4646", "127.0.0.1:4646"),
        ("unix://run/nomad.sock", "unix://run/nomad.sock"),
        ("unix:nomad.sock", "…"),  # what cannot be told from a secret is not shown
        ("unix://", "unix://"),
        ("http://", "http://…"),
        ("http://[::1", "http://…"),
        ("http://a:99999", "http://…"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, shown: str) -> None:
    assert refusal(NOMAD_ADDR=address) == (
        f"NOMAD_ADDR is {shown!r}, but must be like http://127.0.0.1:4646, https://HOST:PORT "
        "or unix:///PATH/OF/A.sock"
    )


def test_a_region_that_is_none_is_told_as_nomad_tells_it(sandbox: Sandbox) -> None:
    said = refusal(NOMAD_ADDR=sandbox.nomad_address, NOMAD_REGION="mars")
    assert said.endswith(": 500: No path to region")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_server(tmp_path_factory.mktemp("secured")) as server:
        yield server


@pytest.fixture(scope="module")
def reader(secured: Secured) -> str:
    return secured.token("nodes", 'node { policy = "read" }')


@pytest.fixture(scope="module")
def stranger(secured: Secured) -> str:
    return secured.token("jobs", 'namespace "*" { policy = "read" }')


def test_tls_and_a_token_that_may_read_nodes_are_enough(secured: Secured, reader: str) -> None:
    assert Cluster(NomadApi(secured.environ | {"NOMAD_TOKEN": reader})).devices() == []


@pytest.mark.parametrize(
    "more",
    [
        {"NOMAD_CACERT": "", "NOMAD_CAPATH": "ca"},
        {"NOMAD_CACERT": "", "NOMAD_SKIP_VERIFY": "true"},
        {"NOMAD_TLS_SERVER_NAME": "server.global.nomad"},
        {"NOMAD_CLIENT_CERT": "global-server-nomad.pem", "NOMAD_CLIENT_KEY": "global-server-nomad-key.pem"},
    ],
    ids=lambda more: list(more)[-1],
)
def test_the_other_ways_to_say_whom_to_trust(
    secured: Secured, reader: str, more: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = secured.folder / "ca"
    folder.mkdir(exist_ok=True)
    (folder / "ours.pem").write_bytes((secured.folder / "nomad-agent-ca.pem").read_bytes())
    monkeypatch.chdir(secured.folder)
    assert Cluster(NomadApi(secured.environ | {"NOMAD_TOKEN": reader} | more)).devices() == []


def test_a_wrong_token_and_a_missing_capability_are_told_apart(secured: Secured, stranger: str) -> None:
    for token, said in (
        ("", "set NOMAD_TOKEN to a token with the ACL capability node:read"),
        (stranger, "NOMAD_TOKEN lacks the ACL capability node:read"),
        (UNKNOWN_TOKEN, "NOMAD_TOKEN is not, or no longer, a token of this cluster"),
        ("not-even-a-uuid", "NOMAD_TOKEN is not, or no longer, a token of this cluster"),
    ):
        refused = refusal(**secured.environ, NOMAD_TOKEN=token)
        assert refused == f"{secured.environ['NOMAD_ADDR']}: Permission denied; {said}"


def test_a_certificate_of_an_unknown_ca_is_not_trusted(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever requests is told to trust; `nomad` does not ask it."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", secured.environ["NOMAD_CACERT"])
    said = refusal(NOMAD_ADDR=secured.environ["NOMAD_ADDR"])
    assert "its certificate is not trusted (" in said
    assert said.endswith("; name its CA in NOMAD_CACERT or NOMAD_CAPATH")


def test_a_certificate_of_another_name_is_not_trusted(secured: Secured) -> None:
    said = refusal(**secured.environ, NOMAD_TLS_SERVER_NAME="server.mars.nomad")
    assert "Hostname mismatch" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"NOMAD_CACERT": "/none.pem"}, "NOMAD_CACERT is /none.pem: No such file or directory"),
        ({"NOMAD_CLIENT_CERT": "/none.pem"}, "NOMAD_CLIENT_CERT is /none.pem: No such file or directory"),
    ],
)
def test_a_file_that_is_not_there_is_named(secured: Secured, more: dict[str, str], said: str) -> None:
    assert refusal(**secured.environ | more) == said


def test_http_and_https_are_told_apart(secured: Secured, sandbox: Sandbox) -> None:
    plain = secured.environ["NOMAD_ADDR"].replace("https", "http")
    assert refusal(NOMAD_ADDR=plain) == f"{plain}: 400: Client sent an HTTP request to an HTTPS server."
    over_tls = sandbox.nomad_address.replace("http", "https")
    assert "TLS failed: " in refusal(NOMAD_ADDR=over_tls)
