"""The keys that Fabio's shares need, and what in them freezes its table."""

from vllmjobs.balancers.fabio import Fabio
from vllmjobs.balancers.instances import ServiceInstance
from vllmjobs.environment.model import Balancer, Environment, Model, Route

MODELS = {name: Model(model="a/model", route=Route(path=f"/{name}/v1/")) for name in ("chat", "embed")}
FABIO = Fabio(Environment(job="edge", balancer=Balancer(kind="fabio"), models=MODELS))


def instance(name: str, *tags: str, passing: bool = True) -> ServiceInstance:
    return ServiceInstance(f"{name}-1", "gpu-1", "10.0.0.1", 8000, tags, passing)


def canary(name: str, passing: bool = True) -> ServiceInstance:
    return instance(name, f"urlprefix-/{name}/v1/", "vllm", "canary", passing=passing)


def test_shares_of_before_keep_their_lines_and_the_lines_are_written_first() -> None:
    instances = {"chat": [canary("chat")], "embed": [canary("embed")]}
    values = FABIO.share_values({"chat": 0.25}, {"chat": 0.1, "embed": 0.5}, instances)
    assert isinstance(values, dict)
    assert [*values] == ["fabio/config/edge", "vllmjobs/edge/chat/canary_weight"]
    assert values["vllmjobs/edge/chat/canary_weight"] == "0.2500"
    weights = [
        line for line in values["fabio/config/edge"].splitlines() if "weight " in line and "#" not in line
    ]
    assert weights == [
        'route weight edge-embed /embed/v1/ weight 1.000000 tags "canary"',
        'route weight edge-chat /chat/v1/ weight 0.500000 tags "canary"',
    ]


def test_canaries_of_before_may_be_gone() -> None:
    values = FABIO.share_values({"chat": 0.25}, {"embed": 0.5}, {"chat": [canary("chat")], "embed": []})
    assert isinstance(values, dict)
    assert "embed" not in values["fabio/config/edge"]


def test_a_share_needs_a_canary_that_passes_its_checks() -> None:
    assert FABIO.share_values({"chat": 0.25}, {}, {"chat": [canary("chat", passing=False)]}) == (
        "no canary of chat is registered in Consul as edge-chat with all checks passing; "
        "1 other instances are; see `consul watch -type=service -service=edge-chat`"
    )


def test_a_share_needs_a_canary_that_fabio_finds() -> None:
    reason = FABIO.share_values({"chat": 0.25}, {}, {"chat": [instance("chat", "vllm", "canary")]})
    assert isinstance(reason, str)
    assert reason.startswith(
        "the canaries of chat are registered in Consul as edge-chat without a tag urlprefix-…"
    )


def test_consul_is_asked_for_services_only_when_a_weight_depends_on_them() -> None:
    own = FABIO.share_values({"chat": 0.25}, {}, {"chat": [canary("chat")]})
    assert isinstance(own, dict)
    assert not FABIO.needs_services(own)
    others = {"fabio/config/other": "route weight edge-chat /chat/v1/ weight 0.5"}
    assert FABIO.needs_services(others)
    catalog = {"edge-chat": ["urlprefix-/chat/v1/", "vllm"], "edge-embed": ["urlprefix-/embed/v1/"], "db": []}
    assert FABIO.services_to_ask(others, catalog) == ["edge-chat"]
    assert FABIO.problems(others, {"edge-chat": [canary("chat")]}) == []
    (problem,) = FABIO.problems(others, {})
    assert problem.startswith("fabio/config/other:1: route weight edge-chat /chat/v1/ weight 0.5: ")


def test_an_answer_that_is_not_fabios_is_none() -> None:
    assert FABIO.given(None) == {"chat": 0, "embed": 0}  # an empty table
    assert FABIO.given({"status": "alive"}) is None
