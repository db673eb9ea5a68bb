"""The faults of the runbooks, by name: each is a context in which the fault is there.

They stand in the order in which neighbours share a job that is well.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from vllmjobs_sandbox.story.faults import engines, gpus, releases, surroundings
from vllmjobs_sandbox.story.night import Night

Fault = Callable[[Night, Path], AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {
    "none": surroundings.none,
    "given-up": engines.given_up,
    "restarts": engines.restarts_after_a_release,
    "gpu-breaks": gpus.gpu_breaks,
    "gpu-fenced": gpus.node_fenced,
    "requests-wait": engines.requests_wait,
    "kv-cache-full": engines.cache_full,
    "preemptions": engines.preempts,
    "disk-full": surroundings.disk_full,
    "secret-missing": surroundings.secret_missing,
    "token-expired": surroundings.token_expired,
    "gpu-memory": gpus.gpu_memory_taken,
    "no-ready-instance": surroundings.no_node_takes_it,
    "balancer-down": surroundings.balancer_stopped,
    "consul-agent-down": surroundings.consul_agent_down,
    "fabio-table-frozen": releases.fabio_frozen,
    "no-free-gpu": gpus.no_free_gpu,
    "deployment-stuck": releases.waits_for_its_promotion,
    "canary-answers-500": releases.canary_answers_500,
    "engine-crash-loop": releases.canary_crashes,
    "error-rate": releases.errors_after_a_release,
    "bad-release": releases.bad_release,
    "loads-slowly": releases.loads_slowly,
}
