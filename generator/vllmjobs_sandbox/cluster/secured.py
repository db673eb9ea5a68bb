"""A Nomad server with TLS and ACLs, beside the sandbox, which has neither unless it is told to."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllmjobs_sandbox.cluster import ports
from vllmjobs_sandbox.cluster.leftovers import unmount
from vllmjobs_sandbox.cluster.nomad import NomadAgent, secured_config
from vllmjobs_sandbox.cluster.process import start, stop
from vllmjobs_sandbox.cluster.programs import CHECKOUT, programs

READY = 60.0  # seconds
CA = "nomad-agent-ca.pem"


@dataclass(frozen=True)
class Secured:
    """A running server; its folder has the files that `nomad tls` made."""

    environ: dict[str, str]  # to reach it, without a token
    folder: Path
    manager: str  # a token that may do everything

    def token(self, name: str, rules: str) -> str:
        """Make a token with a policy of that name."""
        self.nomad("acl", "policy", "apply", name, "-", text=rules)
        return made(self.nomad("acl", "token", "create", "-policy", name, "-json"))

    def person(self, name: str, *policies: str) -> str:
        """Make a token of a person with these policies."""
        words = [word for policy in policies for word in ("-policy", policy)]
        return made(self.nomad("acl", "token", "create", "-name", name, *words, "-json"))

    def nomad(self, *args: str, text: str = "") -> str:
        """Run `nomad` as the manager."""
        return nomad(self.folder, *args, environ=self.environ | {"NOMAD_TOKEN": self.manager}, text=text)


@contextmanager
def secured_server(folder: Path, verify_clients: bool = False, is_client: bool = False) -> Iterator[Secured]:
    """Start a server; with `verify_clients`, it talks only to whom its CA has given a certificate.

    With `is_client` it runs tasks, too, whose Task API needs a folder with a short name.
    """
    nomad(folder, "tls", "ca", "create")
    nomad(folder, "tls", "cert", "create", "-server", "-region", "global")
    nomad(folder, "tls", "cert", "create", "-client", "-region", "global")
    block = ports.take_block()
    agent = NomadAgent("secured", block.take(), block.take(), block.take())
    config = folder / "server.hcl"
    config.write_text(secured_config(agent, str(folder), verify_clients, is_client))
    env = {"PATH": os.defpath}  # a client asks df
    server = start("nomad", [programs()["nomad"], "agent", "-config", config], folder / "log", env)
    environ = {"NOMAD_ADDR": f"https://127.0.0.1:{agent.http}", "NOMAD_CACERT": str(folder / CA)}
    if verify_clients:
        environ["NOMAD_CLIENT_CERT"] = str(folder / "global-client-nomad.pem")
        environ["NOMAD_CLIENT_KEY"] = str(folder / "global-client-nomad-key.pem")
    try:
        manager = server.wait_until(
            lambda: made(nomad(folder, "acl", "bootstrap", "-json", environ=environ)),
            READY,
            "it has a leader",
            ignoring=(subprocess.CalledProcessError,),
        )
        yield Secured(environ, folder, manager)
    finally:
        stop([server])
        unmount(folder)
        block.release()


def acls(token: str) -> dict[str, dict[str, Any]]:
    """Say what turns ACLs on, for Nomad's and for Consul's agents; the token is a manager's, or to be one."""
    tokens = {"initial_management": token, "agent": token}
    return {
        "nomad": {"acl": {"enabled": True}, "consul": {"token": token}},
        "consul": {"acl": {"enabled": True, "default_policy": "deny", "tokens": tokens}},
    }


def published(page: str, title: str) -> str:
    """Return the policy that a page of docs/ shows, whose first line is this comment."""
    shown = re.search(
        rf"```hcl\n# {re.escape(title)}\n(.*?)```", (CHECKOUT / "docs" / page).read_text(), re.DOTALL
    )
    assert shown, f"{page} shows no policy {title}"
    return shown[1]


def made(token: str) -> str:
    """Take the secret from what `nomad acl … -json` prints."""
    secret: str = json.loads(token)["SecretID"]
    return secret


def nomad(folder: Path, *args: str, environ: dict[str, str] | None = None, text: str = "") -> str:
    """Run `nomad` in a folder, with nothing else in its environment."""
    return subprocess.run(
        [programs()["nomad"], *args],
        env=environ or {},
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
