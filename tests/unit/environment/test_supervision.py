"""What an environment means for the supervisor, and that the supervisor understands it."""

import pytest

from vllmjobs.balancers.fabio import Fabio
from vllmjobs.environment.derive import deadlines
from vllmjobs.environment.model import Drain, Environment, Health, Images, Model, ModelDefaults
from vllmjobs.environment.server import Container
from vllmjobs.environment.supervision import (
    ADMIN_PORT,
    GONE_S,
    LAST_WORDS_S,
    PROGRAM,
    TERM_S,
    health_path,
    is_supervised,
    supervisor_variables,
    term_timeout,
)
from vllmjobs.environment.values import Driver
from vllmjobs.supervisor import settings
from vllmjobs.supervisor.core.model import SupervisionLimits

OURS = "registry.example.com:5000/ml/vllmjobs-vllm:0.33.0-3f2a9c1@sha256:0123"


def environment(model: Model, image: str = "vllm/vllm-openai:v0.33.0") -> Environment:
    return Environment(models={"chat": model}, images=Images(standard=image), defaults=ModelDefaults())


def told(model: Model) -> dict[str, str]:
    return supervisor_variables(model, deadlines(model, Fabio.shutdown_delay_s))


@pytest.mark.parametrize(
    ("image", "supervised"),
    [
        ("vllm/vllm-openai:v0.33.0", False),
        ("vllmjobs-vllm", True),
        ("vllmjobs-vllm:0.33.0", True),
        (OURS, True),
        ("vllmjobs-vllm/other:0.33.0", False),
        ("acme/not-vllmjobs-vllm:1", False),
    ],
)
def test_an_image_is_known_by_the_last_part_of_its_name(image: str, supervised: bool) -> None:
    model = Model(model="m")
    assert is_supervised(environment(model, image), model) is supervised
    assert health_path(environment(model, image), model) == ("/ready" if supervised else "/health")


@pytest.mark.parametrize("driver", ["docker", "exec", "raw_exec"])
def test_an_entrypoint_is_known_by_the_supervisors_name_in_it(driver: Driver) -> None:
    for entrypoint, supervised in (
        ([PROGRAM, "--", "vllm", "serve"], True),
        ([f"/opt/vllm/bin/{PROGRAM}", "--", "vllm", "serve"], True),
        (["/usr/bin/env", "LANG=C", PROGRAM, "--", "vllm", "serve"], True),
        (["vllm", "serve"], False),  # in docker it takes the place of the image's own
    ):
        model = Model(model="m", driver=driver, entrypoint=entrypoint)
        assert is_supervised(environment(model, OURS), model) is supervised


def test_an_image_does_not_matter_outside_of_docker() -> None:
    model = Model(model="m", driver="raw_exec")
    assert not is_supervised(environment(model, OURS), model)


def test_the_environment_has_the_last_word() -> None:
    for said in (True, False):
        model = Model(model="m", supervised=said)
        assert is_supervised(environment(model, OURS), model) is said
        assert is_supervised(environment(model), model) is said


@pytest.mark.parametrize(("stream", "kill"), [("15s", None), ("10m", None), ("15s", "40s"), ("15s", "23s")])
def test_a_stop_of_the_supervisor_fits_into_kill_timeout(stream: str, kill: str | None) -> None:
    model = Model(model="m", drain=Drain(longest_stream=stream, kill_timeout=kill))
    times = deadlines(model, Fabio.shutdown_delay_s)
    assert 1 <= term_timeout(times) <= TERM_S
    took = times.longest_stream + term_timeout(times) + GONE_S + LAST_WORDS_S
    assert took <= times.kill_timeout


def test_a_short_kill_timeout_leaves_vllm_a_second() -> None:
    model = Model(model="m", drain=Drain(longest_stream="15s", kill_timeout="16s"))
    assert told(model)["VLLMJOBS_TERM_TIMEOUT"] == "1s"


def test_a_load_is_waited_for_with_a_margin_or_as_long_as_is_said() -> None:
    assert told(Model(model="m", load_time="30m"))["VLLMJOBS_LOAD_TIMEOUT"] == "38m"
    assert told(Model(model="m", health=Health(grace="1h")))["VLLMJOBS_LOAD_TIMEOUT"] == "1h"


def test_the_supervisor_reads_what_it_is_told() -> None:
    model = Model(model="m", load_time="30m", drain=Drain(longest_stream="90s", kill_timeout="2m"))
    nomad = {"NOMAD_IP_admin": "10.0.0.7", "NOMAD_PORT_admin": "20001", "NOMAD_GROUP_NAME": "chat"}
    read = settings.read(["--", "vllm", "serve", "m"], nomad | told(model))
    assert (read.admin_host, read.admin_port) == ("0.0.0.0", ADMIN_PORT)  # not the node's, in a container
    assert read.limits == SupervisionLimits(load=38 * 60, drain=90, term=10, leave=0)
    host = Model(model="m", container=Container(network="host"))
    read = settings.read(["--", "vllm", "serve", "m"], nomad | told(host))
    assert (read.admin_host, read.admin_port) == ("10.0.0.7", 20001)


def test_the_figures_of_the_supervisor_are_its_own() -> None:
    assert (settings.ADMIN_PORT, SupervisionLimits().term, SupervisionLimits().gone) == (
        ADMIN_PORT,
        TERM_S,
        GONE_S,
    )
