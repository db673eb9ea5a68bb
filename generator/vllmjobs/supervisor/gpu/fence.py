"""Keeping others off a node with a condemned GPU, through Nomad's Task API.

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

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

META = "vllmjobs_gpu_fenced"
SECONDS = 5.0
LONGEST_ANSWER = 2**20


async def fence(gpu: str, reason: str, environ: Mapping[str, str]) -> str | None:
    """Fence the node that this task runs on; return why that could not be done, or None when it is.

    `environ` is what Nomad gave the task. What the value says of other GPUs is kept.
    """
    folder, token = environ.get("NOMAD_SECRETS_DIR"), environ.get("NOMAD_TOKEN")
    if not folder:
        return "this is no task of Nomad (no NOMAD_SECRETS_DIR)"
    if not token:
        return "the task has no identity { env = true } (no NOMAD_TOKEN)"
    socket = f"{folder}/api.sock"
    try:
        async with asyncio.timeout(SECONDS):
            known = await _ask(socket, token, "GET")
            said = add(known["Meta"].get(META, ""), gpu, reason, time.time())
            await _ask(socket, token, "POST", {"Meta": {META: said}})
    except TimeoutError:
        return f"Nomad's Task API did not answer in {SECONDS:g} s"
    except OSError as error:
        return f"Nomad's Task API cannot be reached at {socket}: {error.strerror or error}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"Nomad's Task API refused it: {error}"
    return None


def add(said: str, gpu: str, reason: str, at: float) -> str:
    """Add a GPU to the value: `GPU-… reason 2026-01-31T12:00:00Z; GPU-… …`. Each is there once, as it was."""
    entries = [entry for entry in said.split("; ") if entry]
    if any(entry.partition(" ")[0] == gpu for entry in entries):
        return said
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    return "; ".join([*entries, f"{gpu} {' '.join(reason.replace(';', ',').split())} {when}"])


async def _ask(socket: str, token: str, method: str, body: object = None) -> dict[str, Any]:
    """Ask /v1/client/metadata. Without a node's ID, it is that of the agent that listens on the socket."""
    reader, writer = await asyncio.open_unix_connection(socket, limit=LONGEST_ANSWER)
    try:
        content = b"" if body is None else json.dumps(body).encode()
        # HTTP/1.0: the answer ends with the connection, and is never chunked.
        writer.write(
            f"{method} /v1/client/metadata HTTP/1.0\r\nHost: nomad\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        head, _, answer = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    status, _, said = head.partition(b"\r\n")[0].decode(errors="replace").partition(" ")[2].partition(" ")
    if status != "200":
        text = answer.decode(errors="replace").strip()
        raise ValueError(f"{status} {text or said}" if status else "it is no HTTP that it speaks")
    known: dict[str, Any] = json.loads(answer)
    return known
