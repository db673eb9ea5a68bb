"""Fabio's routing table: the lines of a share, what freezes it; and what the balancers say of a share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmjobs.balancers.fabio_routes import (
    RouteProblem,
    fabio_share,
    parse,
    routes_key,
    share_lines,
    sources,
    targets,
    unmatched,
)
from vllmjobs.balancers.instances import ServiceInstance

OTHER = "fabio/config/other"


def instance(*tags: str, port: int = 8000, passing: bool = True) -> ServiceInstance:
    return ServiceInstance(f"chat-{port}", "gpu-1", "10.0.0.1", port, tags, passing)


CHAT = targets("chat", [instance("urlprefix-/v1/", "vllm"), instance("urlprefix-/v1/", "canary", port=8001)])


def problems(text: str) -> list[RouteProblem]:
    commands, malformed = parse({OTHER: text})
    return malformed + unmatched(commands, CHAT)


def test_a_share_is_a_weight_of_the_canaries_and_of_an_anchor_that_comes_and_goes() -> None:
    assert share_lines("vllm-prod-chat", ["/v1/", "chat.example.com/v1/"], canaries=2, share=0.25) == (
        "# vllm-prod-chat: 25 % to 2 canaries; `vllmjobs deploy` removes it\n"
        'route add vllm-prod-chat /v1/ http://anchor.invalid/ tags "canary"\n'
        'route weight vllm-prod-chat /v1/ weight 0.375000 tags "canary"\n'
        "route del vllm-prod-chat /v1/ http://anchor.invalid/\n"
        'route add vllm-prod-chat chat.example.com/v1/ http://anchor.invalid/ tags "canary"\n'
        'route weight vllm-prod-chat chat.example.com/v1/ weight 0.375000 tags "canary"\n'
        "route del vllm-prod-chat chat.example.com/v1/ http://anchor.invalid/\n"
    )


@given(st.integers(1, 500), st.floats(0.001, 1))
def test_a_share_has_something_to_match_even_when_nothing_is_registered(canaries: int, share: float) -> None:
    commands, malformed = parse({routes_key("vllm-prod"): share_lines("chat", ["/v1/"], canaries, share)})
    assert not malformed
    assert not unmatched(commands, [])


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("canaries", [1, 2, 7])
def test_each_canary_has_its_part_of_the_share_once_the_anchor_is_gone(canaries: int, share: float) -> None:
    (weight,) = (
        float(line.split()[5])
        for line in share_lines("chat", ["/v1/"], canaries, share).splitlines()
        if "weight" in line
    )
    assert weight / (canaries + 1) * canaries == pytest.approx(share, abs=1e-5)


def test_sources_are_as_fabio_keeps_them() -> None:
    routes = ["/v1/ weight=0.1", "Chat.Example.com:9999/V1/ strip=/x", ":80 proto=tcp", "H", ""]
    tags = ["vllm", *(f" urlprefix-{route}" for route in routes)]
    assert sources(tags) == ["/v1/", "chat.example.com:9999/V1/", ":80", "h/"]


def test_an_instance_that_fails_a_check_is_no_target() -> None:
    assert targets("chat", [instance("urlprefix-/v1/", passing=False)]) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a comment\n\n// another",
        "route add chat /v1/ http://10.0.0.1:1/",
        'route  add\tchat /v1/ http://10.0.0.1:1/ weight 0.1 tags "a, b" opts "strip=/x proto=https"',
        "route del nobody",
        'route del tags "nobody"',
        "route weight chat /v1/ weight 0.5",
        'route weight chat /v1/ weight 5e-1 tags "canary"\r\n',
        'route weight /v1/ weight 0.5 tags "canary"',
        # What an earlier line adds is there for a later one.
        'route add new Example.com/x http://10.0.0.1:1/\nroute weight new example.com/x weight 1',
    ],
)  # fmt: skip
def test_what_fabio_takes_over_is_no_problem(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("weight chat /v1/ weight 0.5", "is no command; they begin with route add, route del"),
        ("route wieght chat /v1/ weight 0.5", "is no command"),
        ("route add chat /v1/", "is not of the form route add SERVICE SOURCE URL"),
        ("route add chat /v1/ http://10.0.0.1:1/ tags canary", "is not of the form route add"),
        ("route add chat /v1/ 10.0.0.1:1", "10.0.0.1:1 is no URL"),
        ("route add chat /v1/[ http://10.0.0.1:1/", "/v1/[ has a bracket that is not closed"),
        ("route add chat /v1/ http://10.0.0.1:1/ weight Inf", "its weight is no finite number"),
        ("route del", "is not of the form route del"),
        ("route weight chat /v1/ 0.5", "is not of the form route weight"),
        ("route weight chat /v1/ weight 5%", "its weight is no finite number"),
        ("route weight chat /v1/ weight 0x1", "its weight is no finite number"),
        ("route weight large /v1/ weight 0.5", "/v1/ leads to no instance of service large"),
        ("route weight chat /v2/ weight 0.5", "/v2/ leads to no instance of service chat"),
        ("route weight chat /v1 weight 0.5", "/v1 leads to no instance of service chat"),
        ('route weight chat /v1/ weight 1 tags "b,a"', "/v1/ leads to no instance of service chat, tag a"),
        ('route weight /v1/ weight 1 tags "blue"', "/v1/ leads to no instance of tag blue"),
    ],
)  # fmt: skip
def test_what_freezes_fabios_table_is_named_with_its_rule_and_the_way_out(line: str, rule: str) -> None:
    (problem,) = problems(f"# of others\n{line}\n")
    assert str(problem).startswith(f"{OTHER}:2: {line}: {rule}")
    assert str(problem).endswith(
        "; Fabio takes over no change of any service until you mend it, or "
        "run `consul kv delete fabio/config/other`"
    )


def test_every_line_of_every_key_is_looked_at() -> None:
    _, malformed = parse({"fabio/config/b": "route", "fabio/config/a": "x\nroute del chat\ny"})
    assert [(one.key, one.line) for one in malformed] == [
        ("fabio/config/a", 1), ("fabio/config/a", 3), ("fabio/config/b", 1)
    ]  # fmt: skip


def test_a_weight_after_its_targets_were_deleted_matches_nothing() -> None:
    weight = "route weight chat /v1/ weight 0.5"
    for deletion in (
        "route del chat",
        "route del chat /v1/",
        'route del chat tags "vllm"\nroute del tags "canary"',
    ):
        (problem,) = problems(f"{deletion}\n{weight}")
        assert problem.text == weight
    assert problems(f"route del chat /v2/\n{weight}") == []


def test_the_share_that_fabio_gives_is_the_weight_of_its_canaries() -> None:
    def target(src: str, weight: float, *tags: str, service: str = "chat") -> dict[str, object]:
        return {"service": service, "src": src, "weight": weight, "tags": list(tags)}

    both = [target("/v1/", 0.375, "vllm"), target("/v1/", 0.375), target("/v1/", 0.25, "vllm", "canary")]
    assert fabio_share(both, "chat") == 0.25
    assert fabio_share([*both, target("h/v1/", 0.9), target("h/v1/", 0.1, "canary")], "chat") == 0.1
    assert fabio_share([*both, target("/v1/", 0.5, service="other")], "chat") == 0.25
    assert fabio_share([target("/v1/", 1, "canary")], "chat") == 1
    assert fabio_share([{"service": "chat", "src": "/v1/", "weight": 1}], "chat") == 0
    assert fabio_share(None, "chat") == 0  # what an empty table answers
