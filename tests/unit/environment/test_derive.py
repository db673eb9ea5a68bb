from vllmjobs.balancers.fabio import Fabio
from vllmjobs.balancers.nginx import Nginx
from vllmjobs.balancers.none import NoBalancer
from vllmjobs.environment.derive import deadlines, tensor_parallel_size
from vllmjobs.environment.model import Drain, Health, Model
from vllmjobs.environment.rollout import Rollout
from vllmjobs.environment.server import Gpus


def test_deadlines_leave_room_for_pull_and_load() -> None:
    d = deadlines(Model(model="m", pull_time="10m", load_time="30m"), Fabio.shutdown_delay_s)
    assert d.start == 40 * 60
    assert d.pull == 13 * 60  # 12.5 minutes, in whole ones
    assert d.grace == d.engine_ready == 50 * 60
    assert d.healthy_deadline == 51 * 60
    assert d.progress_deadline > d.healthy_deadline + d.kill_timeout + d.shutdown_delay


def test_a_stop_waits_for_the_longest_stream_and_the_balancer() -> None:
    model = Model(model="m", drain=Drain(longest_stream="5m"))
    assert deadlines(model, Fabio.shutdown_delay_s).kill_timeout == 315
    assert deadlines(model, Fabio.shutdown_delay_s).shutdown_delay == 10
    assert deadlines(model, Nginx.shutdown_delay_s).shutdown_delay == 15
    assert deadlines(model, NoBalancer.shutdown_delay_s).shutdown_delay == 0


def test_short_figures_do_not_go_below_what_docker_and_vllm_wait_for_anyway() -> None:
    d = deadlines(Model(model="m", pull_time="1s", load_time="1s"), Fabio.shutdown_delay_s)
    assert (d.pull, d.engine_ready) == (300, 600)


def test_every_deadline_can_be_overridden() -> None:
    d = deadlines(
        Model(
            model="m",
            health=Health(grace="1h"),
            drain=Drain(longest_stream="10s", kill_timeout="20s", shutdown_delay="3s"),
            rollout=Rollout(min_healthy_time="30s", healthy_deadline="2h", progress_deadline="3h"),
        ),
        Fabio.shutdown_delay_s,
    )
    assert (d.grace, d.kill_timeout, d.shutdown_delay) == (3600, 20, 3)
    assert (d.min_healthy_time, d.healthy_deadline, d.progress_deadline) == (30, 7200, 10800)


def test_pipeline_parallelism_takes_its_gpus_from_tensor_parallelism() -> None:
    model = Model(model="m", strategy="tensor_parallel", gpus=Gpus(count=8))
    assert tensor_parallel_size(model) == 8
    piped = Model(
        model="m", strategy="tensor_parallel", gpus=Gpus(count=8), args={"pipeline_parallel_size": 2}
    )
    assert tensor_parallel_size(piped) == 4
