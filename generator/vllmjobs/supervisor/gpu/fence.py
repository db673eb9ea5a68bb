"""The fence: it keeps others off a node with a condemned GPU, through Nomad's Task API.

The node gets the metadata `vllmjobs_gpu_fenced`, and jobs with the constraint

    constraint {
      attribute = "${meta.vllmjobs_gpu_fenced}"
      operator  = "is_not_set"
    }

are placed elsewhere. It outlives the agent and a reboot, until a person lifts it:

    nomad node meta apply -node-id NODE -unset vllmjobs_gpu_fenced

The task needs `identity { env = true }`. With ACLs, the job needs a policy, too, since nothing but `node`
allows that (client/meta_endpoint.go of Nomad 1.11):

    echo 'node { policy = "write" }' | nomad acl policy apply -namespace NAMESPACE -job JOB vllmjobs-fence -

Nomad's servers hear of it some 5 s later (nodeUpdateRetryIntv in client/client.go).
"""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from vllmjobs.supervisor.core.gpu_events import FENCE_META
from vllmjobs.supervisor.http_client import ServerAddress, request

SECONDS = 5.0
METADATA = "/v1/client/metadata"  # without a node's ID, that of the agent that listens on the socket


async def fence(gpu: str, reason: str, environ: Mapping[str, str]) -> str | None:
    """Fence the node that this task runs on; return why that could not be done, or None when it is.

    `environ` is what Nomad gave the task. Other GPUs that the value names are kept.
    """
    folder, token = environ.get("NOMAD_SECRETS_DIR"), environ.get("NOMAD_TOKEN")
    if not folder:
        return "this is not a Nomad task (NOMAD_SECRETS_DIR is not set)"
    if not token:
        return "the task has no identity { env = true } (NOMAD_TOKEN is not set)"
    address = ServerAddress(socket=f"{folder}/api.sock", token=token)
    try:
        async with asyncio.timeout(SECONDS):
            metadata = (await _ask(address, "GET"))["Meta"]
            value = add(metadata.get(FENCE_META, ""), gpu, reason, time.time())
            await _ask(address, "POST", {"Meta": {FENCE_META: value}})
    except TimeoutError:
        return f"Nomad's Task API did not answer in {SECONDS:g} s"
    except OSError as error:
        return f"Nomad's Task API cannot be reached at {address.socket}: {error.strerror or error}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"Nomad's Task API refused it: {error}"
    return None


def add(value: str, gpu: str, reason: str, at: float) -> str:
    """Add a GPU to the value: `GPU-… reason 2026-01-31T12:00:00Z; GPU-… …`. Each is there once, as it was."""
    entries = [entry for entry in value.split("; ") if entry]
    if any(entry.partition(" ")[0] == gpu for entry in entries):
        return value
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    return "; ".join([*entries, f"{gpu} {' '.join(reason.replace(';', ',').split())} {when}"])


async def _ask(address: ServerAddress, method: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    content = None if body is None else json.dumps(body).encode()
    response = await request(address, method, METADATA, content)
    if response.status != 200:
        text = response.body.decode(errors="replace").strip()
        raise ValueError(f"{response.status} {text or response.phrase}")
    metadata: dict[str, Any] = json.loads(response.body)
    return metadata
