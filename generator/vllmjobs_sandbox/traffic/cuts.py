"""Answers that Fabio cuts of itself, whatever the engine does: of these a release is not to blame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from vllmjobs_sandbox.cluster.sandbox import Sandbox
from vllmjobs_sandbox.traffic.load import TIME

# Go's proxies, Fabio among them, cut a stream that begins while they look whether the request's body has
# ended (net/http, transferWriter.writeBody), with or without a release: within 3 ms where the machine is
# idle, within 100 where it is busy. They have closed the engine's connection themselves then, and say so; of
# an engine that ends they say "unexpected EOF" or "connection reset by peer".
CUT_BY_GO = re.compile(
    r"(\d{4}/\d\d/\d\d [\d:]{8}) .*read error during body copy: "
    r"read tcp \S+->\S+:(\d+): use of closed network connection"
)
CUT = "peer closed connection without sending complete message body"  # what its client says then
AT_ONCE = timedelta(seconds=1)  # both write whole seconds


def cut_by_go(sandbox: Sandbox, job: str) -> list[datetime]:
    """Return the times at which Fabio cut an answer of this job's instances of its own accord."""
    of_job = [
        sandbox.nomad.allocation.get_allocation(one["ID"]) for one in sandbox.nomad.job.get_allocations(job)
    ]
    ports = {port["Value"] for one in of_job for port in one["AllocatedResources"]["Shared"]["Ports"]}
    logs = (
        sandbox.nomad_cli("alloc", "logs", "-stderr", one["ID"], "fabio").stdout
        for one in sandbox.allocations("vllm-dev-fabio")
    )
    found = (cut for log in logs for cut in CUT_BY_GO.findall(log))
    return [datetime.strptime(at, TIME) for at, port in found if int(port) in ports]


def not_cut_by_go(failures: Sequence[str], cuts: Sequence[datetime]) -> list[str]:
    """Return the failures for which Fabio's log has no line of its own, at that time and of that kind."""
    left, unexplained = sorted(cuts), []
    for failure in failures:
        at = datetime.strptime(failure[:19], TIME)
        line = next((cut for cut in left if CUT in failure and abs(at - cut) <= AT_ONCE), None)
        if line:
            left.remove(line)
        else:
            unexplained.append(failure)
    return unexplained
