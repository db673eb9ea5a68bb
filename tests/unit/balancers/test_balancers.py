"""One file a balancer: each kind answers the same questions, and nobody else asks which kind it is."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from msgspec import structs

import vllmjobs
from vllmjobs.balancers import KINDS, balancer_of, own_keys
from vllmjobs.balancers.balancer import LoadBalancer, OwnRule
from vllmjobs.balancers.fabio import Fabio
from vllmjobs.balancers.instances import ServiceInstance
from vllmjobs.check import rule
from vllmjobs.check.balancing import register_rules
from vllmjobs.check.check import NAMES
from vllmjobs.check.subject import Facts, Whole
from vllmjobs.environment import problems
from vllmjobs.environment.model import Balancer, Environment, Model, Route
from vllmjobs.project.shipped import shipped
from vllmjobs.render.job import Templates, jobs, render
from vllmjobs.rollout.plans import shares

PACKAGE = Path(vllmjobs.__file__).parent
JOBS = shipped("jobs")
ROOMS = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "balancers"]


def questions(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that compare or look up a balancer's kind."""
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Tuple):  # a type's
            asked = [node.slice]
        elif isinstance(node, ast.Match):
            asked = [node.subject]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            asked = node.args
        for one in (inner for expression in asked for inner in ast.walk(expression)):
            if (isinstance(one, ast.Attribute) and one.attr == "kind" and "balancer" in ast.unparse(one)) or (
                isinstance(one, ast.Constant) and one.value in KINDS.keys() - {"none"}
            ):
                yield one.lineno


def test_no_other_room_asks_which_kind_of_balancer_it_is() -> None:
    assert len(ROOMS) > 100
    asked = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in ROOMS
        for line in questions(ast.parse(path.read_text()))
    ]
    assert asked == []


@pytest.mark.parametrize(
    "question",
    [
        "environment.balancer.kind == 'none'",
        "self.environment.balancer.kind not in ('fabio', 'nginx')",
        "{'fabio': 1}[balancer.kind]",
        "DELAYS.get(balancer.kind, 0)",
        "kind != 'nginx'",
        "match balancer.kind:\n  case 'fabio': ...",
    ],
)
def test_such_a_question_is_found(question: str) -> None:
    assert [*questions(ast.parse(question))]


def test_no_template_asks_which_kind_of_balancer_it_is() -> None:
    assert [path.name for path in JOBS.iterdir() if "balancer.kind" in path.read_text()] == []


def test_every_kind_that_an_environment_may_name_has_a_module_and_a_template() -> None:
    kinds = get_args(get_args(get_type_hints(Balancer, include_extras=True)["kind"])[0])
    assert set(kinds) == KINDS.keys()
    for kind in kinds:
        assert (PACKAGE / "balancers" / f"{kind}.py").is_file()
        balancer = KINDS[kind](environment())
        assert balancer.job is None or (JOBS / f"{balancer.job}.nomad.hcl.j2").is_file()


def test_the_keys_of_all_kinds_are_removed_whichever_there_is_now() -> None:
    assert own_keys("edge") == ["fabio/config/edge"]


def test_a_rule_of_one_kind_says_nothing_of_others() -> None:
    own, _ = Fabio.rules
    assert NAMES[own.id] == "fabio-has-its-ports-to-itself"
    static = structs.replace(MODEL, ports=structs.replace(MODEL.ports, static=9999))
    for kind, count in (("fabio", 1), ("nginx", 0), ("none", 0)):
        models = {"chat": static}
        broken = Environment(job="edge", balancer=Balancer(kind=kind), models=models)  # type: ignore[arg-type]
        assert len([*rule.REGISTERED[own.id].find(Whole(broken, Facts()))]) == count


# What a third balancer needs: one module that holds such a class, its line in KINDS, its name in the types,
# and a template.
MODEL = Model(model="a/model", route=Route(path="/chat/v1/"))
TEMPLATE = """
job [[ name | hcl ]] {
  meta {
    mirror = [[ mirror | hcl ]]
    port = [[ port ]]
  }
}
"""


def mirror_has_its_port(environment: Environment) -> Iterator[tuple[problems.KeyPath, str]]:
    """Find a port that the mirror has."""
    if environment.balancer.port == 1:
        yield ("balancer", "port"), "is the mirror's"


class Tiny(LoadBalancer):
    kind = "tiny"
    title = "Tiny"
    default_port = 7070
    default_image = "tiny:1"
    shutdown_delay_s = 3.0
    keep_alive_s = 7.0
    shares_path = "/shares"
    rules = (OwnRule("VJ499", "warning", mirror_has_its_port),)

    def route_tags(self, route: Route, weight: float | None) -> list[str]:
        return [f"tiny-{route.path}" if weight is None else f"tiny-{route.path}={weight:g}"]

    def context(self) -> dict[str, Any]:
        return super().context() | {"mirror": "none"}

    def given_to(self, name: str, answer: Any) -> float:
        return float(answer[name])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment with a balancer of a third kind."""
    monkeypatch.setitem(KINDS, "tiny", Tiny)
    return environment(kind="tiny")


def environment(**balancer: Any) -> Environment:
    return Environment(job="edge", balancer=Balancer(**balancer), models={"chat": MODEL})


def read(name: str) -> tuple[str, str] | None:
    """Return a shipped template, or the third balancer's."""
    if name == "tiny.nomad.hcl.j2":
        return TEMPLATE, name
    path = JOBS / name
    return (path.read_text(), name) if path.is_file() else None


def test_a_third_balancer_is_rendered(tiny: Environment) -> None:
    assert jobs(tiny) == ["vllm", "tiny"]
    assert render(tiny, "tiny", Templates(read)) == (
        'job "edge-tiny" {\n  meta {\n    mirror = "none"\n    port   = 7070\n  }\n}\n'
    )


def test_the_models_are_rendered_for_a_third_balancer(tiny: Environment) -> None:
    hcl = render(tiny, "vllm", Templates(read))
    assert 'tags        = ["tiny-/chat/v1/", "vllm"]' in hcl
    assert 'canary_tags = ["tiny-/chat/v1/=0.1", "vllm", "canary"]' in hcl
    assert 'shutdown_delay = "3s"' in hcl


def test_an_environment_with_a_third_balancer_is_checked(
    tiny: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "REGISTERED", {})
    register_rules(Tiny)
    (its,) = rule.REGISTERED.values()
    assert (its.id, its.name, its.finds) == ("VJ499", "mirror-has-its-port", "A port that the mirror has.")
    assert [*its.find(Whole(tiny, Facts()))] == []
    broken = structs.replace(tiny, balancer=structs.replace(tiny.balancer, port=1))
    assert [*its.find(Whole(broken, Facts()))] == [(("balancer", "port"), "is the mirror's")]


def test_a_third_balancer_is_asked_for_shares_and_for_what_it_gives(tiny: Environment) -> None:
    balancer = balancer_of(tiny)
    assert shares(tiny, MODEL) == (0.1,)
    canary = ServiceInstance("i", "n", "10.0.0.1", 8000, ("canary",), True)
    assert balancer.share_values({"chat": 0.25}, {}, {"chat": [canary]}) == {
        "vllmjobs/edge/chat/canary_weight": "0.2500"
    }
    assert balancer.shares_url(canary._replace(address="::1")) == "http://[::1]:9998/shares"
    assert balancer.given({"chat": 0.25}) == {"chat": 0.25}
    assert balancer.given({"other": 0.25}) is balancer.given("a page") is None
